"""Foreseeing by asking: any drafter's next draft, proposed for what the text may become.

Knows no model. A drafter that cannot grow a draft further in one call is asked once for each
outcome, as if that had come; what it read for it is taken back (`ahead.py`). One that can draft
below several outcomes at once is given a few of them at a time. Where a draft carries
its laws, guessed bonuses are their likeliest tokens but those drafted; else one is what the drafter
itself proposes below a leaf. Of damped laws the likeliest are those of the law before: what was
damped comes first, which is what a refused draw's residual falls on.

An ordinary proposal counts its draws by tokens known and node, so what is drawn here for an outcome
is what would be drawn once it has come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Damping, Draft, Draw
from forerun.drafters.ahead import rewind, sampler_after
from forerun.protocols import Drafter, DraftRow, Foresees, Outlook
from forerun.tree import TokenTree

_REACH = 0.6  # a node is kept so often where nobody has figures
_AT_ONCE = 8  # outcomes that are drafted for in little more than the time of one


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A guess: which exit, which bonus, and how likely."""

    exit_node: int
    bonus: int
    score: float


# Drafts below outcomes (exit, bonus) of a row's draft, of so many nodes and levels each; None where
# there is no room for all of them.
Together: TypeAlias = Callable[
    [DraftRow, Draft, Sequence[tuple[int, int]], int, int], "list[Draft] | None"
]


@dataclass(slots=True, eq=False)
class _Grown:
    """A draft's nodes, then those of the drafts prepared below it."""

    draft: Draft
    tokens: list[int]
    parents: list[int]
    scores: list[float]
    expanded: list[int] = field(default_factory=list)
    laws: list[NDArray[np.float32]] = field(default_factory=list)
    draws: list[NDArray[np.int32]] = field(default_factory=list)
    damped: list[Damping] = field(default_factory=list)
    draw: Draw | None = None  # how the drafts below were drawn: a draft may be anybody's

    def add(self, outcome: _Outcome, next_draft: Draft) -> None:
        """A guess, and the draft that was prepared for it, unless it is of another kind."""
        tree, first = next_draft.tree, len(self.tokens)
        if len(tree) > 1:
            if self.draw not in (None, next_draft.draw):
                return
            self.draw = next_draft.draw
        self.tokens += tree.tokens.tolist()
        self.parents += [outcome.exit_node, *[first + at for at in tree.parents[1:].tolist()]]
        self.scores += [outcome.score * _REACH**depth for depth in tree.depths().tolist()]
        if next_draft.expanded is None or next_draft.law is None:
            return
        self.expanded += [first + node for node in next_draft.expanded.tolist()]
        self.laws += list(next_draft.law)
        if next_draft.draws is not None:
            self.draws += list(next_draft.draws)
        if next_draft.damping is not None:
            self.damped.append(next_draft.damping)

    def finished(self) -> Draft:
        """One tree; figures of nodes that have a law are those of the prepared drafts."""
        return replace(
            self.draft,
            draw=self.draw or self.draft.draw,
            tree=TokenTree(np.array(self.tokens, np.int32), np.array(self.parents, np.int32)),
            expanded=np.array(self.expanded, np.int32) if self.laws else None,
            law=np.stack(self.laws) if self.laws else None,
            draws=_padded(self.draws) if self.draws else None,
            damping=_joined(self.damped) if self.damped else None,
            margins=None,
            ranks=None,
            scores=np.array([np.nan, *self.scores[1:]], np.float32),
        )


def foreseen(
    drafter: Drafter, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
) -> list[Draft]:
    """Each draft grown further: by the drafter itself where it can, else by asking it."""
    if isinstance(drafter, Foresees):
        return drafter.foresee(rows, drafts, outlook)
    return foresee_by_asking(drafter, rows, drafts, outlook)


def foresee_by_asking(
    drafter: Drafter,
    rows: Sequence[DraftRow],
    drafts: Sequence[Draft],
    outlook: Outlook,
    together: Together | None = None,
) -> list[Draft]:
    """As `Foresees.foresee`, one proposal an outcome, or a few by `together`; rows one after
    another. Once `deepest` is set no further outcome is asked for: those that were are whole."""
    grown = []
    for at, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        try:
            grown.append(_foresee(drafter, row, draft, outlook, at, together))
        finally:
            rewind(drafter, row.sequence_id, row.tokens)
    return grown


def _foresee(
    drafter: Drafter,
    row: DraftRow,
    draft: Draft,
    outlook: Outlook,
    at: int,
    together: Together | None,
) -> Draft:
    depths = draft.tree.depths().tolist()
    whole = _Grown(draft, draft.tree.tokens.tolist(), draft.tree.parents.tolist(), _reach(draft))
    exits = outlook.exits[at].tolist()

    def asked(exit_node: int, bonus: int | None) -> Draft:  # went to an exit, then to a bonus
        text = [*row.tokens, *draft.tree.tokens[draft.tree.path(exit_node)[1:]].tolist()]
        text += [] if bonus is None else [bonus]
        rewind(drafter, row.sequence_id, row.tokens)  # what it read for another outcome
        more = 1 if bonus is None else 0  # the bonus is part of what is proposed
        most, depth = int(outlook.most[at]) + more, int(outlook.depths[at]) + more
        return _proposal(drafter, row, text, most, depth)

    inner = set(draft.tree.parents.tolist())
    leaves = sorted((node for node in exits if node not in inner), key=lambda node: -depths[node])
    laws = _laws_of(draft)
    below = {leaf: asked(leaf, None) for leaf in leaves[:1]}
    # A law that is too even is followed by nothing, and not handed over.
    drawn = {leaf: found for leaf, found in below.items() if found.law is not None}
    laws |= {leaf: found.believed(0) for leaf, found in drawn.items() if len(found.tree) > 1}
    if not laws:
        wanted = takewhile(lambda _: not outlook.deepest[0], leaves[: outlook.num_branches])
        for leaf in wanted:
            _add_below(whole, leaf, below.get(leaf) or asked(leaf, None))
        return whole.finished()

    def at_once(some: list[_Outcome]) -> list[Draft] | None:
        if together is None:
            return None
        rewind(drafter, row.sequence_id, row.tokens)
        pairs = [(one.exit_node, one.bonus) for one in some]
        return together(row, draft, pairs, int(outlook.most[at]), int(outlook.depths[at]))

    possible = {node: law for node, law in laws.items() if node in exits}
    _add_outcomes(whole, _likeliest(draft, possible, outlook), outlook, at_once, asked)
    return whole.finished()


def _laws_of(draft: Draft) -> dict[int, NDArray[np.float32]]:
    """What the drafter believed below each node that has a law."""
    if draft.law is None or draft.expanded is None:
        return {}
    return {node: draft.believed(place) for place, node in enumerate(draft.expanded.tolist())}


def _add_outcomes(
    whole: _Grown,
    outcomes: list[_Outcome],
    outlook: Outlook,
    at_once: Callable[[list[_Outcome]], list[Draft] | None],
    asked: Callable[[int, int | None], Draft],
) -> None:
    """A few outcomes after another, together or one by one, until the verdict is known."""
    while outcomes and not outlook.deepest[0]:
        some, outcomes = outcomes[:_AT_ONCE], outcomes[_AT_ONCE:]
        made = at_once(some)
        if made is None:
            wanted = takewhile(lambda _: not outlook.deepest[0], some)
            made = [asked(one.exit_node, one.bonus) for one in wanted]
        for outcome, one in zip(some, made, strict=False):
            whole.add(outcome, one)


def _proposal(drafter: Drafter, row: DraftRow, text: list[int], most: int, depth: int) -> Draft:
    beyond = text[len(row.tokens) :]
    room = max(0, row.max_depth - len(beyond))
    one = replace(
        row,
        tokens=text,
        sampler=sampler_after(row.sampler, beyond),
        max_drafted=most if room else 0,
        max_depth=min(depth, room),
    )
    return drafter.propose([one])[0]


def _add_below(whole: _Grown, leaf: int, proposed: Draft) -> None:
    """A leaf's proposal: its children are guessed bonuses already, with what follows them."""
    tree = proposed.tree
    if len(tree) < 2 or proposed.law is not None:
        return
    whole.draw = proposed.draw
    first = len(whole.tokens) - 1
    whole.tokens += tree.tokens[1:].tolist()
    whole.parents += [leaf if at == 0 else first + at for at in tree.parents[1:].tolist()]
    whole.scores += [whole.scores[leaf] * _REACH**at for at in tree.depths()[1:].tolist()]


def _likeliest(
    draft: Draft, laws: Mapping[int, NDArray[np.float32]], outlook: Outlook
) -> list[_Outcome]:
    """By the drafter's own laws, undamped: tokens it did not draw, where a verdict may reject what
    it drew, and any token where it has drawn none."""
    outcomes, num_branches, depths = [], outlook.num_branches, draft.tree.depths().tolist()
    per_exit = outlook.per_exit or num_branches
    for node, law in laws.items():
        drawn = draft.tree.tokens[draft.tree.parents == node]
        rest = law.astype(np.float64)
        rest[drawn] = 0.0
        reached, further = (_kept(outlook, depths[node] + more) for more in (0, 1))
        ends_here = max(reached - further, 0.0) if len(drawn) else reached
        best = np.argsort(-rest, kind="stable")[:per_exit].tolist()
        outcomes += [
            _Outcome(node, bonus, ends_here * float(rest[bonus] / rest.sum()))
            for bonus in best
            if rest[bonus] > 0
        ]
    return sorted(outcomes, key=lambda one: -one.score)[:num_branches]


def _kept(outlook: Outlook, depth: int) -> float:
    """How often a node so deep is kept: as seen so far, and beyond that as where nobody saw any."""
    known = len(outlook.reach) - 1
    return outlook.reach[min(depth, known)] * _REACH ** max(0, depth - known)


def _reach(draft: Draft) -> list[float]:
    if draft.scores is None:
        return [_REACH**depth for depth in draft.tree.depths().tolist()]
    return [1.0, *np.nan_to_num(draft.scores[1:].astype(np.float64), nan=0.5).tolist()]


def _joined(damped: list[Damping]) -> Damping:
    """Those of one drafter's laws, one draft after another."""
    return Damping(np.concatenate([one.tokens for one in damped]), damped[0].factor)


def _padded(draws: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    width = max(len(one) for one in draws)
    return np.stack([np.pad(one, (0, width - len(one)), constant_values=-1) for one in draws])
