"""From a drafter's name to a live drafter, grown as its shape and rule want it.

The one table of drafters. What does not fit the target is refused here, before anything runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forerun.composition import DrafterName
from forerun.control.trial import draft_pays
from forerun.draft import Draw
from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.plain import Plain
from forerun.errors import IncompatibleSpeculation, ModelError, OptionError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import Tokenizer
from forerun.protocols import Backend, Drafter, Growth, Shape
from forerun.shapes.chain import Chain
from forerun.shapes.profile import likeliest_tree
from forerun.shapes.tree import FixedTree, Tree
from forerun.stats import Span

_WIDTH, _FRONTIER, _LEVELS = 4, 4, 12  # of a tree grown best first
_LEAST = 0.02  # a path less likely than this is not worth the node

_log = logging.getLogger(__name__)

OpenModel = Callable[[Path], Backend]


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What drafters are built from: the target and where its own drafters lie, its tokenizer, how a
    model is opened, the span of a drafter's backend calls, and the shape and rule they serve."""

    target: Backend
    directory: Path
    tokenizer: Tokenizer
    open_model: OpenModel
    span: Span
    shape: Shape
    rule: str
    is_top: bool = False


def discovered(around: Surroundings) -> DrafterName:
    """The model's own small model where it has a fitting one that pays here, else lookup."""
    path = around.directory / "drafters" / "lm"
    lookup = DrafterName("lookup")
    if not path.is_dir():
        return lookup
    try:
        _refuse_other_vocabulary(around.target, path)
    except (ModelError, IncompatibleSpeculation) as error:
        _log.warning("the drafter beside the model is not used: %s", error)
        return lookup
    backend = around.open_model(path)
    try:
        if draft_pays(around.target, backend):
            return DrafterName("lm", str(path))
    finally:
        backend.close()
    _log.info("drafting with %s would cost more than it yields here: lookup is used", path)
    return lookup


def build_drafter(name: DrafterName, around: Surroundings) -> Drafter:
    """A live drafter.

    Raises:
        IncompatibleSpeculation: it does not fit the target. ModelError: it cannot be loaded.
        OptionError: it is not built yet.
    """
    if name.name == "none":
        return Plain()
    if name.name == "lookup" and name.argument is None:
        return Lookup()
    if name.name == "lm":
        return _small_model(name, around)
    raise OptionError(
        f"drafter {name.name!r} is not built yet; available: none, lookup, lm, lm:DIR"
    )


def _small_model(name: DrafterName, around: Surroundings) -> Drafter:
    path = _drafter_directory(name, around.directory)
    _refuse_other_vocabulary(around.target, path)
    growth = growth_of(around.shape, around.rule, is_top=around.is_top)
    levels = num_levels(around.shape)
    return LM(around.open_model(path), levels, around.span, growth)


def growth_of(shape: Shape, rule: str, *, is_top: bool = False) -> Growth | None:
    """How a small model grows the shape for the rule; None for coupled chains."""
    if rule == "match":
        if isinstance(shape, Tree):
            return Growth(Draw.COUPLED, None, _WIDTH, _FRONTIER, _LEAST)
        if isinstance(shape, FixedTree):
            return Growth(Draw.COUPLED, shape.parents)
        if isinstance(shape, Chain) and shape.stop > 0:
            return Growth(Draw.COUPLED, None, least=shape.stop)
        return None
    if isinstance(shape, Chain):
        return Growth(Draw.SAMPLED, tuple(range(shape.max_drafted)), least=shape.stop)
    given = likeliest_tree(shape.max_drafted) if isinstance(shape, Tree) else shape
    assert isinstance(given, FixedTree)
    draw = Draw.SAMPLED if rule == "kseq" else Draw.WITHOUT_REPLACEMENT
    return Growth(Draw.TOP_AND_ONE if is_top else draw, given.parents)


def num_levels(shape: Shape) -> int:
    """How deep a draft of the shape may go."""
    if isinstance(shape, FixedTree):
        return shape.num_levels
    return min(shape.max_drafted, _LEVELS) if isinstance(shape, Tree) else shape.max_drafted


def _drafter_directory(name: DrafterName, directory: Path) -> Path:
    """A bare name means the model's own drafter, else the embedded model's if it fits."""
    if name.argument is not None:
        return resolve_model(name.argument)
    own = directory / "drafters" / name.name
    if own.is_dir():
        return own
    with suppress(ModelError, OSError):
        family = resolve_model(EMBEDDED_NAME)
        tokenizer = "tokenizer.json"
        if (family / tokenizer).read_bytes() == (directory / tokenizer).read_bytes():
            return family / "drafters" / name.name
    raise ModelError(
        f"the model has no drafter of its own at {own}: write {name.name}:DIR, or use lookup"
    )


def _refuse_other_vocabulary(target: Backend, path: Path) -> None:
    vocab = read_spec(path).vocab
    if vocab != target.spec.vocab:
        raise IncompatibleSpeculation(
            f"the drafter {path} has {vocab} tokens, the target {target.spec.vocab}: an lm drafter"
            " needs the target's vocabulary; use one made for this model, or lookup"
        )
