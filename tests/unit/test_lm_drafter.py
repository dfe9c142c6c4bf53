"""The lm drafter: what it reads, what it keeps, and that it says what its model would."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from forerun.draft import Draw
from forerun.drafters.lm import LM, LONGEST_CATCH_UP
from forerun.errors import CapacityError
from forerun.options import SamplingParams
from forerun.protocols import BLOCK_LEN, DraftRow, ForwardOutput, Sampler
from forerun.stats import Span

VOCAB = 97


class Spec:
    vocab = VOCAB
    max_position = 256


class Script:
    """A backend whose token after a text is a hash of the text as its K/V has it.

    It keeps K/V for real: which token lies at which physical place. So a wrong committed length or
    a wrong block table gives another proposal.
    """

    spec = Spec
    numerics, exactness = "script", "bits"

    def __init__(self, num_blocks=16):
        self.num_blocks = num_blocks
        self.memory = np.full(num_blocks * BLOCK_LEN, -1)
        self.num_read = []

    def place(self, table, position):
        return int(table[position // BLOCK_LEN]) * BLOCK_LEN + position % BLOCK_LEN

    def forward(self, batch):
        return ForwardOutput(None)

    def commit(self, batch, paths):
        for row, path in enumerate(paths):
            for offset, node in enumerate(path):
                place = self.place(batch.block_table[row], int(batch.committed[row]) + offset)
                self.memory[place] = batch.token_ids[batch.row_starts[row] + node]

    def propose(self, plan):
        starts = plan.catch_up_starts.tolist()
        self.num_read.append([end - start for start, end in itertools.pairwise(starts)])
        lines = []
        for row in range(len(plan.committed)):
            table, length = plan.block_table[row], int(plan.committed[row])
            line = []
            fresh = plan.catch_up[starts[row] : starts[row + 1]].tolist()
            for _step in range(plan.num_steps):
                for token in fresh:
                    self.memory[self.place(table, length)] = token
                    length += 1
                text = [self.memory[self.place(table, at)] for at in range(length)]
                fresh = [following(text)]
                line += fresh
            lines.append(line)
        return np.array(lines, np.int32)

    def close(self):
        self.closed = True


def following(text):
    value = 17
    for token in text:
        value = (value * 31 + int(token) + 1) % 1009
    return value % VOCAB


def row(tokens, sequence_id=1, most=4):
    return DraftRow(sequence_id, tokens, 3, Sampler(SamplingParams(), 1), most)


def expected(tokens, num):
    line = list(tokens)
    for _ in range(num):
        line.append(following(line))
    return line[len(tokens) - 1 :]


@pytest.mark.parametrize("num_kept", [0, 1, 2, 3, 4])
def test_given_any_number_of_kept_tokens_then_the_next_proposal_follows_the_real_text(num_kept):
    backend = Script()
    drafter = LM(backend, 4, Span())
    tokens = [5, 6, 7]
    drafter.admit(1, tokens)

    for _ in range(6):
        draft = drafter.propose([row(tokens)])[0]
        assert draft.tree.tokens.tolist() == expected(tokens, 4)
        assert draft.draw is Draw.COUPLED
        tokens += [*draft.tree.tokens.tolist()[1 : 1 + num_kept], 90]

    # At most the last drafted token and the bonus are new to it.
    assert max(num for call in backend.num_read for num in call) <= 2


def test_given_rounds_without_it_then_it_catches_up():
    drafter = LM(Script(), 4, Span())
    tokens = [5, 6, 7]
    drafter.admit(1, tokens)
    drafter.propose([row(tokens)])

    tokens += list(range(LONGEST_CATCH_UP + 20))

    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens, 4)


def test_given_several_rows_then_each_has_its_own_text_and_limit():
    drafter = LM(Script(), 4, Span())
    texts = {1: [5, 6, 7], 2: [8] * 40, 3: [9, 9]}
    for sequence_id, tokens in texts.items():
        drafter.admit(sequence_id, tokens)

    drafts = drafter.propose([row(texts[1]), row(texts[2], 2, most=2), row(texts[3], 3, most=0)])

    assert drafts[0].tree.tokens.tolist() == expected(texts[1], 4)
    assert drafts[1].tree.tokens.tolist() == expected(texts[2], 2)
    assert drafts[2].tree.tokens.tolist() == [9]


def test_given_a_prompt_beyond_its_context_then_both_numbers_are_named():
    drafter = LM(Script(), 4, Span())

    with pytest.raises(CapacityError, match=r"300 tokens .* limit is 256"):
        drafter.admit(1, [1] * 300)

    assert drafter.propose([row([1] * 300)])[0].num_drafted == 0


def test_given_its_memory_or_context_is_full_then_it_drafts_nothing_and_goes_on():
    drafter = LM(Script(num_blocks=2), 4, Span())
    tokens = [1] * 30
    drafter.admit(1, tokens)
    assert drafter.propose([row(tokens)])[0].num_drafted == 4

    tokens += [2] * 31
    assert drafter.propose([row(tokens)])[0].num_drafted == 0

    drafter.release(1)
    drafter.admit(2, [3] * 20)
    assert drafter.propose([row([3] * 20, 2)])[0].num_drafted == 4


def test_given_the_end_of_its_context_then_no_position_lies_beyond():
    drafter = LM(Script(), 4, Span())
    tokens = [1] * 250
    drafter.admit(1, tokens)

    for _ in range(6):
        num_drafted = drafter.propose([row(tokens)])[0].num_drafted
        assert num_drafted == (4 if len(tokens) + 4 <= 256 else 0)
        tokens.append(1)


def test_given_close_then_its_backend_is_closed():
    backend = Script()
    LM(backend, 4, Span()).close()

    assert backend.closed


# --- reading late, and texts that are kept ------------------------------------------------------


def read_of(drafter, sequence_id, tokens, partition):
    """Begin a text and read it: how many tokens were read."""
    drafter.begin(sequence_id, tokens, partition)
    return drafter.read(sequence_id, tokens, len(tokens))


def test_given_a_text_that_was_only_begun_then_it_is_read_before_it_is_drafted_from():
    backend = Script()
    drafter = LM(backend, 4, Span())
    tokens = [7] * 100
    drafter.begin(1, tokens)
    assert (backend.memory >= 0).sum() == 0
    assert drafter.num_unread(1, len(tokens)) == 99

    assert drafter.read(1, tokens, 40) == 40
    assert drafter.num_unread(1, len(tokens)) == 59
    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens, 4)


def test_given_more_texts_than_a_round_may_read_then_some_draft_now_and_all_in_the_end():
    drafter = LM(Script(num_blocks=40), 4, Span())
    texts = {at: [at + 1] * 200 for at in range(4)}
    for at, tokens in texts.items():
        drafter.begin(at, tokens)

    rows = [row(tokens, at) for at, tokens in texts.items()]
    rounds = [[draft.num_drafted for draft in drafter.propose(rows)] for _ in range(4)]

    assert rounds[0] == [4, 0, 0, 0]
    assert rounds[-1] == [4, 4, 4, 4]
    for draft, tokens in zip(drafter.propose(rows), texts.values(), strict=True):
        assert draft.tree.tokens.tolist() == expected(tokens, 4)


def test_given_a_text_like_an_earlier_one_of_the_same_owner_then_the_rest_of_it_is_read():
    drafter = LM(Script(), 4, Span())
    first = list(range(5, 90))
    assert read_of(drafter, 1, first, "a") == 84
    drafter.release(1)
    second = [*first[:70], 91, 92, 93]

    assert read_of(drafter, 2, second, "a") == 72 - 64
    assert drafter.propose([row(second, 2)])[0].tree.tokens.tolist() == expected(second, 4)


@pytest.mark.parametrize("partition", ["b", None])
def test_given_a_text_like_that_of_another_then_all_of_it_is_read(partition):
    drafter = LM(Script(), 4, Span())
    text = list(range(5, 90))
    read_of(drafter, 1, text, "a")
    drafter.release(1)
    assert read_of(drafter, 2, text, partition) == 84


def test_given_texts_that_are_kept_then_their_memory_serves_whoever_needs_it():
    drafter = LM(Script(num_blocks=5), 4, Span())
    for at in range(6):
        text = [at + 1] * 120
        assert read_of(drafter, at, text, "a") == 119
        assert drafter.propose([row(text, at)])[0].tree.tokens.tolist() == expected(text, 4)
        drafter.release(at)
