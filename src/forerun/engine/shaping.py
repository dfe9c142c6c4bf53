"""From the names of shape and rule to live ones; the sizes that are ours to choose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forerun.composition import ScheduleName, ShapeName
from forerun.draft import Draw
from forerun.errors import OptionError
from forerun.protocols import Growth, Rule, Shape
from forerun.rules.block import Block
from forerun.rules.kseq import KSeq
from forerun.rules.match import Match
from forerun.rules.rejection import Rejection
from forerun.rules.traversal import Traversal
from forerun.shapes.chain import Chain
from forerun.shapes.profile import likeliest_tree
from forerun.shapes.tree import FixedTree, Tree

# The longest chain of `shape=auto`; how much of it is used is measured round by round (`Pace`).
AUTO_CHAIN = {"lm": 8, "lookup": 12, "none": 1}
_AUTO_LEN = 8  # of any other drafter
_AUTO_TREE = 24  # nodes at most; how many are drafted is decided by what they cost (`Prices`)
_CHAIN_STOP = 0.25  # expected acceptance of a whole chain below which it is not continued

RULES: dict[str, Rule] = {
    "match": Match(),
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
    "kseq": KSeq(),
}

WIDTH = 4  # most children of a node where trees grow best first
_FRONTIER, _LEVELS = 2, 12
_LEAST = 0.02  # a path less likely than this is not worth the node
_MOST_DAMPED = 8  # children of an exit that are looked at for guesses (`drafters/lm.py`)


def live_shape(shape: ShapeName, drafter: str) -> Shape:
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


def damped_of(schedule: ScheduleName, shape: Shape) -> tuple[int, float] | None:
    """How many of a law's likeliest tokens are drawn more rarely under a schedule, and by what
    factor; None where all are drawn as likely as they are.

    As many as are guessed at an exit: the residual shall fall on tokens that are prepared for, and
    on no more. The branches are spread over one exit a level and the one below them: a verdict ends
    on one level, and there mostly below the first sibling.
    """
    if schedule.damping >= 1.0:
        return None
    num_guesses = schedule.num_branches // (usual_depth(shape) + 1)
    return min(max(num_guesses, 1), _MOST_DAMPED), schedule.damping


def growth_of(
    shape: Shape, rule: str, siblings: str = "", damped: tuple[int, float] | None = None
) -> Growth | None:
    """How a small model grows the shape for the rule; None for coupled chains. `damped` concerns
    draws alone (`damped_of`)."""
    if siblings == "likeliest":
        # Path probability: EAGLE-2 and OPT-Tree grow so (arXiv:2406.16858, 2406.17276).
        given = shape.parents if isinstance(shape, FixedTree) else None
        return Growth(Draw.POINT, given, WIDTH, _FRONTIER, _LEAST)
    if rule == "match":
        if isinstance(shape, Tree):
            return Growth(Draw.COUPLED, None, WIDTH, _FRONTIER, _LEAST)
        if isinstance(shape, FixedTree):
            return Growth(Draw.COUPLED, shape.parents)
        if isinstance(shape, Chain) and shape.stop > 0:
            return Growth(Draw.COUPLED, None, least=shape.stop)
        return None
    if isinstance(shape, Chain):
        parents = tuple(range(shape.max_drafted))
        return Growth(Draw.SAMPLED, parents, least=shape.stop, damped=damped)
    draw = Draw.SAMPLED if rule == "kseq" else Draw.WITHOUT_REPLACEMENT
    draw = Draw.TOP_AND_ONE if siblings == "top" else draw
    return Growth(draw, settled(shape), damped=damped)


def settled(shape: Shape) -> tuple[int, ...] | None:
    """Parents of a tree whose form does not wait for what is drawn; None for a chain."""
    if isinstance(shape, FixedTree):
        return shape.parents
    return likeliest_tree(shape.max_drafted).parents if isinstance(shape, Tree) else None


def usual_depth(shape: Shape, accepted: Sequence[float] = ()) -> int:
    """How deep drafts of the shape mostly go: a tree of that many nodes as its likeliest one, and a
    chain that its drafter ends as long as what is kept with the chances `accepted`, each given all
    before it, is still likely enough."""
    tree = settled(shape)
    if tree is not None:
        return FixedTree(tree).num_levels
    if isinstance(shape, Chain) and shape.stop > 0 and len(accepted):
        likely = np.cumprod(accepted[: shape.max_drafted]) >= shape.stop
        return max(1, int(likely.sum()))
    return num_levels(shape)


def num_levels(shape: Shape) -> int:
    """How deep a draft of the shape may go."""
    if isinstance(shape, FixedTree):
        return shape.num_levels
    return min(shape.max_drafted, _LEVELS) if isinstance(shape, Tree) else shape.max_drafted
