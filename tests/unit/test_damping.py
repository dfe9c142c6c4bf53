"""Damped draws from their name to a guess: how many tokens, who refuses, and what is asked about.

That they are exact is proved in `tests/exact/test_damped.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from forerun.composition import read_schedule, read_shape
from forerun.draft import Damping, Draft, Draw
from forerun.drafters.asking import foresee_by_asking
from forerun.engine.shaping import damped_of, growth_of, live_shape
from forerun.errors import IncompatibleSpeculation
from forerun.forecast import subtree
from forerun.noise import RoundNoise
from forerun.options import SamplingParams, Speculation
from forerun.protocols import DraftRow, Outlook, Sampler
from forerun.tools.oracle import Grower
from forerun.tools.toy_laws import toy_pair
from forerun.tree import TokenTree

SEED, VOCAB = 3, 6
LAW = toy_pair("dense", VOCAB, 1)[1]


@pytest.mark.parametrize(
    ("schedule", "shape", "damped"),
    [
        ("ahead:16:0.5", "chain:4", (3, 0.5)),  # five exits
        ("ahead:24:0.25", "chain:7", (3, 0.25)),
        ("ahead:4:0.5", "chain:8", (1, 0.5)),  # one at least
        ("ahead:256:0.5", "chain:4", (8, 0.5)),  # no more than are looked at
        ("ahead:16:0.5", "tree:3x2x1", (4, 0.5)),  # one likely exit a level, and the last
        ("ahead:16:1", "chain:4", None),
        ("ahead:16", "chain:4", None),
        ("sequential", "chain:4", None),
    ],
)
def test_given_a_schedule_and_a_shape_then_as_many_tokens_are_damped_as_are_guessed_at_an_exit(
    schedule, shape, damped
):
    assert damped_of(read_schedule(schedule), live_shape(read_shape(shape), "lm")) == damped


@pytest.mark.parametrize("rule", ["rejection", "block", "traversal", "kseq"])
def test_given_a_sampled_rule_then_its_growth_is_damped(rule):
    shape = live_shape(read_shape("chain:4"), "lm")

    assert growth_of(shape, rule, damped=(3, 0.5)).damped == (3, 0.5)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("lm", "chain:4", "match"), "under match target and drafter share their noise"),
        (("lm", "tree:8:likeliest", "rejection"), "are set, not drawn"),
        (("lookup", "chain:4", "rejection"), "lookup proposes tokens without a law"),
        (("prediction:f.py", "chain:4", "rejection"), "prediction proposes tokens without a law"),
        (("router(lookup,prediction:f.py)", "chain:4", "rejection"), "without a law"),
    ],
)
def test_given_nothing_to_damp_then_it_is_refused_with_a_way_out(names, sentence):
    with pytest.raises(IncompatibleSpeculation, match=sentence) as refused:
        Speculation(*names, "ahead:8:0.5")

    assert "write ahead:8" in str(refused.value)


def test_given_a_router_with_one_drafter_that_can_damp_then_it_is_taken():
    Speculation("router(lookup,lm)", "chain:4", "rejection", "ahead:8:0.5")


# --- drafts and guesses -----------------------------------------------------------------------


class Toy:
    """A drafter whose laws are a table, damped or not."""

    def __init__(self, damped):
        self.grow = Grower(LAW, Draw.SAMPLED, (0, 1), 0.0, damped)

    def propose(self, rows):
        return [self._draft(tuple(row.tokens[1:]), row.max_depth) for row in rows]

    def _draft(self, text, depth):
        draft = self.grow(text, RoundNoise(SEED, 0, 1 + len(text)))
        return draft if depth > 1 else subtree(draft, 0, int(draft.tree.tokens[0]))

    def admit(self, sequence_id, prompt): ...
    def observe(self, sequence_id, commit): ...
    def release(self, sequence_id): ...
    def close(self): ...


def row():
    return DraftRow(1, [0], 1, Sampler(SamplingParams(temperature=1.0), SEED), 2, 8)


def foreseen(damped, num_branches=6):
    drafter = Toy(damped)
    draft = drafter.propose([row()])[0]
    exits = [np.arange(len(draft.tree), dtype=np.int32)]
    outlook = Outlook(
        exits, num_branches, np.int32([2]), np.int32([2]), deepest=np.zeros(1, np.int32)
    )
    return draft, foresee_by_asking(drafter, [row()], [draft], outlook)[0]


def test_given_damped_draws_then_guesses_are_the_likeliest_of_the_law_before_but_what_was_drawn():
    draft, grown = foreseen((3, 0.05))
    num_verified = len(draft.tree)
    law = LAW(())
    drawn = draft.tree.tokens[draft.tree.parents == 0]
    by_belief = [token for token in np.argsort(-law, kind="stable").tolist() if token not in drawn]
    # The control: by the law it was drawn from, other tokens are likelier.
    by_draws = [
        one for one in np.argsort(-draft.law[0], kind="stable").tolist() if one not in drawn
    ]

    guesses = [
        int(grown.tree.tokens[node])
        for node in range(num_verified, len(grown.tree))
        if grown.tree.parents[node] == 0
    ]

    assert guesses
    assert guesses == by_belief[: len(guesses)]
    assert guesses != by_draws[: len(guesses)]


def test_given_a_forecast_then_each_branch_carries_the_very_law_it_was_drawn_from():
    draft, grown = foreseen((3, 0.3))
    drafter = Toy((3, 0.3))

    for node in range(len(draft.tree), len(grown.tree)):
        if grown.tree.parents[node] >= len(draft.tree):
            continue
        text = grown.tree.tokens[grown.tree.path(node)].tolist()
        prepared = subtree(grown, node, text[-1])
        expected = drafter._draft(tuple(text[1:]), 8)
        assert prepared.tree.tokens.tolist() == expected.tree.tokens.tolist()
        assert np.array_equal(prepared.law, expected.law)
        assert np.array_equal(prepared.damping.tokens, expected.damping.tokens)
        assert prepared.damping.factor == 0.3


def test_given_a_part_of_a_draft_then_its_damped_tokens_stay_with_their_laws():
    tree = TokenTree(np.int32([0, 1, 2, 3]), np.int32([-1, 0, 0, 2]))
    laws = np.float32([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    damping = Damping.of([[3], [0]], (1, 0.5))
    draft = Draft(tree, Draw.SAMPLED, np.int32([0, 2]), laws, damping=damping)

    part = subtree(draft, 2, 2)

    assert part.damping.tokens.tolist() == [[0]]
    assert part.believed(0) == pytest.approx([0.8, 0.3, 0.2, 0.1])
    assert draft.believed(0) == pytest.approx([0.1, 0.2, 0.3, 0.8])
