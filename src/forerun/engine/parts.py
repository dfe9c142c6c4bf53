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
from forerun.control.pace import Pace
from forerun.control.trial import draft_pays
from forerun.drafters.guard import Guard
from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.plain import Plain
from forerun.errors import IncompatibleSpeculation, ModelError, OptionError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.options import Speculation
from forerun.protocols import Backend, Drafter, Rule, Schedule, Shape
from forerun.rules.match import Match
from forerun.schedules.sequential import Sequential
from forerun.shapes.chain import LONGEST, Chain
from forerun.stats import Span

# The longest chain of `shape=auto`; how much of it is used is measured round by round (`Pace`).
AUTO_CHAIN = {"lm": 8, "lookup": 12, "none": 1}

_AVAILABLE = {
    "drafter": "auto, none, lookup, lm, lm:DIR",
    "shape": "auto, chain:K",
    "rule": "auto, match",
    "schedule": "auto, sequential",
}
_PLANNED = {
    "drafter": (
        "prediction", "grammar", "exit", "router", "nested", "dflash", "dspark", "eagle3",
    ),
    "shape": ("tree",),
    "rule": ("rejection", "block", "traversal"),
    "schedule": ("parallel", "ahead"),
}  # fmt: skip

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


@dataclass(frozen=True, slots=True)
class _Choice:
    """A parsed name with its argument, where it has one."""

    name: str
    argument: str | None


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
    drafter = parse_drafter(speculation.drafter)
    _parse("rule", speculation.rule, ("auto", "match"))
    _parse("schedule", speculation.schedule, ("auto", "sequential"))
    asked = parse_shape(speculation.shape)
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
            return _assembled(target, live, shape, is_paced=asked is None)
        backend.close()
        _log.info("drafting with %s would cost more than it yields here: lookup is used", path)
        drafter = _Choice("lookup", None)
    shape = asked or Chain(AUTO_CHAIN[drafter.name])
    if drafter.name == "none":
        return _assembled(target, Plain(), shape, is_paced=False)
    return _assembled(target, Lookup(), shape, is_paced=asked is None)


def _assembled(target: Backend, drafter: Drafter, shape: Chain, *, is_paced: bool) -> Parts:
    guard = Guard(drafter, shape, target.spec.vocab)
    pace = Pace(shape.max_drafted) if is_paced else None
    return Parts(target, Slots(target.num_blocks), guard, shape, Match(), Sequential(), pace)


def parse_drafter(text: str) -> _Choice:
    """`auto`, `none`, `lookup`, `lm` or `lm:DIR`."""
    return _parse("drafter", text, ("auto", "none", "lookup"), ("lm",))


def parse_shape(text: str) -> Chain | None:
    """`chain:K`; None for `auto`."""
    choice = _parse("shape", text, ("auto",), ("chain",))
    if choice.name == "auto":
        return None
    if choice.argument is None or not choice.argument.isascii() or not choice.argument.isdigit():
        raise OptionError(f"shape {text!r}: write chain:K with K in [1, {LONGEST}]")
    return Chain(int(choice.argument))


def _parse(
    axis: str, text: str, plain: tuple[str, ...], with_argument: tuple[str, ...] = ()
) -> _Choice:
    name, colon, argument = text.partition(":")
    if text in plain:
        return _Choice(text, None)
    if name in with_argument and not (colon and not argument):
        return _Choice(name, argument or None)
    available = f"available: {_AVAILABLE[axis]}"
    if name.partition("(")[0] in _PLANNED[axis]:
        raise OptionError(f"{axis} {text!r} is not built yet; {available}")
    raise OptionError(f"unknown {axis} {text!r}; {available}")


def _discovered(target: Backend, directory: Path) -> _Choice:
    """The model's own small model where it has a fitting one, else lookup."""
    path = directory / "drafters" / "lm"
    if not path.is_dir():
        return _Choice("lookup", None)
    try:
        _refuse_other_vocabulary(target, path)
    except (ModelError, IncompatibleSpeculation) as error:
        _log.warning("the drafter beside the model is not used: %s", error)
        return _Choice("lookup", None)
    return _Choice("lm", str(path))


def _drafter_directory(drafter: _Choice, directory: Path) -> Path:
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
