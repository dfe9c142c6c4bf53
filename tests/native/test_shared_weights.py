"""Weights of one model, packed once and read by several backends: what they share and what not."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from builders import (
    CORES,
    PATHS,
    Floats,
    MemoryCheckpoint,
    Text,
    opened,
    random_checkpoint,
    require_same_bits,
    same_bits,
    tiny_spec,
)

from forerun import _native
from forerun.backends import native
from forerun.backends.native import NativeBackend, needed_bytes
from forerun.backends.native_weights import body_shape
from forerun.errors import BackendError, CapacityError

CORE = CORES[:1]
TOKENS = np.random.default_rng(0).integers(0, 97, 70).tolist()
OTHERS = np.random.default_rng(1).integers(0, 97, 70).tolist()


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return random_checkpoint(tiny_spec(qk_norm=True, qkv_bias=True, tied=False), 5)


@pytest.fixture(scope="module")
def alone(checkpoint: MemoryCheckpoint) -> tuple[Floats, Floats]:
    """What two texts come to, each on a backend that packed for itself."""
    texts = []
    for tokens in (TOKENS, OTHERS):
        with opened(checkpoint) as backend:
            texts.append(Text(backend, range(3)).decode(tokens))
    return texts[0], texts[1]


@pytest.fixture
def first(checkpoint: MemoryCheckpoint) -> Iterator[NativeBackend]:
    with opened(checkpoint) as backend:
        yield backend


def sharing(checkpoint: MemoryCheckpoint, other: NativeBackend, **options: Any) -> NativeBackend:
    options = {"cores": CORE, "num_blocks": 5} | options
    return NativeBackend(checkpoint, weights=other.weights, **options)


def in_turns(*texts: tuple[Text, list[int]]) -> list[Floats]:
    """What each text comes to, a token at a time, while the others are as far."""
    found: list[list[Floats]] = [[] for _ in texts]
    for at in range(len(TOKENS)):
        for rows, (text, tokens) in zip(found, texts, strict=True):
            rows.append(text.read([tokens[at]]))
    return [np.concatenate(rows) for rows in found]


# --- bits ----------------------------------------------------------------------------------------


def test_given_shared_weights_then_each_backend_has_its_own_text_and_the_bits_it_has_alone(
    checkpoint: MemoryCheckpoint, first: NativeBackend, alone: tuple[Floats, Floats]
) -> None:
    second = sharing(checkpoint, first)

    found = in_turns((Text(first, range(3)), TOKENS), (Text(second, range(3)), OTHERS))

    require_same_bits(found[0], alone[0], "the first")
    require_same_bits(found[1], alone[1], "the second")
    second.close()


def test_given_one_backend_for_both_texts_then_the_same_blocks_do_not_do(
    first: NativeBackend, alone: tuple[Floats, Floats]
) -> None:
    # what the test above would see if K/V blocks were shared too
    found = in_turns((Text(first, range(3)), TOKENS), (Text(first, range(3)), OTHERS))

    assert not same_bits(found[0], alone[0])


@pytest.mark.parametrize("closed", ["the one that packed", "the one that shares"])
def test_given_one_is_closed_in_the_middle_of_a_text_then_the_other_goes_on(
    closed: str, checkpoint: MemoryCheckpoint, alone: tuple[Floats, Floats]
) -> None:
    packed = NativeBackend(checkpoint, cores=CORE, num_blocks=5)
    shares = sharing(checkpoint, packed)
    leaves, stays = (packed, shares) if closed.endswith("packed") else (shares, packed)
    text = Text(stays, range(3))
    begun = text.decode(TOKENS[:30])
    Text(leaves, range(3)).decode(OTHERS)

    leaves.close()

    found = np.concatenate([begun, text.decode(TOKENS[30:])])
    require_same_bits(found, alone[0], f"without {closed}")
    stays.close()


@pytest.mark.skipif(len(CORES) < 2, reason="two lanes at once need two cores")
def test_given_two_threads_then_they_may_read_the_same_weights_at_once(
    checkpoint: MemoryCheckpoint, alone: tuple[Floats, Floats]
) -> None:
    backends = [NativeBackend(checkpoint, cores=CORES[:1], num_blocks=5)]
    backends.append(sharing(checkpoint, backends[0], cores=CORES[1:2]))
    found: dict[int, list[Floats]] = {0: [], 1: []}

    def read(index: int) -> None:
        for _ in range(5):
            found[index].append(Text(backends[index], range(3)).decode((TOKENS, OTHERS)[index]))

    readers = [threading.Thread(target=read, args=(index,)) for index in found]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for backend in backends:
        backend.close()

    for index, texts in found.items():
        assert len(texts) == 5
        for text in texts:
            require_same_bits(text, alone[index], f"thread {index}")


def test_given_another_path_of_the_same_order_then_its_lane_reads_them_too(
    checkpoint: MemoryCheckpoint, alone: tuple[Floats, Floats]
) -> None:
    with opened(checkpoint, isa="portable") as packed:
        shares = sharing(checkpoint, packed, isa="avx2" if "avx2" in PATHS else "portable")
        found = Text(shares, range(3)).decode(TOKENS)
        shares.close()

    require_same_bits(found, alone[0], "another path")


# --- memory --------------------------------------------------------------------------------------


def test_given_three_backends_then_the_panels_are_in_memory_once_and_go_with_the_last(
    checkpoint: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = counted_packings(monkeypatch)
    backends = [NativeBackend(checkpoint, cores=CORE, num_blocks=5)]
    backends += [sharing(checkpoint, backends[0], num_blocks=num) for num in (1, 9)]
    weights = weakref.ref(backends[0].weights)

    assert len(packings) == 1
    assert {id(backend.weights) for backend in backends} == {id(weights())}
    table = 2 * checkpoint.spec.vocab * checkpoint.spec.hidden  # to look tokens up: not streamed
    assert weights().num_bytes == backends[0].weight_bytes + table

    for backend in backends:
        assert weights() is not None
        backend.close()
    gc.collect()
    assert weights() is None


def test_given_backends_that_share_nothing_then_each_has_packed(
    checkpoint: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = counted_packings(monkeypatch)
    backends = [NativeBackend(checkpoint, cores=CORE, num_blocks=5) for _ in range(3)]

    assert len(packings) == 3
    assert len({id(backend.weights) for backend in backends}) == 3
    for backend in backends:
        backend.close()


def test_given_memory_for_k_v_only_then_a_backend_that_shares_fits_and_one_that_packs_does_not(
    checkpoint: MemoryCheckpoint, first: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = needed_bytes(checkpoint.spec, 5, 2, packs=False)
    monkeypatch.setattr(native, "available_bytes", lambda: enough)

    sharing(checkpoint, first).close()

    with pytest.raises(CapacityError, match="parameters and K/V"):
        NativeBackend(checkpoint, cores=CORE, num_blocks=5)
    with pytest.raises(CapacityError, match=r"^K/V for 192 positions"):
        sharing(checkpoint, first, num_blocks=6)


def counted_packings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every packing that begins."""
    begun: list[Any] = []
    begin = _native.Packing
    monkeypatch.setattr(_native, "Packing", lambda *a, **k: begun.append(1) or begin(*a, **k))
    return begun


# --- refusals ------------------------------------------------------------------------------------


def test_given_packed_weights_then_nothing_changes_them_any_more(
    checkpoint: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    begin = _native.Packing
    monkeypatch.setattr(_native, "Packing", lambda *a, **k: made.append(begin(*a, **k)) or made[-1])
    with opened(checkpoint) as backend:
        (packing,) = made
        head = np.zeros((checkpoint.spec.vocab, checkpoint.spec.hidden), np.float32)
        for change in (
            lambda: packing.pack("head", 0, [head], ["F32"]),
            lambda: packing.set_vector("final_norm", 0, np.ones(64, np.float32)),
            lambda: packing.set_sight(0, True, 0),
            lambda: packing.set_token_map([1]),
            packing.finish,
        ):
            with pytest.raises(ValueError, match="packed already"):
                change()
        assert not hasattr(backend.weights, "pack")


def test_given_matrices_that_are_missing_then_there_are_no_weights(
    checkpoint: MemoryCheckpoint,
) -> None:
    spec = checkpoint.spec
    lane = _native.Lane(list(CORE), 1, "auto")
    packing = _native.Packing(lane, **body_shape(spec), vocab=spec.vocab, tied=spec.tied)

    with pytest.raises(ValueError, match="fewer weights than the shape announces"):
        packing.finish()


@pytest.mark.skipif("avx512-bf16" not in PATHS, reason="one order of panels on this machine")
def test_given_a_path_that_reads_panels_in_another_order_then_it_is_refused(
    checkpoint: MemoryCheckpoint,
) -> None:
    with (
        opened(checkpoint, isa="portable") as packed,
        pytest.raises(BackendError, match="paths they were packed for"),
    ):
        sharing(checkpoint, packed, isa="avx512-bf16")
