"""How rows become the arrays of one pass: the common case is the general one, only sooner."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.backends.slots import Slots
from forerun.draft import Draft, Draw
from forerun.drafters.guard import Guard
from forerun.drafters.plain import Plain
from forerun.engine import round as round_module
from forerun.engine.detokenize import Detokenizer
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.options import SamplingParams
from forerun.protocols import ForwardBatch, Selection
from forerun.rules.match import Match
from forerun.schedules.sequential import Sequential
from forerun.shapes.chain import Chain
from forerun.tree import TokenTree

FORK = ([4, 1, 2, 3, 5], [-1, 0, 0, 2, 1])


@pytest.fixture
def parts():
    shape = Chain(8)
    slots = Slots(16)
    for sequence_id in range(3):
        slots.reserve(sequence_id, 40 + 40 * sequence_id)
    return Parts(None, slots, Guard(Plain(), shape, 100), shape, Match(), Sequential())


def row_of(sequence_id, tokens, committed, **params):
    return Sequence(
        id=sequence_id,
        index=0,
        tokens=tokens,
        prompt_len=2,
        limit=99,
        params=SamplingParams(**params),
        seed=7,
        stop_ids=frozenset(),
        detokenizer=Detokenizer(bytes, ()),
        committed_len=committed,
    )


def draft_of(tokens, parents):
    return Draft(TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32)), Draw.POINT)


def assembled(rows, drafts, parts):
    draft_rows = round_module._draft_rows(rows, [8] * len(rows), parts)
    return Assembled(*round_module._assemble(rows, draft_rows, drafts, parts))


class Assembled(NamedTuple):
    batch: ForwardBatch
    selection: Selection
    starts: list
    bases: list


def general(row, draft, parts):
    """The general way, which a second row brings about; what belongs to the first row of it."""
    mate = row_of(2, [8, 9], 1)
    both = assembled([row, mate], [draft, draft_of([9], [-1])], parts)
    return both, both.starts[1]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize(("tokens", "parents"), [([4], [-1]), ([4, 5, 6], [-1, 0, 1]), FORK])
def test_given_one_row_then_its_arrays_are_those_of_the_general_case(
    parts, tokens, parents, penalty
):
    row = row_of(1, [3, 3, 3, 4], 3, repetition_penalty=penalty)
    draft = draft_of(tokens, parents)

    one = assembled([row], [draft], parts)
    both, num = general(row, draft, parts)

    for name in ("token_ids", "parents", "logit_nodes"):
        assert getattr(one.batch, name).tolist() == getattr(both.batch, name)[:num].tolist()
        assert getattr(one.batch, name).dtype == getattr(both.batch, name).dtype
    assert one.batch.row_starts.tolist() == both.batch.row_starts[:2].tolist()
    assert one.batch.committed.tolist() == [3]
    width = one.batch.block_table.shape[1]
    assert one.batch.block_table[0].tolist() == both.batch.block_table[0, :width].tolist()
    assert one.selection.positions.tolist() == both.selection.positions[:num].tolist()
    assert one.selection.positions.dtype == both.selection.positions.dtype == np.int64
    assert one.selection.path_starts.tolist() == both.selection.path_starts[: num + 1].tolist()
    assert one.selection.path_tokens.tolist() == both.selection.path_tokens.tolist()
    assert (one.starts, one.bases) == (both.starts[:2], both.bases[:1])


def test_given_a_prompt_s_tail_then_the_draft_hangs_below_its_last_token(parts):
    row = row_of(1, [3, 3, 3, 4], 1)

    made = assembled([row], [draft_of(*FORK)], parts)

    assert made.batch.token_ids.tolist() == [3, 3, 4, 1, 2, 3, 5]
    assert made.batch.parents.tolist() == [-1, 0, 1, 2, 2, 4, 3]
    assert made.batch.logit_nodes.tolist() == [2, 3, 4, 5, 6]
    assert made.selection.positions.tolist() == [4, 5, 5, 6, 6]
    assert made.bases == [2]


def test_given_penalties_then_each_choice_sees_the_drafted_tokens_above_it(parts):
    row = row_of(1, [3, 3, 3, 4], 3, presence_penalty=1.0)

    made = assembled([row], [draft_of(*FORK)], parts).selection

    ends = made.path_starts.tolist()
    paths = [made.path_tokens[start:end].tolist() for start, end in itertools.pairwise(ends)]
    assert paths == [[], [1], [2], [2, 3], [1, 5]]


def test_given_penalties_then_the_sampler_knows_prompt_and_output_apart():
    row = row_of(1, [3, 1, 5, 5, 4], 4, frequency_penalty=1.0)
    row.sampler()
    row.tokens.append(5)

    sampler = row.sampler()

    assert sampler.prompt_ids.tolist() == [1, 3]
    counts = zip(sampler.output_ids.tolist(), sampler.output_counts.tolist(), strict=True)
    assert dict(counts) == {5: 3, 4: 1}
    assert row.sampler() is sampler


@given(
    st.lists(st.sampled_from([0.0, -1.0, -1.5, -2.5, -np.inf, np.nan]), min_size=1, max_size=24),
    st.integers(0, 30),
)
def test_given_any_log_laws_then_the_likeliest_are_those_of_a_whole_stable_sort(values, num_top):
    line = np.array(values, np.float32)
    found = round_module.likeliest(line, num_top)
    assert found == np.argsort(-line, kind="stable")[:num_top].tolist()
