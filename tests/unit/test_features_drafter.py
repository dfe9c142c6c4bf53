"""The drafter that reads features: it knows the text as the target read it, or drafts nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.features import LONGEST_WAIT, Featured, deepest
from forerun.errors import BackendError, CapacityError
from forerun.models.drafter_spec import BlockSpec, EagleSpec
from forerun.models.spec import ModelSpec, Rope
from forerun.options import SamplingParams
from forerun.protocols import BLOCK_LEN, DraftRow, Growth, ReadsFeatures, Sampler
from forerun.stats import Span
from forerun.tree import TokenTree

VOCAB, LEVELS = 97, 4
GROWTH = Growth(Draw.COUPLED, tuple(range(LEVELS)))
BODY = ModelSpec(
    family="qwen3", hidden=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, ffn=8,
    vocab=VOCAB, norm_eps=1e-6, rope=Rope(), max_position=256, tied=True, qkv_bias=False,
    qk_norm=True, eos_ids=(), bos_id=None, dtype="bfloat16",
)  # fmt: skip
BLOCK = BlockSpec(BODY, 8, True, (0,), 2, 2, 3, (0,), (False,))
EAGLE = EagleSpec(BODY, (0,), 2, 2, VOCAB, has_token_map=False)


class Script:
    """A backend that drafts a hash of the text, as the features it kept tell it.

    The features of a token are its id and its position, and each is kept at its physical place: a
    wrong committed length, table, order or chunk gives another draft, or fails.
    """

    def __init__(self, spec=BLOCK, num_blocks=16, exactness="bits"):
        self.spec, self.num_blocks, self.exactness = spec, num_blocks, exactness
        self.memory = np.full(num_blocks * BLOCK_LEN, -1)
        self.absorbed, self.grown = [], []
        self.is_closed = False

    def absorb(self, catch_up, catch_up_starts, committed, block_table, features):
        assert features.dtype == np.float32
        assert len(features) == len(catch_up) - len(committed)
        self.absorbed.append(len(features))
        at = 0
        for row, (start, end) in enumerate(itertools.pairwise(catch_up_starts.tolist())):
            for offset in range(end - start - 1):
                token, position = features[at].tolist()
                assert (token, position) == (catch_up[start + offset], committed[row] + offset)
                self.memory[place(block_table[row], int(position))] = token
                at += 1

    def grow(self, plan, features):
        self.absorb(plan.catch_up, plan.catch_up_starts, plan.committed, plan.block_table, features)
        self.grown.append(plan)
        drafts = []
        for row, (start, end) in enumerate(itertools.pairwise(plan.catch_up_starts.tolist())):
            length = int(plan.committed[row]) + end - start - 1
            place(plan.block_table[row], length + int(plan.depths[row]))
            known = [int(self.memory[place(plan.block_table[row], at)]) for at in range(length)]
            num = min(int(plan.depths[row]), int(plan.budgets[row]))
            line = expected([*known, int(plan.catch_up[end - 1])], num)
            drafts.append(Draft(TokenTree.made_chain(line), Draw.COUPLED, num_passes=1))
        return drafts

    def close(self):
        self.is_closed = True


def place(table, position):
    return int(table[position // BLOCK_LEN]) * BLOCK_LEN + position % BLOCK_LEN


def expected(tokens, num=LEVELS):
    """The pending token, and so many that follow."""
    line = list(tokens)
    for _ in range(num):
        value = 17
        for token in line:
            value = (value * 31 + int(token) + 1) % 1009
        line.append(value % VOCAB)
    return line[len(tokens) - 1 :]


def features_of(tokens, start, end):
    return np.array([[tokens[at], at] for at in range(start, end)], np.float32)


def featured(script=None, levels=LEVELS, **limits):
    return Featured(script or Script(), levels, Span(), GROWTH, **limits)


def row(tokens, sequence_id=1, most=LEVELS, **limits):
    return DraftRow(sequence_id, tokens, 3, Sampler(SamplingParams(), 1), most, **limits)


def observed(drafter, tokens, added, sequence_id=1, shift=0):
    """A round that added so many tokens to a text whose pending token was the last."""
    before = len(tokens)
    tokens += added
    features = features_of(tokens, before - 1 + shift, len(tokens) - 1 + shift)
    drafter.observe(sequence_id, Commit(tuple(added), features))


def begun(drafter, tokens, sequence_id=1):
    """A sequence whose whole prompt was read by its first round, which added one token."""
    drafter.admit(sequence_id, tokens)
    assert drafter.propose([row(tokens, sequence_id)])[0].num_drafted == 0
    drafter.observe(sequence_id, Commit((50,), features_of(tokens, 0, len(tokens))))
    tokens.append(50)


@pytest.mark.parametrize("spec", [BLOCK, EAGLE], ids=["block", "eagle"])
@pytest.mark.parametrize("num_added", [1, 2, 5])
@pytest.mark.parametrize("prompt_len", [1, 3, 31, 32, 33, 100])
def test_given_rounds_then_it_drafts_from_the_whole_text(spec, num_added, prompt_len):
    drafter, tokens = featured(Script(spec)), list(range(prompt_len))
    begun(drafter, tokens)

    for at in range(8):
        draft = drafter.propose([row(tokens)])[0]
        assert draft.tree.tokens.tolist() == expected(tokens)
        observed(drafter, tokens, [60 + at] * num_added)

    drafter.release(1)
    drafter.close()
    assert drafter._backend.is_closed


def test_given_it_then_the_engine_sees_that_it_reads_features():
    drafter = featured()

    assert isinstance(drafter, ReadsFeatures)
    assert drafter.tap_layers == BLOCK.tap_layers


@pytest.mark.parametrize("chunks", [(0, 33), (0, 32), (0, 20, 40, 90), (0, 128, 240)])
def test_given_a_prompt_in_chunks_then_what_is_long_is_taken_in_at_once_but_for_its_last(chunks):
    script = Script()
    drafter, tokens = featured(script), [at % VOCAB for at in range(chunks[-1] + 6)]
    drafter.admit(1, tokens)
    for start, end in itertools.pairwise(chunks):
        drafter.absorb(1, features_of(tokens, start, end))
    drafter.observe(1, Commit((9,), features_of(tokens, chunks[-1], len(tokens))))
    tokens.append(9)

    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)
    assert sum(script.absorbed) == len(tokens) - 1
    assert script.absorbed[-1] <= LONGEST_WAIT


@pytest.mark.parametrize("most", [1, 20, 500])
@pytest.mark.parametrize("chunks", [(0, 30), (0, 33), (0, 128, 240)])
def test_given_a_prompt_read_beside_the_target_then_a_proposal_takes_in_the_rest(chunks, most):
    # given features that come in chunks, and somebody who has them read a little at a time
    script = Script()
    drafter, tokens = featured(script), [at % VOCAB for at in range(chunks[-1] + 6)]
    drafter.admit(1, tokens)
    for start, end in itertools.pairwise(chunks):
        drafter.absorb(1, features_of(tokens, start, end))
        while drafter.num_unread(1, len(tokens)):
            assert 0 < drafter.read(1, tokens, most) <= most
    num_read = sum(script.absorbed)

    # then nothing is left to read but what a proposal takes in itself, and no draft is another
    assert drafter.read(1, tokens, most) == 0
    assert num_read >= chunks[-1] - LONGEST_WAIT
    drafter.observe(1, Commit((9,), features_of(tokens, chunks[-1], len(tokens))))
    tokens.append(9)
    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)
    assert sum(script.absorbed) == len(tokens) - 1


def test_given_a_pause_an_unknown_sequence_or_a_backend_of_other_bits_then_nothing_is_to_read():
    class Paused:
        is_paused = True

    tokens = list(range(90))
    resting, loose, drafter = (
        featured(prices=Paused()),
        featured(Script(exactness="law")),
        featured(),
    )
    for one in (resting, loose, drafter):
        one.admit(1, tokens)
        one.absorb(1, features_of(tokens, 0, 80))

    assert drafter.num_unread(1, len(tokens)) == 79
    assert resting.num_unread(1, len(tokens)) == resting.read(1, tokens, 50) == 0
    assert loose.num_unread(1, len(tokens)) == loose.read(1, tokens, 50) == 0
    assert drafter.num_unread(2, len(tokens)) == drafter.read(2, tokens, 50) == 0


def read_whole(drafter, tokens, sequence_id, partition):
    """A sequence whose prompt was read beside its target, but for its last token."""
    drafter.begin(sequence_id, tokens, partition)
    drafter.absorb(sequence_id, features_of(tokens, 0, len(tokens) - 1))
    return drafter.read(sequence_id, tokens, len(tokens))


def drafted_after_first_round(drafter, tokens, sequence_id):
    features = features_of(tokens, len(tokens) - 1, len(tokens))
    drafter.observe(sequence_id, Commit((9,), features))
    return drafter.propose([row([*tokens, 9], sequence_id)])[0].tree.tokens.tolist()


@pytest.mark.parametrize("partition", ["one", "control"])
def test_given_a_text_that_began_before_then_only_what_is_new_is_taken_in(partition):
    # given a text, and another with the same first hundred tokens
    script = Script(num_blocks=32)
    drafter, first = featured(script), [at % VOCAB for at in range(140)]
    second = [*first[:100], *(3 for _ in range(50))]
    assert read_whole(drafter, first, 1, "one") == 138
    script.absorbed.clear()

    # when it is read for the same partition, then full blocks are shared and no draft is another
    num_read = read_whole(drafter, second, 2, partition)
    assert num_read == (148 - 96 if partition == "one" else 148)
    for sequence_id, tokens in ((1, first), (2, second)):
        drafts = drafted_after_first_round(drafter, tokens, sequence_id)
        assert drafts == expected([*tokens, 9])


def test_given_a_failure_in_the_middle_of_a_prompt_then_the_rest_of_it_still_waits():
    class Failing(Script):
        def absorb(self, *arguments):
            if len(self.absorbed) == 1:
                self.absorbed.append(0)
                raise BackendError("out of memory")
            super().absorb(*arguments)

    body = replace(BODY, max_position=1024)
    drafter, tokens = featured(Failing(replace(BLOCK, body=body), 32)), [7] * 700
    drafter.admit(1, tokens)
    drafter.absorb(1, features_of(tokens, 0, 699))
    with pytest.raises(BackendError):
        drafter.read(1, tokens, 600)

    assert drafter.num_unread(1, len(tokens)) == 698 - 256
    assert drafter.read(1, tokens, 600) == 698 - 256
    assert drafted_after_first_round(drafter, tokens, 1) == expected([*tokens, 9])


def test_given_a_prompt_beyond_its_context_then_both_numbers_are_named():
    with pytest.raises(CapacityError, match=r"304 positions .* the drafter's context has 256"):
        featured().admit(1, [1] * 300)


def test_given_plain_rounds_for_long_then_nothing_is_computed_until_somebody_asks():
    script = Script()
    drafter, tokens = featured(script), [1, 2, 3]
    begun(drafter, tokens)
    for at in range(3 * LONGEST_WAIT):
        observed(drafter, tokens, [at % VOCAB])
    assert script.absorbed == []

    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)
    assert sum(script.absorbed) == len(tokens) - 1
    assert script.absorbed[-1] <= LONGEST_WAIT


@pytest.mark.parametrize("num_others", [0, 3])
def test_given_more_features_than_may_wait_then_a_sequence_keeps_its_share_of_them(num_others):
    script, width = Script(), BLOCK.feature_width
    num_bytes = 4 * width * 4 * LONGEST_WAIT
    drafter, tokens = featured(script, most_waiting_bytes=num_bytes), [1, 2, 3]
    begun(drafter, tokens)
    for other in range(2, 2 + num_others):
        begun(drafter, [4, 5], other)
    most = 0
    for at in range(150):
        observed(drafter, tokens, [at % VOCAB])
        most = max(most, len(tokens) - 1 - sum(script.absorbed))

    assert most == num_bytes // (4 * width) // (1 + num_others)
    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)


def test_given_no_features_of_a_token_then_that_row_alone_decodes_plainly():
    drafter, texts = featured(), {1: [1, 2], 2: [3, 4], 3: [5]}
    for sequence_id, tokens in texts.items():
        begun(drafter, tokens, sequence_id)
    drafter.observe(2, Commit((7,)))  # without features
    texts[2].append(7)

    drafts = drafter.propose([row(tokens, at) for at, tokens in texts.items()])

    assert [draft.num_drafted for draft in drafts] == [LEVELS, 0, LEVELS]
    assert drafts[2].tree.tokens.tolist() == expected(texts[3])
    for at, tokens in texts.items():
        if at != 2:
            observed(drafter, tokens, [8], at)
            assert drafter.propose([row(tokens, at)])[0].tree.tokens.tolist() == expected(tokens)


def test_given_limits_then_no_draft_is_deeper_or_larger():
    drafter, tokens = featured(), [1, 2, 3]
    begun(drafter, tokens)

    for limits, num in (({"most": 2}, 2), ({"max_depth": 1}, 1), ({"most": 0}, 0)):
        assert drafter.propose([row(tokens, **limits)])[0].num_drafted == num
        observed(drafter, tokens, [9])


def test_given_a_block_then_it_is_never_asked_for_more_than_it_holds():
    script = Script(BlockSpec(BODY, 4, False, (0,), 2, 2, 3, (0,), (False,)))  # DFlash: 3 of 4
    drafter, tokens = featured(script, levels=12), [1, 2, 3]
    begun(drafter, tokens)

    draft = drafter.propose([row(tokens, most=12)])[0]

    assert drafter.num_levels == deepest(script.spec) == 3
    assert draft.num_drafted == 3
    assert featured(Script(EAGLE), levels=12).num_levels == 12


def test_given_full_memory_or_context_then_it_lets_the_sequence_go_and_others_draft():
    drafter = featured(Script(num_blocks=2))
    tokens, other = [1] * 23, [2] * 23
    begun(drafter, tokens, 1)
    begun(drafter, other, 2)
    assert drafter.propose([row(tokens), row(other, 2)])[0].num_drafted == LEVELS

    observed(drafter, tokens, [3] * 6)
    assert drafter.propose([row(tokens)])[0].num_drafted == 0
    observed(drafter, tokens, [4] * 40)  # and it does not mind what comes then
    assert drafter.propose([row(tokens)])[0].num_drafted == 0

    observed(drafter, other, [3] * 6, 2)
    assert drafter.propose([row(other, 2)])[0].tree.tokens.tolist() == expected(other)
    with pytest.raises(CapacityError):
        drafter.admit(3, [1] * 40)


def test_given_a_failing_backend_then_what_waits_is_asked_again():
    script = Script()
    drafter, tokens = featured(script), [1, 2, 3]
    begun(drafter, tokens)
    working = script.grow
    script.grow = failing

    with pytest.raises(BackendError):
        drafter.propose([row(tokens)])
    script.grow = working

    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)


def failing(plan, features):
    raise BackendError("no")


def test_given_margins_then_acceptance_is_learned():
    drafter, tokens = featured(), [1, 2, 3]
    begun(drafter, tokens)
    drafter.propose([row(tokens)])
    before = drafter._backend.grown[-1].acceptance.copy()
    for _ in range(20):
        draft = drafter.propose([row(tokens)])[0]
        margins = np.full(len(draft.tree), 1.1, np.float32)
        ranks = np.zeros(len(draft.tree), np.int32)
        learned = Draft(draft.tree, draft.draw, margins=margins, ranks=ranks)
        drafter._progress[1].last = learned, True
        observed(drafter, tokens, [*draft.tree.tokens.tolist()[1:2], 96])
    drafter.propose([row(tokens)])

    after = drafter._backend.grown[-1].acceptance
    assert after.shape == before.shape
    assert not np.array_equal(after, before)


def test_control_given_features_of_the_neighbours_then_the_backend_is_told_another_text():
    drafter, tokens = featured(), [1, 2, 3]
    begun(drafter, tokens)
    observed(drafter, tokens, [6], shift=-1)

    with pytest.raises(AssertionError):
        drafter.propose([row(tokens)])


def test_given_a_first_round_then_it_is_plain_however_much_of_the_prompt_was_read_before():
    drafter, tokens = featured(), [1, 2, 3]
    drafter.admit(1, tokens)
    drafter.absorb(1, features_of(tokens, 0, 2))

    assert drafter.propose([row(tokens)])[0].num_drafted == 0
    observed(drafter, tokens, [4])
    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)
