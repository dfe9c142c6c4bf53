"""Is a sampled rule exact? Every outcome on tiny laws, with its probability; nothing is drawn.

The rule's own code is played through `tools/oracle.py` over several rounds. The model plays no part
here: what was loaded is the code, and this is the proof for it on this installation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from forerun.composition import POINT_DRAFTERS, Composition
from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Noise, Reads, Rule
from forerun.tools.certify.checks import Budget, Findings, Turns
from forerun.tools.oracle import Grower, Proof, prove
from forerun.tools.toy_laws import RULES, toy_pair

TOLERANCE = 1e-12
_VOCAB, _NUM_TOKENS = 3, 3
_CHAIN, _TREE = (0, 1), (0, 0, 1)
_KINDS = ("dense", "sparse")


@dataclass(frozen=True, slots=True)
class Believer:
    """A rule that is wrong: where it refuses the draft it emits the drafted token all the same."""

    rule: Rule

    @property
    def reads(self) -> Reads:
        """As the rule it spoils."""
        return self.rule.reads

    def judge(self, draft: Draft, target: NDArray[np.float32], noise: Noise) -> Verdict:
        """The rule's path, and the first token drafted below its end as the bonus."""
        verdict = self.rule.judge(draft, target, noise)
        below = draft.tree.tokens[draft.tree.parents == verdict.path[-1]].tolist()
        return Verdict(verdict.path, below[0] if below else verdict.bonus)


def check_rules(
    wanted: Iterable[Composition], seed: int, budget: Budget, findings: Findings
) -> None:
    """Enumerate each rule with each way it draws once, as far as the time for it is there."""
    turns = Turns(budget, findings)
    for name, one in {_name(one): one for one in wanted}.items():
        turns.take(f"exact: {name}", partial(check_exact, one, seed, findings))


def check_exact(wanted: Composition, seed: int, findings: Findings) -> None:
    """Enumerate the composition's rule with its draws and kind of tree, and a spoilt one."""
    rule, draw, name = RULES[wanted.rule], _draw(wanted), _name(wanted)
    parents = _TREE if wanted.shape.kind == "tree" else _CHAIN
    proofs = [_proof(rule, draw, parents, kind, seed) for kind in _KINDS]
    error = max(one.error for one in proofs)
    findings.add(
        f"exact: {name}",
        error < TOLERANCE,
        f"{sum(one.num_branches for one in proofs):,} outcomes of up to"
        f" {max(one.num_rounds for one in proofs)} rounds: the law of {_NUM_TOKENS} tokens is off"
        f" by {error:.1g} at most",
    )
    spoilt = _proof(Believer(rule), draw, parents, _KINDS[0], seed).error
    findings.add(
        f"control: exact: {name}: the draft as bonus",
        spoilt > TOLERANCE,
        f"off by {spoilt:.2g}",
    )


def _name(wanted: Composition) -> str:
    kind = "tree" if wanted.shape.kind == "tree" else "chain"
    return f"{wanted.rule} on a {kind}, draws: {_draw(wanted).value}"


def _proof(rule: Rule, draw: Draw, parents: tuple[int, ...], kind: str, seed: int) -> Proof:
    target, draft = toy_pair(kind, _VOCAB, seed)
    return prove(rule, Grower(draft, draw, parents), target, num_tokens=_NUM_TOKENS)


def _draw(wanted: Composition) -> Draw:
    """How the drafter of a composition draws (`engine/drafting.py`)."""
    if wanted.shape.siblings == "likeliest":
        return Draw.POINT
    if all(leaf.name in POINT_DRAFTERS for leaf in wanted.drafter.leaves()):
        return Draw.POINT
    if wanted.shape.siblings == "top":
        return Draw.TOP_AND_ONE
    is_kept = wanted.rule == "kseq" or wanted.shape.kind != "tree"
    return Draw.SAMPLED if is_kept else Draw.WITHOUT_REPLACEMENT
