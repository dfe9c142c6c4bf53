"""A small model of another vocabulary that drafts the tokens it shares with the target.

Its context is the target's text told in its own tokens, so nothing the target says is lost to it;
what it drafts is drawn from its law on shared tokens (`intersect_tokens.py`), level by level. For
the sampled rules that law goes with the draft. Under `match` (`Draw.COUPLED`) the children are the
best of `log q' + g` with the target's own noise, which a shared token has in both vocabularies.

A level is one forward pass. K/V of nodes is kept as long as they are a path; below a fork all
nodes are computed again with each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Damping, Draft, Draw
from forerun.drafters.intersect_tokens import Intersection
from forerun.drafters.plain import plain_draft
from forerun.drafters.translate_reading import Reading, Readings
from forerun.noise import Purpose, RoundNoise, gumbel, words
from forerun.protocols import DraftRow, ForwardBatch, Growth, Sampler, Selection
from forerun.shapes.draw import damp, draw_children
from forerun.tree import Tokens, TokenTree

_EMPTY = np.zeros(0, np.int32)


@dataclass(slots=True, eq=False)
class _Growing:
    """One row's tree as it grows.

    `open_tokens`, `open_parents`: the drafter's tokens without K/V, as a row of a forward pass, and
    `num_committed` before them. `frontier`: the nodes to expand, each as its number in the tree,
    its number in the template and its place among the open ones. `template`: each node's children.
    """

    row: DraftRow
    reading: Reading
    sampler: Sampler
    template: list[list[int]]
    open_tokens: list[int]
    open_parents: list[int]
    num_committed: int
    frontier: list[tuple[int, int, int]]
    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    expanded: list[int] = field(default_factory=list)
    laws: list[NDArray[np.float32]] = field(default_factory=list)
    draws: list[list[int]] = field(default_factory=list)
    damped: list[list[int]] = field(default_factory=list)

    @property
    def is_path(self) -> bool:
        """Whether what is open has no forks."""
        return self.open_parents == list(range(-1, len(self.open_parents) - 1))


class Intersected:
    """Drafts `shared` tokens in the shape of `growth`: its given tree, or a chain of `num_drafted`;
    a node whose law is too spread for `growth.least` gets no children. `share` says how many
    tokens there are, `mass` how much of the drafter's laws lay on them so far."""

    def __init__(
        self, readings: Readings, shared: Intersection, growth: Growth, num_drafted: int
    ) -> None:
        self._readings = readings
        self._shared = shared
        self._own_of = shared.own_of()
        self._growth = growth
        self._parents = growth.parents or tuple(range(num_drafted))
        self._samplers: dict[int, Sampler] = {}
        self._num_expanded, self._mass = 0, 0.0

    @property
    def share(self) -> float:
        """Shared tokens as a part of the smaller vocabulary."""
        return self._shared.share

    @property
    def mass(self) -> float:
        """The part of the drafter's laws that lay on shared tokens, mean over all so far; NaN
        before the first."""
        return self._mass / self._num_expanded if self._num_expanded else float("nan")

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Tell the prompt in the drafter's tokens and read it.

        Raises:
            CapacityError: it does not fit the drafter's context or K/V memory.
        """
        self._readings.admit(sequence_id, prompt, len(self._parents))

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One tree a row, all rows of a level in one forward pass."""
        growing = [one for one in map(self._begin, rows) if one is not None]
        active = growing
        while active:
            with self._readings.span:
                batch, laws = self._forward(active)
            paths, start = [], 0
            for one in active:
                end = start + len(one.frontier)
                paths.append(self._expand(one, laws[start:end]))
                start = end
            with self._readings.span:
                self._readings.backend.commit(batch, paths)
            active = [one for one in active if one.frontier]
        drafts = {one.row.sequence_id: self._draft(one) for one in growing}
        return [drafts.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """The next proposal reads the text itself."""

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """The next proposal reads the text itself."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Go back to a text that may go on otherwise."""
        self._readings.rewind(sequence_id, tokens)

    def release(self, sequence_id: int) -> None:
        """Give back the sequence's blocks."""
        self._readings.release(sequence_id)
        self._samplers.pop(sequence_id, None)

    def close(self) -> None:
        """Close the small model."""
        self._readings.close()

    def _begin(self, row: DraftRow) -> _Growing | None:
        template = _template(self._parents, row.max_drafted, row.max_depth)
        if not template[0]:
            return None
        reading = self._readings.ready(row.sequence_id, row.tokens, len(self._parents))
        if reading is None or (reading.text.held and not reading.half):
            return None  # no law for what comes after half a character that cannot be read
        sampler = self._samplers.get(row.sequence_id)
        if sampler is None:
            is_ranked = not self._growth.draw.is_sampled
            params = self._shared.params(row.sampler.params, is_ranked=is_ranked)
            sampler = self._samplers[row.sequence_id] = Sampler(params, row.sampler.seed)
        unread = reading.catch_up
        return _Growing(
            row, reading, sampler, template, unread, list(range(-1, len(unread) - 1)),
            reading.num_kept, [(0, 0, len(unread) - 1)], [row.tokens[-1]],
        )  # fmt: skip

    def _forward(self, active: list[_Growing]) -> tuple[ForwardBatch, NDArray[np.float32]]:
        """One pass over everything open: `[F V_own]` the laws at all frontiers."""
        starts = np.cumsum([0, *[len(one.open_tokens) for one in active]]).tolist()
        wanted = [
            start + place
            for one, start in zip(active, starts, strict=False)
            for _node, _at, place in one.frontier
        ]
        batch = ForwardBatch(
            token_ids=np.array([t for one in active for t in one.open_tokens], np.int32),
            parents=np.array([p for one in active for p in one.open_parents], np.int32),
            row_starts=np.array(starts, np.int32),
            committed=np.array([one.num_committed for one in active], np.int32),
            block_table=self._readings.table([one.row.sequence_id for one in active]),
            logit_nodes=np.array(wanted, np.int32),
        )
        rows = [index for index, one in enumerate(active) for _ in one.frontier]
        selection = Selection(
            np.zeros(len(rows), np.int64),  # positions key noise, and a law has none
            np.array(rows, np.int32),
            [one.sampler for one in active],
            np.zeros(len(rows) + 1, np.int32),
            _EMPTY,
        )
        backend = self._readings.backend
        return batch, backend.law(backend.forward(batch).logits, selection)

    def _expand(self, one: _Growing, own_laws: NDArray[np.float32]) -> list[int]:
        """Draw the frontier's children, open those that have children themselves, and say which
        open nodes are to be kept."""
        laws, mass = self._shared.restrict(own_laws)
        grown: list[tuple[int, int, int]] = []  # as in the frontier, but with the parent's place
        for (node, at, place), law, had in zip(one.frontier, laws, mass.tolist(), strict=True):
            self._num_expanded, self._mass = self._num_expanded + 1, self._mass + had
            if self._is_spread(law):
                continue
            num_draws = len(one.template[at])
            drawn_from, damped = damp(law, self._growth.damped, self._growth.draw, num_draws)
            drawn = self._drawn(one, node, num_draws, drawn_from)
            if not drawn:
                continue
            one.expanded.append(node)
            one.laws.append(drawn_from)
            one.draws.append(drawn)
            one.damped.append(damped)
            for child_at, token in zip(one.template[at], dict.fromkeys(drawn), strict=False):
                one.tokens.append(token)
                one.parents.append(node)
                one.depths.append(one.depths[node] + 1)
                if one.template[child_at]:
                    grown.append((len(one.tokens) - 1, child_at, place))
        return self._open(one, grown)

    def _open(self, one: _Growing, grown: list[tuple[int, int, int]]) -> list[int]:
        """Put nodes that will be expanded into the next pass; keep the K/V of a path above them."""
        num_kept = 0
        if one.is_path:
            # Siblings need their parent in their pass: a row has one root.
            num_kept = len(one.open_tokens) - (len(grown) > 1)
            if one.frontier[0][0] > 0:
                one.reading.drafted += one.open_tokens[:num_kept]
            else:
                one.reading.keep(num_kept)
            one.num_committed += num_kept
            one.open_tokens = one.open_tokens[num_kept:]
            one.open_parents = list(range(-1, len(one.open_tokens) - 1))
        one.frontier = []
        for node, at, place in grown:
            one.frontier.append((node, at, len(one.open_tokens)))
            one.open_tokens.append(self._own_of[one.tokens[node]])
            one.open_parents.append(place - num_kept)
        return list(range(num_kept))

    def _drawn(
        self, one: _Growing, node: int, num_draws: int, law: NDArray[np.float32]
    ) -> list[int]:
        params, seed, known = one.row.sampler.params, one.row.sampler.seed, len(one.row.tokens)
        if self._growth.draw is not Draw.COUPLED:
            noise = RoundNoise(seed, params.choice, known)
            return draw_children(law, num_draws, self._growth.draw, node, noise)
        with np.errstate(divide="ignore"):
            scores = np.log(law.astype(np.float64))
        if params.temperature > 0:
            position = known + one.depths[node]
            scores += gumbel(words(seed, params.choice, Purpose.VERDICT, position, len(law)))
        best: list[int] = []
        while len(best) < num_draws and scores.max() > -np.inf:
            best.append(int(np.argmax(scores)))
            scores[best[-1]] = -np.inf
        return best

    def _is_spread(self, law: NDArray[np.float32]) -> bool:
        """Whether the entropy bound on acceptance is below `growth.least`."""
        if self._growth.least <= 0.0:
            return False
        some = law[law > 0].astype(np.float64)
        entropy = float(-(some * np.log(some)).sum())
        return bool(1.0 - np.sqrt(0.2 * entropy) < self._growth.least)

    def _draft(self, one: _Growing) -> Draft:
        tree = TokenTree(np.array(one.tokens, np.int32), np.array(one.parents, np.int32))
        draw = self._growth.draw
        if not draw.is_sampled or not one.expanded:
            return Draft(tree, draw)
        return Draft(
            tree,
            draw,
            np.array(one.expanded, np.int32),
            np.stack(one.laws),
            _padded(one.draws) if draw is Draw.SAMPLED else None,
            damping=Damping.of(one.damped, self._growth.damped),
        )


def _template(parents: Sequence[int], max_drafted: int, max_depth: int) -> list[list[int]]:
    """Children of each node of a given tree, as far as it fits."""
    depths, children = [0], [list[int]()]
    num_taken = 0
    for node, parent in enumerate(parents, start=1):
        depths.append(depths[parent] + 1)
        children.append([])
        if num_taken < max_drafted and depths[node] <= max_depth:
            children[parent].append(node)
            num_taken += 1
    return children


def _padded(draws: list[list[int]]) -> Tokens:
    """`[M K]`, -1 behind."""
    table = np.full((len(draws), max(map(len, draws))), -1, np.int32)
    for line, drawn in zip(table, draws, strict=True):
        line[: len(drawn)] = drawn
    return table
