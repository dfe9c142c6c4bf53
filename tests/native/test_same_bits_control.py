"""The proof of same bits must be able to fail: arithmetic that depends on its company is caught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import (
    Floats,
    Text,
    decode_tree,
    opened,
    random_checkpoint,
    require_same_bits,
    same_bits,
    tiny_spec,
)

from forerun.backends.native import NativeBackend
from forerun.protocols import ForwardBatch, ForwardOutput

SPEC = tiny_spec(head_dim=64)
TOKENS = np.random.default_rng(1).integers(0, SPEC.vocab, 24).tolist()
TREE = [-1, 0, 0, 1, 1, 2, 4, 4]


def split_product(rows: Floats, head: Floats, num_parts: int) -> Floats:
    """float32 dot products, each summed in `num_parts` stretches of K, one term after another."""
    terms = rows[:, None, :] * head[None]
    stretches = np.array_split(terms, num_parts, axis=2)
    sums = [np.add.accumulate(stretch, axis=2)[..., -1] for stretch in stretches]
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total


class OtherHead:
    """A backend whose head product splits K by a rule of its own."""

    def __init__(self, backend: NativeBackend, head: Floats, *, split_many: int) -> None:
        self._backend, self._head, self._split_many = backend, head, split_many

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        taps = self._backend.forward(replace(batch, tap_layers=(SPEC.num_layers - 1,))).taps
        assert taps is not None
        parts = 1 if len(batch.token_ids) == 1 else self._split_many
        return ForwardOutput(split_product(taps[batch.logit_nodes], self._head, parts))

    def commit(self, batch: ForwardBatch, paths: Sequence[Sequence[int]]) -> None:
        self._backend.commit(batch, paths)


def check_chunks(backend: Any) -> None:
    expected = Text(backend, [0]).decode(TOKENS)
    require_same_bits(Text(backend, [1]).read(TOKENS), expected, "a chunk")


def check_tree(backend: Any) -> None:
    nodes = TOKENS[: len(TREE)]
    text = Text(backend, [1])
    text.decode(TOKENS)
    found = text.grow(nodes, TREE)[1]
    require_same_bits(found, decode_tree(backend, TOKENS, nodes, TREE), "a tree")


@pytest.mark.parametrize("check", [check_chunks, check_tree])
def test_a_head_that_splits_k_by_the_number_of_nodes_is_caught(check: Any) -> None:
    checkpoint = random_checkpoint(SPEC, 1)
    head = checkpoint.tensor("model.embed_tokens.weight").float32()
    with opened(checkpoint) as backend:
        # given the same wrapper with one rule for all, the check passes: the control is fair
        check(OtherHead(backend, head, split_many=1))
        # when K is split in two as soon as there are two nodes, then it fails
        with pytest.raises(AssertionError, match="floats differ"):
            check(OtherHead(backend, head, split_many=2))


def test_one_flipped_bit_is_caught() -> None:
    with opened(random_checkpoint(SPEC, 1)) as backend:
        logits = Text(backend, [0]).read(TOKENS)
    flipped = logits.copy()
    flipped.view(np.uint32)[17, 50] ^= 1
    assert same_bits(logits, logits.copy())
    assert not same_bits(flipped, logits)
    with pytest.raises(AssertionError, match=r"1 of \d+ floats differ, the first at \(17, 50\)"):
        require_same_bits(flipped, logits, "flipped")


def test_zeros_of_either_sign_are_told_apart() -> None:
    assert not same_bits(np.array([0.0], np.float32), np.array([-0.0], np.float32))
