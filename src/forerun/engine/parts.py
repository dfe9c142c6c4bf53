"""From the four strings of a `Speculation` to live parts.

The only parser of these names; what the design plans but this version lacks is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forerun.backends.slots import Slots
from forerun.composition import DrafterName, ShapeName
from forerun.control.pace import Pace
from forerun.control.trial import draft_pays
from forerun.drafters.guard import Guard
from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.plain import Plain
from forerun.engine.witness import Witness
from forerun.errors import IncompatibleSpeculation, ModelError, OptionError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.options import Speculation
from forerun.protocols import Backend, Drafter, Rule, Schedule, Shape
from forerun.rules.match import Match
from forerun.schedules.sequential import Sequential
from forerun.shapes.chain import Chain
from forerun.stats import Span

# The longest chain of `shape=auto`; how much of it is used is measured round by round (`Pace`).
AUTO_CHAIN = {"lm": 8, "lookup": 12, "none": 1}

_log = logging.getLogger(__name__)

OpenBackend = Callable[[Path], Backend]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a round is made of: a target with its K/V blocks, and an answer to each question."""

    target: Backend
    slots: Slots
    drafter: Guard
    shape: Shape
    rule: Rule
    schedule: Schedule
    pace: Pace | None = None  # only where nobody asked for a length
    witness: Witness | None = None


def build_parts(
    speculation: Speculation,
    target: Backend,
    directory: Path,
    open_drafter: OpenBackend,
    model_span: Span,
) -> Parts:
    """Check all four names, then load what they need.

    `directory` is the target's, where its own drafters lie; `model_span` sums the seconds of a
    drafter's own backend calls.

    Raises:
        OptionError: a name that is unknown or not built yet.
        IncompatibleSpeculation: a drafter that does not fit the target.
        ModelError: a drafter that cannot be loaded.
    """
    wanted = speculation.composition()
    drafter, rule = wanted.drafter, _rule(wanted.rule)
    asked = _shape(wanted.shape)
    is_ours = drafter.name == "auto"
    if is_ours:
        drafter = _discovered(target, directory)
    if drafter.name == "lm":
        path = _drafter_directory(drafter, directory)
        _refuse_other_vocabulary(target, path)
        backend = open_drafter(path)
        if not is_ours or draft_pays(target, backend):
            shape = asked or Chain(AUTO_CHAIN["lm"])
            live = LM(backend, shape.max_drafted, model_span)
            return _assembled(target, live, shape, rule, is_paced=asked is None)
        backend.close()
        _log.info("drafting with %s would cost more than it yields here: lookup is used", path)
        drafter = DrafterName("lookup")
    shape = asked or Chain(AUTO_CHAIN[drafter.name])
    if drafter.name == "none":
        return _assembled(target, Plain(), shape, rule, is_paced=False)
    return _assembled(target, Lookup(), shape, rule, is_paced=asked is None)


def _assembled(
    target: Backend, drafter: Drafter, shape: Shape, rule: Rule, *, is_paced: bool
) -> Parts:
    guard = Guard(drafter, shape, target.spec.vocab)
    pace = Pace(shape.max_drafted) if is_paced else None
    return Parts(target, Slots(target.num_blocks), guard, shape, rule, Sequential(), pace)


def _rule(name: str) -> Rule:
    if name != "match":
        raise OptionError(f"rule {name!r} is not built yet; available: match")
    return Match()


def _shape(shape: ShapeName) -> Shape | None:
    """The shape asked for; None where it is ours to choose."""
    if shape.kind == "auto":
        return None
    if shape.kind == "chain" and shape.size:
        return Chain(shape.size)
    raise OptionError(f"shape {shape} is not built yet; available: auto, chain:K")


def _discovered(target: Backend, directory: Path) -> DrafterName:
    """The model's own small model where it has a fitting one, else lookup."""
    path = directory / "drafters" / "lm"
    if not path.is_dir():
        return DrafterName("lookup")
    try:
        _refuse_other_vocabulary(target, path)
    except (ModelError, IncompatibleSpeculation) as error:
        _log.warning("the drafter beside the model is not used: %s", error)
        return DrafterName("lookup")
    return DrafterName("lm", str(path))


def _drafter_directory(drafter: DrafterName, directory: Path) -> Path:
    """A bare name means the model's own drafter, else the embedded model's if it fits."""
    if drafter.argument is not None:
        return resolve_model(drafter.argument)
    own = directory / "drafters" / drafter.name
    if own.is_dir():
        return own
    with suppress(ModelError, OSError):
        family = resolve_model(EMBEDDED_NAME)
        tokenizer = "tokenizer.json"
        if (family / tokenizer).read_bytes() == (directory / tokenizer).read_bytes():
            return family / "drafters" / drafter.name
    raise ModelError(
        f"the model has no drafter of its own at {own}: write {drafter.name}:DIR, or use lookup"
    )


def _refuse_other_vocabulary(target: Backend, path: Path) -> None:
    vocab = read_spec(path).vocab
    if vocab != target.spec.vocab:
        raise IncompatibleSpeculation(
            f"the drafter {path} has {vocab} tokens, the target {target.spec.vocab}: an lm drafter"
            " needs the target's vocabulary; use one made for this model, or lookup"
        )
