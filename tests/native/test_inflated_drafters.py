"""A drafter beside an enlarged target says what the small one says beside the small target.

Here in float64, where a power of two too many is not hidden by rounding, by the torch modules; the
bits themselves are compared where the native core reads such drafters (`test_inflated_files.py`).
Each scaling and each place of a block has a control: without it the figures must differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from builders import bf16_tensor, tiny_spec

from forerun.errors import ModelError
from forerun.models.drafter_files import drafter_tensors
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec, MarkovKind
from forerun.models.weights import WeightTensor
from forerun.tools.drafter_inflation import (
    Targets,
    drafter_bytes,
    grown_drafter_rows,
    matched,
    widened,
)
from forerun.tools.inflation import LEAST_RATIO, SIZES, target_spec

torch = pytest.importorskip("torch")
TARGET = tiny_spec(family="qwen3", qk_norm=True, num_layers=6)
NUM_CONTEXT, NUM_SLOTS = 9, 4
Weights = Mapping[str, WeightTensor]
TOO_DIFFERENT = 1e-3  # of the largest figure: a control must be further off than this


@dataclass(frozen=True, slots=True)
class MemoryDrafter:
    """What inflation asks of a drafter, without files."""

    spec: DrafterSpec
    tensors: Weights

    def tensor(self, name: str) -> WeightTensor:
        return self.tensors[name]


def block_spec(**changes: Any) -> BlockSpec:
    spec = BlockSpec(
        body=replace(TARGET, num_layers=2),
        block_len=NUM_SLOTS,
        is_shifted=True,
        tap_layers=(1, 3),
        target_hidden=TARGET.hidden,
        num_target_layers=TARGET.num_layers,
        mask_id=1,
        windows=(0, 5),
        is_causal=(False, True),
        markov_rank=8,
        has_confidence=True,
    )
    return replace(spec, **changes)


def eagle_spec(**changes: Any) -> EagleSpec:
    spec = EagleSpec(
        body=replace(TARGET, num_layers=1, qk_norm=False, vocab=50),
        tap_layers=(1, 2, 3),
        target_hidden=TARGET.hidden,
        num_target_layers=TARGET.num_layers,
        target_vocab=TARGET.vocab,
        has_token_map=False,
    )
    return replace(spec, **changes)


def targets(*, times: int = 4, tied: bool = True) -> Targets:
    before = replace(TARGET, tied=tied)
    after = replace(before, hidden=times * before.hidden, num_heads=8, num_kv_heads=4, num_layers=8)
    return Targets(before, after)


def random_drafter(spec: DrafterSpec) -> MemoryDrafter:
    rng = np.random.default_rng(1)
    tensors = {}
    for name, shape in drafter_tensors(spec).items():
        middle, spread = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, shape[-1] ** -0.5)
        tensors[name] = bf16_tensor(rng.normal(middle, spread, shape).astype(np.float32))
    return MemoryDrafter(spec, tensors)


def enlarged(source: MemoryDrafter, spec: DrafterSpec, to: Targets) -> MemoryDrafter:
    tensors = {}
    for name, shape in drafter_tensors(spec).items():
        rows = list(grown_drafter_rows(source, spec, name, to, 3))
        tensors[name] = WeightTensor(np.concatenate(rows).reshape(shape), "BF16")
    return MemoryDrafter(spec, tensors)


def more(spec: Any) -> Any:
    """The shape with more of everything that may be more."""
    body = replace(spec.body, num_heads=8, num_kv_heads=4, ffn=spec.body.ffn + 70)
    if isinstance(spec, EagleSpec):
        return replace(spec, body=body)
    body = replace(body, num_layers=body.num_layers + 1)
    return replace(spec, body=body, windows=(*spec.windows, 0), is_causal=(*spec.is_causal, False))


# --- what a drafter says ------------------------------------------------------------------------


def stream_of(to: Targets, num: int, seed: int) -> tuple[Any, Any]:
    """Random states of the small target, and the same as the large one has them: times s, zeros."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (num, to.before.hidden)))
    large = torch.zeros(num, to.after.hidden, dtype=torch.float64)
    large[:, : to.before.hidden] = values * (to.after.hidden // to.before.hidden) ** 0.5
    return values, large


def heads_of(to: Targets) -> tuple[Any, Any]:
    """The heads of both: the table where they are tied, else equal rows with filler behind."""
    small, large = stream_of(to, to.before.vocab, 7)
    if to.before.tied:
        return small, large
    large = torch.full_like(large, 0.02)
    large[:, : to.before.hidden] = small
    return small, large


def said(drafter: MemoryDrafter, to: Targets) -> Any:
    """All that a drafter computes from the same text, read by its target: float64."""
    side = int(drafter.spec.target_hidden == to.after.hidden)
    taps = [stream_of(to, NUM_CONTEXT, 20 + n)[side] for n in range(len(drafter.spec.tap_layers))]
    features = torch.cat(taps, dim=-1)[None]
    module = module_of(drafter)
    table, head = stream_of(to, to.before.vocab, 7)[side], heads_of(to)[side]
    with torch.no_grad():
        if isinstance(drafter.spec, BlockSpec):
            return block_said(module, features, table, head)
        return eagle_said(module, features, table, to)


def module_of(drafter: MemoryDrafter) -> Any:
    from forerun.backends.torch.block import BlockDrafter
    from forerun.backends.torch.eagle import EagleDrafter

    kind = BlockDrafter if isinstance(drafter.spec, BlockSpec) else EagleDrafter
    module = kind(drafter.spec).double()
    values = {
        name: torch.from_numpy(tensor.float32().astype(np.float64))
        for name, tensor in drafter.tensors.items()
    }
    module.load_state_dict(values)
    return module


def block_said(module: Any, features: Any, table: Any, head: Any) -> Any:
    context, anchor = torch.arange(NUM_CONTEXT), torch.tensor([[NUM_CONTEXT]])
    inputs = table[torch.tensor([[5, 1, 1, 1]])]
    masks = module.masks(context[None], anchor, NUM_SLOTS)
    slots = torch.arange(NUM_CONTEXT, NUM_CONTEXT + NUM_SLOTS)
    hidden = module.blocks(module.fuse(features), context, inputs, slots, masks)
    previous = torch.tensor([[5, 6, 7, 8]])
    logits = module.logits(hidden, head) + module.markov(previous, hidden)
    return torch.cat([logits.flatten(), module.confidence(hidden, previous).flatten()])


def eagle_said(module: Any, features: Any, table: Any, to: Targets) -> Any:
    from forerun.backends.torch.eagle import unroll_mask

    rows = torch.arange(NUM_CONTEXT)
    embedded = table[torch.arange(11, 11 + NUM_CONTEXT)][None]
    hidden, past = module.layer(embedded, module.fuse(features), rows, unroll_mask(NUM_CONTEXT, 0))
    # and one drafted token below the last, on the layer's own output
    deeper, _ = module.layer(
        table[torch.tensor([[4]])],
        hidden[:, -1:],
        torch.tensor([NUM_CONTEXT]),
        torch.ones(1, 1, 1, NUM_CONTEXT + 1, dtype=torch.bool),
        past,
    )
    return torch.cat([module.logits(hidden).flatten(), module.logits(deeper).flatten()])


def difference(one: Any, other: Any) -> float:
    assert torch.isfinite(one).all()
    return float((one - other).abs().max() / other.abs().max())


CASES: dict[str, tuple[DrafterSpec, Targets]] = {
    "block, tied head": (block_spec(), targets()),
    "block, untied head": (block_spec(), targets(tied=False)),
    "block, 16 times as wide": (block_spec(), targets(times=16)),
    "block, as wide": (block_spec(), targets(times=1)),
    "block, gated": (block_spec(markov_kind=MarkovKind.GATED), targets()),
    "block, recurrent": (block_spec(markov_kind=MarkovKind.RNN), targets()),
    "block, recurrent, untied": (block_spec(markov_kind=MarkovKind.RNN), targets(tied=False)),
    "eagle": (eagle_spec(), targets()),
    "eagle, normed residual": (eagle_spec(norm_before_residual=True), targets()),
    "eagle, 16 times as wide": (eagle_spec(), targets(times=16, tied=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_enlarged_drafter_says_the_same(case: str) -> None:
    spec, to = CASES[case]
    source = random_drafter(spec)
    # given the least shape beside the large target, and one with more of everything
    for grown in (widened(spec, to), more(widened(spec, to))):
        # then it says what the small one says
        assert difference(said(enlarged(source, grown, to), to), said(source, to)) < 1e-12


# --- controls: each of these must be caught -----------------------------------------------------


def scaled_names() -> list[tuple[str, str]]:
    """Every tensor of two cases that carries a power of two."""
    found = []
    for case in ("block, tied head", "eagle", "eagle, normed residual"):
        spec, to = CASES[case]
        source = random_drafter(spec)
        grown = enlarged(source, widened(spec, to), to)
        for name, tensor in source.tensors.items():
            rows, columns = np.atleast_2d(tensor.array).shape
            corner = np.atleast_2d(grown.tensor(name).array)[:rows, :columns]
            same = np.array_equal(corner, np.atleast_2d(tensor.array))
            if not same and name != "fc.weight" and "confidence" not in name:
                found.append((case, name))
    return found


@pytest.mark.parametrize("case", ["block, tied head", "eagle", "eagle, normed residual"])
def test_a_tensor_that_is_not_scaled_is_caught(case: str) -> None:
    spec, to = CASES[case]
    source = random_drafter(spec)
    good = enlarged(source, widened(spec, to), to)
    names = [name for own, name in scaled_names() if own == case]
    assert len(names) > 4
    for name in names:
        values = good.tensor(name).float32()
        own = np.atleast_2d(values)[: len(np.atleast_2d(source.tensor(name).array))]
        own *= 2 if "o_proj" not in name and "down_proj" not in name else 0.5
        bad = MemoryDrafter(good.spec, {**good.tensors, name: bf16_tensor(values)})
        assert difference(said(bad, to), said(source, to)) > TOO_DIFFERENT, name


MISPLACED = {
    "block, tied head": ("fc.weight", "confidence_head.proj.weight"),
    "block, gated": ("markov_head.gate_proj.weight",),
    "block, recurrent": ("markov_head.joint_proj.weight",),
    "eagle": ("fc.weight", "midlayer.self_attn.k_proj.weight"),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_blocks_of_columns_side_by_side_are_caught(case: str) -> None:
    # given the old columns of all blocks in front, as if the matrix had one block
    spec, to = CASES[case]
    source = random_drafter(spec)
    good = enlarged(source, widened(spec, to), to)
    for name in MISPLACED[case]:
        values, own = good.tensor(name).float32() * 0, source.tensor(name).float32()
        values[: own.shape[0], : own.shape[1]] = own
        bad = MemoryDrafter(good.spec, {**good.tensors, name: bf16_tensor(values)})
        assert difference(said(bad, to), said(source, to)) > TOO_DIFFERENT, name


@pytest.mark.parametrize("name", ["fc.weight", "layers.1.self_attn.o_proj.weight"])
def test_a_new_dimension_that_is_written_is_caught(name: str) -> None:
    spec, to = CASES["block, tied head"]
    source = random_drafter(spec)
    good = enlarged(source, widened(spec, to), to)
    values = good.tensor(name).float32()
    values[spec.body.hidden :] = 0.2
    bad = MemoryDrafter(good.spec, {**good.tensors, name: bf16_tensor(values)})
    assert difference(said(bad, to), said(source, to)) > TOO_DIFFERENT


# --- shapes and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "spec"), [("dspark", block_spec()), ("eagle3", eagle_spec())])
def test_a_matched_drafter_has_its_share_of_the_target_and_little_more(
    kind: str, spec: DrafterSpec
) -> None:
    to = targets()
    target_bytes = 40 * drafter_bytes(widened(spec, to))
    grown = matched(spec, to, kind, target_bytes)
    share = drafter_bytes(grown) / target_bytes
    assert LEAST_RATIO[kind] == Fraction(1, 10)
    assert 0.1 <= share < 0.12
    assert (grown.target_hidden, grown.num_target_layers) == (256, 8)
    assert grown.tap_layers == spec.tap_layers
    # and one that is large enough is only widened
    assert matched(spec, to, kind, 10) == widened(spec, to)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_room_for_a_drafter_of_its_shape(name: str) -> None:
    body = replace(TARGET, hidden=256, head_dim=64, ffn=768, num_layers=12, vocab=4096)
    to = Targets(body, target_spec(body, SIZES[name]))
    spec = block_spec(
        body=replace(body, num_layers=3),
        target_hidden=256,
        num_target_layers=12,
        windows=(0, 0, 0),
        is_causal=(False,) * 3,
    )
    target_bytes = 2 * SIZES[name].num_parameters
    grown = matched(spec, to, "dspark", target_bytes)
    assert 0.1 <= drafter_bytes(grown) / target_bytes < 0.105


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_target_layers": 5}, "reads a target of 5 layers"),
        ({"target_hidden": 32}, "layers 32 wide"),
        ({"body": replace(TARGET, hidden=32)}, "is 32 wide"),
    ],
)
def test_a_drafter_of_another_target_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        widened(block_spec(**changes), targets())


def test_a_width_whose_taps_would_share_a_sum_is_refused() -> None:
    before = replace(TARGET, hidden=48)
    to = Targets(before, replace(before, hidden=192))
    spec = block_spec(body=replace(TARGET, hidden=48), target_hidden=48)
    with pytest.raises(ModelError, match="48 is no multiple of 32"):
        widened(spec, to)
