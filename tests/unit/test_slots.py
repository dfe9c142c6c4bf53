"""Who owns which block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.backends.slots import Slots, blocks_for
from forerun.errors import CapacityError


def test_given_positions_then_blocks_are_rounded_up():
    assert [blocks_for(num) for num in (0, 1, 32, 33)] == [0, 1, 1, 2]


def test_given_a_longer_reservation_then_earlier_blocks_stay_in_place():
    slots = Slots(8)
    slots.reserve(1, 40)
    before = slots.table([1]).tolist()

    slots.reserve(1, 100)

    assert slots.table([1]).tolist()[0][:2] == before[0]
    assert slots.num_free == 4


def test_given_too_little_room_then_both_numbers_are_named_and_nothing_is_taken():
    slots = Slots(3)
    slots.reserve(1, 64)

    with pytest.raises(CapacityError, match=r"64 more positions.* 32 of 96 are free"):
        slots.reserve(2, 40)

    assert slots.num_free == 1


def test_given_several_rows_then_short_tables_are_padded():
    slots = Slots(8)
    slots.reserve(1, 32)
    slots.reserve(2, 96)

    table = slots.table([2, 1])

    assert table.shape == (2, 3)
    assert table[1, 1:].tolist() == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 200), st.booleans()), max_size=40))
def test_given_any_history_then_no_block_is_owned_twice_or_lost(steps):
    slots, owners = Slots(20), set()
    for sequence_id, num_positions, gives_back in steps:
        if gives_back:
            slots.release(sequence_id)
            owners.discard(sequence_id)
        else:
            try:
                slots.reserve(sequence_id, num_positions)
            except CapacityError:
                continue
            if num_positions:
                owners.add(sequence_id)
        owned = [block for one in owners for block in slots.table([one])[0].tolist()]
        assert len(owned) == len(set(owned))
        assert len(owned) + slots.num_free == 20
