"""The second arithmetic, `canonical-float32`: nothing is rounded to bf16, so it is what other
frameworks compute in float32; and it is never mixed with the first one.

That its bits do not depend on the company is proved where the other paths' are.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    CORES,
    FLOAT32,
    PATHS,
    Floats,
    MemoryCheckpoint,
    Row,
    batch_of,
    chain,
    computed,
    opened,
    random_checkpoint,
    same_bits,
    tiny_spec,
)

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "unit"))

from feature_cases import (  # noqa: E402  after the skip
    HIDDEN,
    NUM_BLOCKS,
    VOCAB,
    InMemory,
    a_text,
    drafted,
    kinds,
    random_module,
)

from forerun import _native  # noqa: E402
from forerun.backends import native  # noqa: E402
from forerun.backends.native import NativeBackend, needed_bytes, value_bytes  # noqa: E402
from forerun.backends.native_features import NativeFeatureBackend  # noqa: E402
from forerun.backends.native_weights import body_shape  # noqa: E402
from forerun.backends.torch.backend import TorchBackend  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.errors import BackendError, CapacityError  # noqa: E402
from forerun.models.weights import WeightTensor  # noqa: E402
from forerun.protocols import Growth  # noqa: E402

SPECS = {
    "llama": tiny_spec(head_dim=80, ffn=75, vocab=50),
    "qwen2": tiny_spec(
        family="qwen2", hidden=100, head_dim=64, num_heads=7, num_kv_heads=1, qkv_bias=True
    ),
    "qwen3, untied": tiny_spec(family="qwen3", head_dim=96, qk_norm=True, tied=False),
}
BOUND = 1e-5


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tiny products


def unrounded_checkpoint(spec: Any, seed: int) -> MemoryCheckpoint:
    """Random weights in float32, of which bf16 would keep the first bits only."""
    rng = np.random.default_rng(seed)
    coarse = random_checkpoint(spec, seed)
    tensors = {
        name: WeightTensor(fine(tensor.float32(), rng), "F32")
        for name, tensor in coarse.tensors.items()
    }
    return MemoryCheckpoint(spec, tensors)


def fine(values: Floats, rng: np.random.Generator) -> Floats:
    return (values * (1 + rng.uniform(-(2**-9), 2**-9, values.shape))).astype(np.float32)


def farthest(found: Floats, expected: Floats) -> float:
    """The widest difference, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def reading(backend: Any, tokens: list[int]) -> Floats:
    """What one pass computes of a text."""
    return computed(backend, batch_of([Row(tokens, chain(len(tokens)), 0, range(16))]))


# --- what other frameworks compute in float32 ----------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_given_a_float32_checkpoint_then_all_that_is_computed_is_torch_s(
    spec: Any, seed: int
) -> None:
    checkpoint = unrounded_checkpoint(spec, seed)
    tokens = np.random.default_rng(seed).integers(0, spec.vocab, 90).tolist()
    reference = TorchBackend(checkpoint, num_blocks=16)
    assert reference.numerics == "torch-cpu-float32"
    expected = reading(reference, tokens)

    with opened(checkpoint, isa=FLOAT32) as backend:
        assert backend.numerics == "canonical-float32"
        assert farthest(reading(backend, tokens), expected) < BOUND

    # control: the first arithmetic misses the bound by far, and so do rounded weights alone
    with opened(checkpoint) as coarse:
        assert coarse.numerics == "canonical-bf16"
        assert farthest(reading(coarse, tokens), expected) > 100 * BOUND
    with opened(random_checkpoint(spec, seed), isa=FLOAT32) as rounded:
        assert farthest(reading(rounded, tokens), expected) > 100 * BOUND


def test_given_halves_then_they_are_widened_and_nothing_is_lost() -> None:
    checkpoint = random_checkpoint(SPECS["llama"], 1)
    halves = {
        name: WeightTensor(tensor.float32().astype(np.float16), "F16")
        for name, tensor in checkpoint.tensors.items()
    }
    wide = {
        name: WeightTensor(np.asarray(half.array, np.float32), "F32")
        for name, half in halves.items()
    }
    read = []
    for tensors in (halves, wide):
        with opened(MemoryCheckpoint(checkpoint.spec, tensors), isa=FLOAT32) as backend:
            read.append(reading(backend, [1, 2, 3]))
    assert same_bits(*read)


# --- drafters that read features -----------------------------------------------------------------

TARGET = unrounded_checkpoint(
    replace(tiny_spec(vocab=VOCAB, tied=True), hidden=HIDDEN, head_dim=8, num_layers=1), 4
)
TABLE = torch.from_numpy(TARGET.tensor("model.embed_tokens.weight").float32().copy())
CHAIN = Growth(Draw.COUPLED, (0, 1, 2))


def beside(module: Any, isa: str | None = None) -> NativeFeatureBackend:
    with opened(TARGET, isa=isa) as target:
        return NativeFeatureBackend(InMemory(module), target, num_blocks=NUM_BLOCKS)


@kinds
def test_given_drafters_of_every_kind_then_all_blocks_are_torch_s(spec: Any) -> None:
    module = random_module(spec)
    reference = TorchFeatureBackend(InMemory(module), table=TABLE, num_blocks=NUM_BLOCKS)
    finely, coarsely = beside(module, FLOAT32), beside(module)
    num_far = 0
    for seed in range(30):
        tokens, features = a_text(20 + seed, spec, seed)
        for growth in (CHAIN, Growth(Draw.POINT, (0, 0, 1, 1, 2, 3, 3))):
            expected, found, rough = (
                drafted(one, tokens, features, growth=growth)
                for one in (reference, finely, coarsely)
            )
            assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
            assert found.tree.parents.tolist() == expected.tree.parents.tolist()
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-7)
            is_alike = rough.tree.tokens.tolist() == expected.tree.tokens.tolist()
            num_far += not is_alike or not np.allclose(rough.scores, expected.scores, rtol=1e-4)
    assert num_far > 20  # control: of sixty drafts, what bf16 makes of these weights


# --- another arithmetic, never mixed with the first ----------------------------------------------


def test_nothing_takes_this_path_unless_it_is_asked_for() -> None:
    assert FLOAT32 not in PATHS
    assert native.equal_paths(PATHS[0]) == list(PATHS)
    assert native.equal_paths(FLOAT32) == [FLOAT32]
    assert _native.Lane([], 1, "auto").path != FLOAT32
    with pytest.raises(BackendError, match=f"cannot run here; use auto, .*{FLOAT32}"):
        value_bytes("float16")


def test_given_weights_of_one_arithmetic_then_a_lane_of_the_other_refuses_them() -> None:
    checkpoint = random_checkpoint(SPECS["llama"], 1)
    for own, other in (("portable", FLOAT32), (FLOAT32, "portable")):
        with opened(checkpoint, isa=own) as packed:
            shared = {"cores": CORES[:1], "num_blocks": 4, "weights": packed.weights}
            NativeBackend(checkpoint, isa=own, **shared).close()
            with pytest.raises(BackendError, match="paths they were packed for"):
                NativeBackend(checkpoint, isa=other, **shared)


def test_given_a_table_of_one_arithmetic_then_weights_of_the_other_do_not_borrow_it() -> None:
    spec = TARGET.spec
    like = {**body_shape(spec), "vocab": spec.vocab, "tied": True}
    for own, other in (("portable", FLOAT32), (FLOAT32, "portable")):
        with opened(TARGET, isa=own) as target:
            _native.Packing(_native.Lane([], 1, own), **like, lender=target.weights)
            with pytest.raises(ValueError, match="equal widths and paths"):
                _native.Packing(_native.Lane([], 1, other), **like, lender=target.weights)


@kinds
def test_given_a_drafter_beside_a_target_of_the_other_arithmetic_then_it_is_refused(
    spec: Any,
) -> None:
    packed = beside(random_module(spec), FLOAT32).weights
    with opened(TARGET, isa="portable") as target, pytest.raises(BackendError, match="packed for"):
        NativeFeatureBackend(
            InMemory(random_module(spec)), target, num_blocks=NUM_BLOCKS, weights=packed
        )


def test_given_twice_the_bytes_then_memory_is_asked_for_as_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = random_checkpoint(SPECS["qwen3, untied"], 1)
    with opened(checkpoint, isa="portable") as half, opened(checkpoint, isa=FLOAT32) as whole:
        assert whole.block_bytes == 2 * half.block_bytes
        assert whole.weight_bytes == 2 * half.weight_bytes
        assert whole.weights.num_bytes == 2 * half.weights.num_bytes

    enough = needed_bytes(checkpoint.spec, 4, 2, packs=True)
    monkeypatch.setattr(native, "available_bytes", lambda: enough)
    NativeBackend(checkpoint, cores=CORES[:1], num_blocks=4).close()
    with pytest.raises(CapacityError, match=f"need {2 * enough:,} bytes"):
        NativeBackend(checkpoint, cores=CORES[:1], num_blocks=4, isa=FLOAT32)
