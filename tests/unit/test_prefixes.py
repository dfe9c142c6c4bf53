"""Kept blocks: found by tokens, shared while used, gone when memory is needed, never confused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.backends.prefixes import Prefixes
from forerun.backends.slots import Slots
from forerun.errors import CapacityError, OptionError
from forerun.protocols import BLOCK_LEN

TEXT = tuple(range(1000, 1000 + 5 * BLOCK_LEN))


def kept(num_blocks=8, tokens=TEXT[: 3 * BLOCK_LEN], **changes):
    """Slots in which a text was read, kept and released."""
    slots = Slots(num_blocks)
    prefixes = Prefixes(slots, **changes)
    slots.reserve(0, len(tokens))
    prefixes.keep("", tokens, 0)
    slots.release(0)
    return slots, prefixes


def found(prefixes, tokens, partition="", *, with_features=False):
    return prefixes.find(partition, tokens, with_features=with_features)


def test_given_a_kept_text_then_what_begins_with_it_finds_its_full_blocks():
    slots, prefixes = kept()

    assert found(prefixes, TEXT).num_tokens == 3 * BLOCK_LEN
    assert found(prefixes, TEXT[:70]).num_tokens == 2 * BLOCK_LEN
    assert found(prefixes, (*TEXT[:40], 7, *TEXT[41:])).num_tokens == BLOCK_LEN
    assert found(prefixes, (7, *TEXT[1:])).num_tokens == 0
    assert slots.num_free == 8


def test_given_exactly_the_kept_text_then_its_last_block_is_read_again():
    _, prefixes = kept()

    assert found(prefixes, TEXT[: 3 * BLOCK_LEN]).num_tokens == 2 * BLOCK_LEN


def test_given_another_partition_then_nothing_is_found():
    _, prefixes = kept()

    assert found(prefixes, TEXT, "somebody else").num_tokens == 0


def test_given_the_same_block_behind_another_text_then_it_is_not_found():
    _, prefixes = kept()

    swapped = (*TEXT[BLOCK_LEN : 2 * BLOCK_LEN], *TEXT[:BLOCK_LEN], 5)
    assert found(prefixes, swapped).num_tokens == 0


def test_given_a_block_that_is_used_then_it_is_never_let_go():
    slots, prefixes = kept(num_blocks=4)
    prefix = found(prefixes, TEXT[: 2 * BLOCK_LEN + 1])
    slots.share(1, prefix.blocks)

    assert slots.num_free == 2
    slots.reserve(2, 2 * BLOCK_LEN)

    assert prefixes.num_blocks == 2
    assert not set(slots.blocks(2)) & set(prefix.blocks)
    with pytest.raises(CapacityError):
        slots.reserve(3, 1)


def test_given_need_then_the_longest_unused_leaf_goes_first():
    slots, prefixes = kept(num_blocks=5, tokens=TEXT[: 2 * BLOCK_LEN])
    other = tuple(range(2 * BLOCK_LEN))
    slots.reserve(1, len(other))
    prefixes.keep("", other, 1)
    slots.release(1)
    assert found(prefixes, TEXT).num_tokens == 2 * BLOCK_LEN  # newer than the other now

    slots.reserve(2, 2 * BLOCK_LEN)

    assert found(prefixes, TEXT).num_tokens == 2 * BLOCK_LEN
    assert found(prefixes, (*other, 1)).num_tokens == BLOCK_LEN


def test_given_a_text_read_twice_then_the_second_takes_the_blocks_of_the_first():
    slots = Slots(8)
    prefixes = Prefixes(slots)
    for name in (0, 1):
        slots.reserve(name, 80)
        prefixes.keep("", TEXT[:80], name)

    assert slots.blocks(0)[:2] == slots.blocks(1)[:2]
    assert slots.num_free == 8 - 4
    assert slots.table([1])[0].tolist() == list(slots.blocks(1))


def test_given_features_then_only_blocks_that_have_them_are_found():
    slots, prefixes = kept()
    assert found(prefixes, TEXT, with_features=True).num_tokens == 0
    features = np.arange(2 * BLOCK_LEN * 3, dtype=np.float32).reshape(-1, 3)
    prefix = found(prefixes, TEXT)
    slots.share(1, prefix.blocks)
    prefixes.keep("", TEXT[: 3 * BLOCK_LEN], 1, features)

    prefix = found(prefixes, TEXT, with_features=True)

    assert prefix.num_tokens == 2 * BLOCK_LEN
    assert np.array_equal(np.concatenate(prefix.features), features)


def test_given_features_beyond_their_limit_then_they_are_not_kept():
    slots, prefixes = kept(most_feature_bytes=BLOCK_LEN * 4)
    slots.share(1, found(prefixes, TEXT).blocks)
    prefixes.keep("", TEXT[: 3 * BLOCK_LEN], 1, np.zeros((3 * BLOCK_LEN, 1), np.float32))

    assert found(prefixes, TEXT, with_features=True).num_tokens == BLOCK_LEN
    slots.release(1)
    slots.reserve(2, 8 * BLOCK_LEN)  # all are let go, and their bytes with them
    prefixes.keep("", TEXT[:BLOCK_LEN], 2, np.zeros((BLOCK_LEN, 1), np.float32))
    assert found(prefixes, TEXT, with_features=True).num_tokens == BLOCK_LEN


def test_given_a_close_then_nothing_is_kept_and_another_may_keep():
    slots, prefixes = kept()
    with pytest.raises(OptionError, match="one service at a time"):
        Prefixes(slots)

    prefixes.close()

    assert (prefixes.num_blocks, slots.num_free, len(slots._free)) == (0, 8, 8)
    Prefixes(slots)


# --- any history ---------------------------------------------------------------------------------


class Memory:
    """Slots, prefixes, and what lies in each block: the whole text up to its end, as K/V would."""

    def __init__(self, prefixes=Prefixes):
        self.slots = Slots(12)
        self.prefixes = prefixes(self.slots)
        self.content = {}
        self.rows = {}

    def begin(self, name, partition, tokens):
        prefix = found(self.prefixes, tokens, partition)
        for place, block in enumerate(prefix.blocks):
            end = (place + 1) * BLOCK_LEN
            assert self.content[block] == (partition, tokens[:end]), "a block of another text"
        free = self.slots.num_free - sum(not self.slots.is_used(one) for one in prefix.blocks)
        if -(-len(tokens) // BLOCK_LEN) - len(prefix.blocks) > free:
            return
        self.slots.share(name, prefix.blocks)
        self.slots.reserve(name, len(tokens))
        self.rows[name] = (partition, tokens)
        self.read(name, len(prefix.blocks))

    def read(self, name, first):
        partition, tokens = self.rows[name]
        for place, block in enumerate(self.slots.blocks(name)):
            if place >= first:
                assert block not in self.shared_with_others(name), "a used block is written"
                self.content[block] = (partition, tokens[: (place + 1) * BLOCK_LEN])

    def shared_with_others(self, name):
        return {one for other in self.rows if other != name for one in self.slots.blocks(other)}

    def end(self, name, *, keeps):
        partition, tokens = self.rows.pop(name)
        if keeps:
            self.prefixes.keep(partition, tokens, name)
        self.slots.release(name)

    def check(self):
        used = {one for name in self.rows for one in self.slots.blocks(name)}
        assert self.slots.num_free == 12 - len(used)
        for name, (partition, tokens) in self.rows.items():
            for place, block in enumerate(self.slots.blocks(name)):
                assert self.content[block] == (partition, tokens[: (place + 1) * BLOCK_LEN])
        assert len(set(self.slots._free)) == len(self.slots._free)
        assert not used & set(self.slots._free)


def history(seed, prefixes=Prefixes):
    rng = random.Random(seed)
    memory = Memory(prefixes)
    for name in range(40):
        running = list(memory.rows)
        if running and rng.random() < 0.5:
            memory.end(rng.choice(running), keeps=rng.random() < 0.8)
        partition = rng.choice("ab")
        pieces = [tuple([rng.randrange(3)] * BLOCK_LEN) for _ in range(rng.randrange(5))]
        tail = tuple([9] * rng.randrange(1, BLOCK_LEN))
        memory.begin(name, partition, tuple(one for piece in pieces for one in piece) + tail)
        memory.check()
    for name in list(memory.rows):
        memory.end(name, keeps=True)
    memory.check()
    assert memory.slots.num_free == 12


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_given_any_history_then_each_text_keeps_its_own_blocks(seed):
    history(seed)


class WithoutParents(Prefixes):
    """Looks at a block's own tokens alone."""

    def _add(self, parent, tokens, block):
        return super()._add(0, tokens, block)

    def _path(self, partition, tokens):
        self._roots[partition] = 0
        path = super()._path(partition, tokens)
        for node in path:
            node.number = 0
        return path


class WithoutPartitions(Prefixes):
    """Finds what others left behind."""

    def _path(self, partition, tokens):
        return super()._path("", tokens)

    def _root(self, partition):
        return super()._root("")


class LetsGoOfAnything(Prefixes):
    """Drops blocks that are used."""

    def _let_go(self, num):
        for node in list(self._nodes.values())[:num]:
            del self._nodes[node.key]
            self._slots._num_users[node.block] = 0
            self._slots.drop(node.block)


@pytest.mark.parametrize("wrong", [WithoutParents, WithoutPartitions, LetsGoOfAnything])
def test_given_prefixes_that_confuse_texts_then_histories_see_it(wrong):
    with pytest.raises((AssertionError, KeyError, IndexError)):
        histories(wrong)


def histories(prefixes):
    for seed in range(200):
        history(seed, prefixes)
