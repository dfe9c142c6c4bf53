"""From the four names of a `Speculation` to live parts: shape, rule, schedule and, by
`drafting.py`, the drafter."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from forerun.backends.slots import Slots
from forerun.composition import ShapeName
from forerun.control.pace import Pace
from forerun.drafters.guard import Guard
from forerun.engine.drafting import OpenModel, Surroundings, build_drafter, discovered
from forerun.engine.witness import Witness
from forerun.errors import OptionError
from forerun.models.tokenizer import Tokenizer
from forerun.options import Speculation
from forerun.protocols import Backend, Rule, Schedule, Shape
from forerun.rules.block import Block
from forerun.rules.kseq import KSeq
from forerun.rules.match import Match
from forerun.rules.rejection import Rejection
from forerun.rules.traversal import Traversal
from forerun.schedules.sequential import Sequential
from forerun.shapes.chain import Chain
from forerun.shapes.tree import FixedTree, Tree
from forerun.stats import Span

# The longest chain of `shape=auto`; how much of it is used is measured round by round (`Pace`).
AUTO_CHAIN = {"lm": 8, "lookup": 12, "none": 1}
_AUTO_LEN = 8  # of any other drafter
_AUTO_TREE = 8  # nodes: about as many as are verified for the price of one without AMX
_CHAIN_STOP = 0.25  # expected acceptance of a whole chain below which it is not continued

_RULES: dict[str, Rule] = {
    "match": Match(),
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
    "kseq": KSeq(),
}


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
    tokenizer: Tokenizer,
    open_model: OpenModel,
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
    shape = _shape(wanted.shape, wanted.drafter.name)
    around = Surroundings(
        target,
        directory,
        tokenizer,
        open_model,
        model_span,
        shape,
        wanted.rule,
        wanted.shape.is_top,
    )
    name = wanted.drafter
    if name.name == "auto":
        name = discovered(around)
        shape = _shape(wanted.shape, name.name)
        around = replace(around, shape=shape)
    drafter = build_drafter(name, around)
    is_paced = wanted.shape.kind == "auto" and wanted.rule == "match" and name.name != "none"
    return Parts(
        target,
        Slots(target.num_blocks),
        Guard(drafter, shape, target.spec.vocab),
        shape,
        _RULES[wanted.rule],
        Sequential(),
        Pace(shape.max_drafted) if is_paced else None,
    )


def _shape(shape: ShapeName, drafter: str) -> Shape:
    """The live shape; where its size is ours to choose, the longest that is ever tried."""
    longest = AUTO_CHAIN.get(drafter, _AUTO_LEN)
    if shape.kind == "auto":
        return Chain(longest)
    if shape.kind == "chain":
        return Chain(shape.size) if shape.size else Chain(longest, _CHAIN_STOP)
    if shape.file is not None:
        return _read_tree(Path(shape.file))
    if shape.widths:
        return FixedTree.of_widths(shape.widths)
    return Tree(shape.size or _AUTO_TREE)


def _read_tree(path: Path) -> FixedTree:
    """A tree written as a JSON list of parents: [0, 0, 1] is two children and a grandchild."""
    try:
        parents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"the tree {path} cannot be read: {error}") from error
    if not isinstance(parents, list) or not all(type(parent) is int for parent in parents):
        raise OptionError(
            f"the tree {path} must be a JSON list of parents, as [0, 0, 1], 0 being the pending"
            " token"
        )
    return FixedTree(tuple(parents))
