"""An enlarged model computes the small one's bits: in a prefill, one token at a time, in a tree.

Each construction is proved alone, over shapes with remainders, and has a control that must fail:
what if a filler were not zero, stood elsewhere, or epsilon were scaled instead of the stream?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import (
    Floats,
    MemoryCheckpoint,
    Text,
    batch_of,
    bf16_tensor,
    opened,
    random_checkpoint,
    require_same_bits,
    same_bits,
    specs,
    tiny_spec,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.errors import ModelError
from forerun.models.resolve import resolve_model
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.weights import WeightTensor, expected_tensors
from forerun.tools.inflation import (
    SIZES,
    drafter_spec,
    grown_rows,
    require_preserving,
    spec_bytes,
    target_spec,
)

few = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
seeds = st.integers(0, 2**32 - 1)
TREE = [-1, 0, 0, 1, 1, 2, 4, 4]
EMBEDDED = read_spec(resolve_model("forerun-code"))
QWEN3 = tiny_spec(family="qwen3", qk_norm=True)


def enlarged(source: MemoryCheckpoint, **changes: Any) -> MemoryCheckpoint:
    """The same function in another shape; keyword arguments are fields of `ModelSpec`."""
    grown = replace(source.spec, **changes)
    tensors = {
        name: WeightTensor(
            np.concatenate(list(grown_rows(source, grown, name, 3))).reshape(s), "BF16"
        )
        for name, s in expected_tensors(grown).items()
    }
    return MemoryCheckpoint(grown, tensors)


def computed(checkpoint: Any, like: ModelSpec | None = None) -> Floats:
    """Logits and residual streams of a prefill, of one-token passes, and of a tree behind them.

    The streams are there because logits hide much: on the way to them all is rounded to bf16. They
    are given as a model of the shape `like` has them: unscaled, its layers and the very last one,
    its dimensions and the sum of all others' magnitudes.
    """
    spec = checkpoint.spec
    like = like or spec
    layers = (*range(like.num_layers), spec.num_layers - 1)
    scale = np.float32(np.sqrt(like.hidden / spec.hidden))
    tokens = np.random.default_rng(5).integers(0, spec.vocab, 45).tolist()
    found = []
    with opened(checkpoint) as backend:
        text = Text(backend, [1, 0])
        for nodes in (tokens[:35], tokens[35:36], tokens[36:37], tokens[37:]):
            parents = TREE if len(nodes) == len(TREE) else None
            batch = batch_of([text.row(nodes, parents)], tap_layers=layers)
            output = backend.forward(batch)
            text.keep(batch, [] if parents else range(len(nodes)))
            taps = np.array(output.taps).reshape(len(nodes), len(layers), -1)
            own, new = np.split(taps, [like.hidden], axis=2)
            parts = [np.array(output.logits), own * scale, np.abs(new).sum(axis=2)]
            found.append(np.concatenate([part.reshape(len(nodes), -1) for part in parts], axis=1))
    whole = np.concatenate(found)
    assert np.isfinite(whole).all()
    return whole


def require_same_function(grown: Any, source: Any, what: str) -> None:
    require_same_bits(computed(grown, source.spec), computed(source), what)


def heads(spec: ModelSpec, times: int) -> dict[str, int]:
    return {"num_heads": times * spec.num_heads, "num_kv_heads": times * spec.num_kv_heads}


ALONE: dict[str, Callable[[ModelSpec, int], dict[str, int]]] = {
    "wider feed-forward": lambda spec, n: {"ffn": spec.ffn + [1, 15, 31, 64, 100][n]},
    "more layers": lambda spec, n: {"num_layers": spec.num_layers + 1 + n % 2},
    "more heads": lambda spec, n: heads(spec, 2 + n % 2),
    "wider stream": lambda spec, n: {"hidden": spec.hidden * [4, 16][n % 2]},
}


@pytest.mark.parametrize("construction", ALONE)
def test_each_construction_alone_keeps_every_bit(construction: str) -> None:
    @few
    @given(specs(), seeds, st.integers(0, 4))
    def check(spec: ModelSpec, seed: int, how: int) -> None:
        # given any small model
        source, changes = random_checkpoint(spec, seed), ALONE[construction](spec, how)
        require_preserving(spec, replace(spec, **changes))
        # when it is enlarged in one way, then no bit of a logit changes
        require_same_function(enlarged(source, **changes), source, f"{construction} {changes}")

    check()


@few
@given(specs(), seeds)
def test_all_together_keep_every_bit(spec: ModelSpec, seed: int) -> None:
    changes = {name: n for one in ALONE.values() for name, n in one(spec, 1).items()}
    source = random_checkpoint(spec, seed)
    require_same_function(enlarged(source, **changes), source, str(changes))


# --- controls: each of these must be caught -----------------------------------------------------


def edited(
    checkpoint: MemoryCheckpoint, name: str, edit: Callable[[Floats], Any]
) -> MemoryCheckpoint:
    """The same with one tensor's values changed in place."""
    values = checkpoint.tensor(name).float32()
    edit(values)
    return MemoryCheckpoint(checkpoint.spec, checkpoint.tensors | {name: bf16_tensor(values)})


def fill(rows: slice, columns: slice) -> Callable[[Floats], None]:
    def edit(values: Floats) -> None:
        values[rows, columns] = 0.02

    return edit


ALL, PADS = slice(None), slice(64, None)
NOT_ZERO: dict[str, tuple[dict[str, int], str, Callable[[Floats], None]]] = {
    "a new unit that is heard": (
        {"ffn": 128},
        "model.layers.0.mlp.down_proj.weight",
        fill(ALL, slice(96, None)),
    ),
    "a new head that is heard": (
        heads(QWEN3, 2),
        "model.layers.1.self_attn.o_proj.weight",
        fill(ALL, slice(4 * 32, None)),
    ),
    "a new layer that attends": (
        {"num_layers": 3},
        "model.layers.2.self_attn.o_proj.weight",
        fill(ALL, ALL),
    ),
    "a new layer that feeds forward": (
        {"num_layers": 3},
        "model.layers.2.mlp.down_proj.weight",
        fill(ALL, ALL),
    ),
    "a new dimension that is embedded": (
        {"hidden": 256},
        "model.embed_tokens.weight",
        fill(ALL, PADS),
    ),
    "a new dimension that is written": (
        {"hidden": 256},
        "model.layers.0.mlp.down_proj.weight",
        fill(PADS, ALL),
    ),
}


@pytest.mark.parametrize("control", NOT_ZERO)
def test_a_filler_that_is_not_zero_is_caught(control: str) -> None:
    changes, name, edit = NOT_ZERO[control]
    source = random_checkpoint(QWEN3, 1)
    good = enlarged(source, **changes)
    require_same_function(good, source, "without the fault")
    with pytest.raises(AssertionError, match="floats differ"):
        require_same_function(edited(good, name, edit), source, control)


def test_units_that_stand_in_front_are_caught() -> None:
    # given the same new units with the same zero columns, before the old ones
    source = random_checkpoint(QWEN3, 1)
    good = enlarged(source, ffn=101)
    moved = {
        name: WeightTensor(np.roll(tensor.array, 5, axis=int("down_proj" in name)), "BF16")
        for name, tensor in good.tensors.items()
        if ".mlp." in name
    }
    # then other inputs share a chain, and the sums round otherwise
    require_same_function(good, source, "behind")
    with pytest.raises(AssertionError, match="floats differ"):
        require_same_function(MemoryCheckpoint(good.spec, good.tensors | moved), source, "in front")


def test_a_stream_twice_as_wide_is_caught_and_refused() -> None:
    source = random_checkpoint(QWEN3, 1)
    with pytest.raises(AssertionError, match="floats differ"):
        require_same_function(enlarged(source, hidden=128), source, "twice as wide")
    with pytest.raises(ModelError, match="hidden size 64 cannot become 128"):
        require_preserving(QWEN3, replace(QWEN3, hidden=128))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_quarter_of_epsilon_instead_of_a_scaled_stream_is_wrong_with_q_and_k_norms(
    qk_norm: bool,
) -> None:
    # given a stream that keeps its scale while epsilon is quartered
    spec = replace(QWEN3, qk_norm=qk_norm, norm_eps=1e-6)
    source, small = random_checkpoint(spec, 1), replace(spec, norm_eps=2.5e-7)
    wide = enlarged(source, hidden=256)
    tensors = dict(wide.tensors)
    for name in tensors:
        scale = {"model.embed_tokens.weight": 0.5, "model.norm.weight": 2.0}.get(name, 1.0)
        scale = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else scale
        tensors[name] = bf16_tensor(tensors[name].float32() * np.float32(scale))
    # (its streams compare with those of the source when they are doubled again)
    found = computed(MemoryCheckpoint(replace(small, hidden=256), tensors), spec)
    found[:, spec.vocab :] *= 2
    # then it is right without those norms (the control is fair), and wrong with them
    assert same_bits(found, computed(source)) is not qk_norm


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden": 192}, "only multiples by powers of four"),
        ({"hidden": 32}, "only multiples by powers of four"),
        ({"num_layers": 1}, "num_layers=2, more than the 1"),
        ({"ffn": 95}, "ffn=96, more than the 95"),
        ({"num_heads": 8}, "4 query heads on 2 K/V heads cannot become 8 on 2"),
        ({"vocab": 128}, "only layers, heads, hidden and feed-forward"),
        ({"norm_eps": 2.5e-7}, "only layers, heads, hidden and feed-forward"),
    ],
)
def test_a_shape_that_would_change_the_function_is_refused(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        require_preserving(QWEN3, replace(QWEN3, **changes))


def test_weights_that_cannot_be_scaled_exactly_are_refused() -> None:
    def to_smallest(values: Floats) -> None:
        values[0] = 2.0**-126

    source = edited(random_checkpoint(QWEN3, 1), "model.norm.weight", to_smallest)
    with pytest.raises(ModelError, match="1 values that are not exact in bf16"):
        enlarged(source, hidden=256)
    # a construction that scales nothing keeps them
    require_same_function(enlarged(source, ffn=128), source, "not scaled")


def test_weights_of_another_type_are_refused() -> None:
    source = random_checkpoint(QWEN3, 1)
    single = {n: WeightTensor(t.float32(), "F32") for n, t in source.tensors.items()}
    with pytest.raises(ModelError, match="is F32: only bf16"):
        enlarged(MemoryCheckpoint(QWEN3, single), ffn=128)


@pytest.mark.parametrize("num_layers", [6, 12])
@pytest.mark.parametrize("name", SIZES)
def test_every_size_can_be_reached_by_the_embedded_family(name: str, num_layers: int) -> None:
    size = SIZES[name]
    source = replace(EMBEDDED, num_layers=num_layers)
    drafter = read_spec(resolve_model("forerun-code") / "drafters" / "lm")
    target = target_spec(source, size)
    assert target.num_parameters == pytest.approx(size.num_parameters, rel=0.02)
    grown = drafter_spec(drafter, "lm", size, spec_bytes(target))
    assert 1 / 20 <= spec_bytes(grown) / spec_bytes(target) < 1 / 19


def test_a_model_deeper_than_the_size_is_refused() -> None:
    deep = replace(EMBEDDED, num_layers=17)
    with pytest.raises(ModelError, match="num_layers=17, more than the 16"):
        target_spec(deep, SIZES["260M"])
