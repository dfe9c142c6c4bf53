"""Which of the drafters beside a model is the fastest here, where nobody named one.

Times a short draft of each against the target, and asks its config how many tokens a round it was
measured to yield. What was opened for that is used, not opened again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forerun.composition import DrafterName
from forerun.control.trial import PAYS, DraftOf, gain, growths, proposals
from forerun.drafters.features import deepest
from forerun.engine.drafting import Surroundings, refuse_other_vocabulary, spec_of_kind
from forerun.errors import IncompatibleSpeculation, ModelError
from forerun.protocols import Backend, FeatureBackend

CANDIDATES = ("lm", "dspark", "dflash", "eagle3")  # directories beside a model, in order of trial
# A drafter that reads features must win by so much over one that does not, for the trial does not
# see that its first round drafts nothing, nor that all rows of a pass have theirs copied.
_BETTER = 1.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A drafter that was opened and timed, and surroundings that hand out what was opened."""

    name: DrafterName
    backend: Backend | FeatureBackend
    gain: float
    around: Surroundings


def discovered(around: Surroundings) -> tuple[DrafterName, Surroundings]:
    """The fastest drafter beside the model that pays here, else lookup; and the surroundings to
    build it in, which hold its model, already open."""
    best: _Found | None = None
    for name in CANDIDATES:
        path = around.directory / "drafters" / name
        found = _tried(name, path, around) if path.is_dir() else None
        if found is None:
            continue
        best, other = (found, best) if best is None or _is_better(found, best) else (best, found)
        if other is not None:
            other.backend.close()
    if best is None:
        return DrafterName("lookup"), around
    if best.gain > PAYS:
        return best.name, best.around
    best.backend.close()
    _log.info("%s would cost more than it yields here: lookup is used", best.name.argument)
    return DrafterName("lookup"), around


def _is_better(found: _Found, best: _Found) -> bool:
    return found.gain > best.gain * (_BETTER if best.name.name == "lm" else 1.0)


def _tried(name: str, path: Path, around: Surroundings) -> _Found | None:
    """One candidate, timed; None where it does not fit or cannot be opened."""
    try:
        return _small_model(path, around) if name == "lm" else _featured(name, path, around)
    except (ModelError, IncompatibleSpeculation) as error:
        _log.warning("the drafter beside the model is not used: %s", error)
        return None


def _small_model(path: Path, around: Surroundings) -> _Found:
    refuse_other_vocabulary(around, path)
    again = around.opens.model
    backend = again(path)
    won = _gain(backend, proposals(backend), path, around)

    def handing(asked: Path) -> Backend:
        return backend if asked == path else again(asked)

    name = DrafterName("lm", str(path))
    return _Found(name, backend, won, _opening(around, model=handing))


def _featured(name: str, path: Path, around: Surroundings) -> _Found:
    spec_of_kind(name, path, around)
    again = around.opens.features
    backend = again(path, around.target)
    won = _gain(backend, growths(backend), path, around, deepest(backend.spec))

    def handing(asked: Path, target: Backend) -> FeatureBackend:
        return backend if asked == path else again(asked, target)

    named = DrafterName(name, str(path))
    return _Found(named, backend, won, _opening(around, features=handing))


def _opening(around: Surroundings, **opens: Any) -> Surroundings:
    return replace(around, opens=replace(around.opens, **opens))


def _gain(
    backend: Backend | FeatureBackend,
    draft_of: DraftOf,
    path: Path,
    around: Surroundings,
    longest: int = 1 << 30,
) -> float:
    try:
        return gain(around.target, draft_of, record_of(path), longest)
    except BaseException:
        backend.close()
        raise


def record_of(path: Path) -> dict[int, float]:
    """Tokens a round by drafted tokens, as who trained a drafter measured and wrote them into its
    `config.json`: `{"forerun": {"tokens_per_round": {"2": 1.9, "7": 2.8}}}`. Empty without."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        record = config["forerun"]["tokens_per_round"]
        return {int(length): float(tokens) for length, tokens in record.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # nobody measured it: a guess will do
