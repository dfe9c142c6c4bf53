"""What a trace alone says of rounds that were not run: a chain over the same text.

    text        x0 x1 x2 x3 x4 …          emitted tokens of one request
    acceptance  1  0  ?  .4 1  …          probability that a drafted token there is kept

A coupled drafter's token at a position depends on the text before it and on nothing else, so a
drafted path tells it for every position it agrees with the text on, and for one more. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from forerun.tools.trace import Round

Acceptance: TypeAlias = tuple[float, float]  # least and most; equal where it is known

UNKNOWN: Acceptance = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and most of what one request, or all of them, would take; expected where chance is
    left in a rule."""

    num_tokens: int
    num_rounds: tuple[float, float]
    num_accepted: tuple[float, float]

    @property
    def tokens_per_round(self) -> tuple[float, float]:
        """Least and most, 0 where nothing was emitted."""
        least, most = self.num_rounds
        return (self.num_tokens / most, self.num_tokens / least) if least else (0.0, 0.0)

    @property
    def is_exact(self) -> bool:
        """Whether both ends are one number."""
        return all(low == high for low, high in (self.num_rounds, self.num_accepted))

    @staticmethod
    def exactly(num_tokens: int, num_rounds: int, num_accepted: int) -> Bounds:
        """Counts that are known."""
        return Bounds(num_tokens, (num_rounds, num_rounds), (num_accepted, num_accepted))

    @staticmethod
    def total(parts: Sequence[Bounds]) -> Bounds:
        """The sum over requests."""
        return Bounds(
            sum(one.num_tokens for one in parts),
            (sum(one.num_rounds[0] for one in parts), sum(one.num_rounds[1] for one in parts)),
            (sum(one.num_accepted[0] for one in parts), sum(one.num_accepted[1] for one in parts)),
        )


def chain_bounds(acceptance: Sequence[Acceptance], longest: int, room: int) -> Bounds:
    """A chain of `longest` over a text with `acceptance [N]`; its request had `room` for tokens.

    More acceptance anywhere never means more rounds: where a round ends never falls with where it
    began. So the ends are those of the least and of the most acceptance.
    """
    num = len(acceptance)
    most, least_accepted = _expected([low for low, _ in acceptance], longest, room)
    least, most_accepted = _expected([high for _, high in acceptance], longest, room)
    if least == most:
        accepted = (least_accepted, most_accepted)
        return Bounds(num, (least, most), (min(accepted), max(accepted)))
    cut = 0 if num == room else 1  # a stop may fall on a draft, and then no bonus follows
    return Bounds(num, (least, most), (num - most, num - least + cut))


def _expected(acceptance: Sequence[float], longest: int, room: int) -> tuple[float, float]:
    """Expected rounds and accepted tokens from the text's first position to its end."""
    num = len(acceptance)
    rounds, accepted = [0.0] * (num + 1), [0.0] * (num + 1)
    for start in range(num - 1, -1, -1):
        chance, depth = 1.0, min(longest, room - start - 1)
        rounds[start] = 1.0
        for at in range(depth + 1):
            if start + at == num:
                accepted[start] += chance * at
                break
            ends = chance * (1.0 - acceptance[start + at] if at < depth else 1.0)
            rounds[start] += ends * rounds[start + at + 1]
            accepted[start] += ends * (at + accepted[start + at + 1])
            chance -= ends
    return rounds[0], accepted[0]


def coupled_acceptance(rounds: Sequence[Round]) -> list[Acceptance]:
    """Whether the drafter's own token is the emitted one, position by position; under `match`."""
    return [_hit(one, depth) for one in rounds for depth in range(one.kept)]


def _hit(one: Round, depth: int) -> Acceptance:
    node, token = one.path[depth], one.emitted[depth]
    children = [child for child, parent in enumerate(one.parents) if parent == node]
    for place, child in enumerate(children):
        rank = one.ranks[child] if one.ranks is not None else place
        if rank == 0:
            return (1.0, 1.0) if one.tokens[child] == token else (0.0, 0.0)
        if one.tokens[child] == token:
            return (0.0, 0.0)  # a lesser sibling is the text: the drafter's best was another token
    return UNKNOWN


def sampled_acceptance(rounds: Sequence[Round]) -> list[Acceptance]:
    """The chance that `rejection` kept a draft where this text was emitted, position by position.

    A token x drawn from q is kept or resampled so that x comes with p(x); of that, min(p, q)(x) is
    kept. So given that x was emitted it was the draft with probability min(1, q(x) / p(x)).
    """
    return [_chance(one, depth) for one in rounds for depth in range(one.kept)]


def _chance(one: Round, depth: int) -> Acceptance:
    node = one.path[depth]
    drafted = next((law for law in one.draft_laws or () if law.node == node), None)
    target = next((law for law in one.target_laws or () if law.node == node), None)
    if drafted is None or target is None or not drafted.kept or not target.kept:
        return UNKNOWN
    q, p = drafted.kept[1], target.kept[1]
    chance = min(1.0, q / p) if p > 0 else 0.0
    return chance, chance
