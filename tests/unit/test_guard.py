"""The guard: whatever a drafter does, rows get valid drafts."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.guard import MAX_FAILURES, Guard
from forerun.errors import CapacityError
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler
from forerun.shapes.chain import Chain
from forerun.tree import TokenTree

VOCAB = 10


def raw_tree(tokens, parents=None, dtype=np.int32):
    """A tree nobody checked, as a careless drafter might make one."""
    tree = object.__new__(TokenTree)
    parents = list(range(-1, len(tokens) - 1)) if parents is None else parents
    object.__setattr__(tree, "tokens", np.array(tokens, dtype))
    object.__setattr__(tree, "parents", np.array(parents, np.int32))
    return tree


class Offers:
    """A drafter that proposes one given tree, or raises, for every row."""

    def __init__(self, offer, error_on=()):
        self.offer, self.error_on = offer, error_on
        self.released = []

    def _maybe(self, verb):
        if verb in self.error_on:
            raise ZeroDivisionError(verb)

    def admit(self, sequence_id, prompt):
        self._maybe("admit")
        if sequence_id == 99:
            raise CapacityError("full")

    def propose(self, rows):
        self._maybe("propose")
        return [Draft(self.offer, Draw.POINT) for _ in rows] if self.offer is not None else None

    def observe(self, sequence_id, commit):
        self._maybe("observe")

    def release(self, sequence_id):
        self.released.append(sequence_id)
        self._maybe("release")

    def close(self):
        self._maybe("close")


def row(sequence_id=1, most=3):
    return DraftRow(sequence_id, [4, 5], 2, Sampler(SamplingParams(), 1), most)


def guarded(drafter, most=3):
    guard = Guard(drafter, Chain(most), VOCAB)
    guard.admit(1, [4, 5])
    return guard


@pytest.mark.parametrize(
    "offer",
    [
        raw_tree([5, float("nan")], dtype=np.float64),
        raw_tree([5, 1.5], dtype=np.float32),
        raw_tree([5, VOCAB]),
        raw_tree([5, -1]),
        raw_tree([4, 1]),
        raw_tree([]),
        None,
    ],
    ids=["NaN", "float", "too large", "negative", "other pending", "empty", "no list"],
)
def test_given_a_broken_proposal_then_the_row_decodes_plainly_and_it_is_counted(offer):
    guard = guarded(Offers(offer))

    draft = guard.propose([row()])[0]

    assert draft.tree.tokens.tolist() == [5]
    assert guard.num_failures == 1
    assert guard.failed(1)


def test_given_an_over_long_proposal_then_it_is_cut_to_the_shape():
    draft = guarded(Offers(raw_tree([5, 1, 2, 3, 1, 2, 3]))).propose([row()])[0]

    assert draft.tree.tokens.tolist() == [5, 1, 2, 3]


def test_given_a_fork_where_the_shape_is_a_chain_then_its_first_branch_is_taken():
    draft = guarded(Offers(raw_tree([5, 1, 2, 3], [-1, 0, 0, 1]))).propose([row()])[0]

    assert draft.tree.tokens.tolist() == [5, 1, 3]


def test_given_more_than_the_row_has_room_for_then_it_is_thrown_away():
    guard = guarded(Offers(raw_tree([5, 1, 2, 3])))

    assert guard.propose([row(most=1)])[0].num_drafted == 0
    assert guard.failed(1)


def test_given_wide_integers_then_they_become_the_contract_s():
    draft = guarded(Offers(raw_tree([5, 1], dtype=np.int64))).propose([row()])[0]

    assert draft.tree.tokens.dtype == np.int32
    assert draft.tree.tokens.tolist() == [5, 1]


@pytest.mark.parametrize("verb", ["admit", "propose", "observe", "release", "close"])
def test_given_an_error_in_any_verb_then_it_is_counted_and_never_raised(verb):
    guard = guarded(Offers(raw_tree([5, 1]), error_on={verb}))

    drafts = guard.propose([row()])
    guard.observe(1, Commit((1,)))
    guard.release(1)
    guard.close()

    assert guard.num_failures == 1
    assert len(drafts) == 1


def test_given_failures_in_a_row_then_the_drafter_is_switched_off_with_a_warning(caplog):
    drafter = Offers(None)
    guard = guarded(drafter)

    with caplog.at_level(logging.WARNING):
        for _ in range(MAX_FAILURES + 2):
            guard.propose([row()])

    assert guard.is_disabled
    assert guard.num_failures == MAX_FAILURES
    assert len(caplog.records) == 1
    assert "switched off" in caplog.text


def test_given_a_success_between_failures_then_the_drafter_stays_on():
    drafter = Offers(None)
    guard = guarded(drafter)

    for _ in range(4 * MAX_FAILURES):
        drafter.offer = raw_tree([5, 1]) if drafter.offer is None else None
        guard.propose([row()])

    assert not guard.is_disabled


def test_given_no_room_for_a_sequence_then_only_that_one_decodes_plainly():
    drafter = Offers(raw_tree([5, 1]))
    guard = guarded(drafter)
    guard.admit(99, [4, 5])

    drafts = guard.propose([row(99), row(1)])

    assert [draft.num_drafted for draft in drafts] == [0, 1]
    assert guard.num_failures == 0
    assert drafter.released == [99]


class Reads(Offers):
    """A drafter that wants to read layers 1 and 3."""

    tap_layers = (1, 3)

    def absorb(self, sequence_id, features):
        self._maybe("absorb")


def test_given_a_drafter_that_reads_features_then_its_layers_are_asked_for_until_it_is_off():
    guard = guarded(Reads(None))
    assert guard.tap_layers == (1, 3)

    for _ in range(MAX_FAILURES):
        guard.propose([row()])

    assert guard.tap_layers == ()
    assert guarded(Offers(None)).tap_layers == ()


def test_given_features_it_cannot_take_then_the_row_decodes_plainly_and_others_draft():
    drafter = Reads(raw_tree([5, 1]), error_on={"absorb"})
    guard = guarded(drafter)
    guard.admit(2, [4, 5])

    guard.absorb(1, np.zeros((2, 4), np.float32))
    guard.absorb(1, np.zeros((2, 4), np.float32))  # it is not asked again

    assert guard.num_failures == 1
    assert drafter.released == [1]
    drafts = guard.propose([row(1), row(2)])
    assert [draft.num_drafted for draft in drafts] == [0, 1]
