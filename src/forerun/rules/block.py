"""Block: a chain is judged as a whole, from its end (Sun et al. 2024, arXiv:2403.10444).

A node is reached with the chance `P_i = min(1, P_{i-1} p/q)`. From the last node upwards the first
that is accepted ends the path: the last one with `P`, an earlier one with `s / (s + 1 - P)`, where
s is the mass of the residual `(P p - q)_+` that the bonus is then drawn from.

Noise: whether the path ends at node n is ACCEPT (n, 0), never asked of node 0; BONUS (n, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Noise, Reads
from forerun.rules.laws import Branches, Row, emit, read_draft, residual, target_law

_DRAWS = (Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT)


@dataclass(frozen=True, slots=True)
class _Step:
    """A node of the chain: the chance it is reached with, the target's law there (None where it is
    broken), and the law its child was drawn from (None at the end)."""

    node: int
    chance: float
    p: Row | None
    q: Row | None


@dataclass(frozen=True, slots=True)
class Block:
    """Exact for sampled chains, and never keeps fewer tokens than rejection on average."""

    @property
    def reads(self) -> Reads:
        """The target's law at every node."""
        return Reads.LAWS

    def judge(self, draft: Draft, target: Any, noise: Noise) -> Verdict:
        """From the chain's end up: the first node accepted is the last of the path.

        `target`: laws `[N V]`. The bonus is -1 where the path ends at a node without a law.

        Raises:
            DrafterError: a draft that forks, or whose law is not known.
        """
        steps = _steps(read_draft(draft, "block", _DRAWS, 1), target)
        last = len(steps) - 1
        while True:
            step = steps[last]
            mass, of, law = _ending(step)
            if last == 0 or noise.accepts(step.node, 0, mass, of):
                break
            last -= 1
        path = tuple(one.node for one in steps[: last + 1])
        return Verdict(path, -1 if law is None else emit(noise, step.node, law))


def _steps(branches: Branches, target: Any) -> list[_Step]:
    """The chain with the chance of each node; it ends at a node with a broken law."""
    steps: list[_Step] = []
    node, chance = 0, 1.0
    while True:
        p = target_law(target, node)
        child = branches.children[node][0] if branches.children[node] else None
        q = None if p is None or child is None else branches.law(node, p)
        steps.append(_Step(node, chance, p, q))
        if p is None or q is None or child is None:
            return steps
        token = branches.drawn[node][0]
        chance = reach(chance, float(p[token]), float(q[token]))
        node = child


def _ending(step: _Step) -> tuple[float, float, Row | None]:
    """The chance to end at a step, as a fraction, and what the bonus is drawn from."""
    if step.p is None or step.q is None:
        return step.chance, 1.0, step.p
    law, mass = residual(step.p, step.q, step.chance)
    return mass, mass + 1.0 - step.chance, law


def reach(chance: float, p: float, q: float) -> float:
    """The chance of a child: `min(1, chance * p / q)`, zero where p is."""
    wanted = chance * p
    if wanted <= 0.0:
        return 0.0
    return 1.0 if wanted >= q else wanted / q
