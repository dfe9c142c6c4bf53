"""Is a sampled rule exact? Every outcome on tiny laws, with its probability; nothing is drawn.

The rule's own code is played through `tools/oracle.py` over several rounds. The model plays no part
here: what was loaded is the code, and this is the proof for it on this installation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.composition import POINT_DRAFTERS, Composition
from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Noise, Reads, Rule
from forerun.rules.block import Block
from forerun.rules.kseq import KSeq
from forerun.rules.rejection import Rejection
from forerun.rules.traversal import Traversal
from forerun.tools.certify.checks import Findings
from forerun.tools.oracle import Grower, Law, Text, prove

TOLERANCE = 1e-12
_VOCAB, _NUM_TOKENS = 3, 3
_CHAIN, _TREE = (0, 1), (0, 0, 1)
_RULES: dict[str, Rule] = {
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
    "kseq": KSeq(),
}


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


def check_exact(wanted: Composition, seed: int, findings: Findings) -> None:
    """Enumerate the composition's rule with its draws and kind of tree, and a spoilt one."""
    rule, draw = _RULES[wanted.rule], _draw(wanted)
    is_tree = wanted.shape.kind == "tree"
    name = f"{wanted.rule} on a {'tree' if is_tree else 'chain'}, draws: {draw.value}"
    if any(one.name == f"exact: {name}" for one in findings.checks):
        return
    target = _law(seed)
    drafting = Grower(_law(seed + 1, target), draw, _TREE if is_tree else _CHAIN)
    proof = prove(rule, drafting, target, num_tokens=_NUM_TOKENS)
    findings.add(
        f"exact: {name}",
        proof.error < TOLERANCE,
        f"{proof.num_branches:,} outcomes of up to {proof.num_rounds} rounds: the law of"
        f" {_NUM_TOKENS} tokens is off by {proof.error:.1g} at most;"
        f" {proof.expected_tokens:.3f} tokens a round",
    )
    spoilt = prove(Believer(rule), drafting, target, num_tokens=_NUM_TOKENS)
    findings.add(
        f"control: exact: {name}: the draft as bonus",
        spoilt.error > TOLERANCE,
        f"off by {spoilt.error:.2g}",
    )


def _draw(wanted: Composition) -> Draw:
    if all(leaf.name in POINT_DRAFTERS for leaf in wanted.drafter.leaves()):
        return Draw.POINT
    if wanted.shape.is_top:
        return Draw.TOP_AND_ONE
    is_kept = wanted.rule == "kseq" or wanted.shape.kind != "tree"
    return Draw.SAMPLED if is_kept else Draw.WITHOUT_REPLACEMENT


def _law(seed: int, near: Law | None = None) -> Law:
    """A random law behind every text, one token of it impossible now and then; half of it that of
    `near`, if given."""

    def law(text: Text) -> NDArray[np.float32]:
        rng = np.random.default_rng([seed, len(text), *text])
        row = rng.dirichlet(np.ones(_VOCAB))
        if rng.random() < 0.25:
            row[int(rng.integers(_VOCAB))] = 0.0
        if near is not None:
            row = row / row.sum() + near(text)
        normalised: NDArray[np.float32] = (row / row.sum()).astype(np.float32)
        return normalised

    return law
