"""Every implementation of block drafters and EAGLE-3 against the second reading's known answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exact.second_reading_cases import SPECS, Case, answers, apart, cases, drawn_tensor, unanswered
from forerun.draft import Draft, Draw
from forerun.models.drafter_spec import DrafterSpec, MarkovKind
from forerun.models.spec import ModelSpec
from forerun.models.weights import WeightTensor, expected_tensors
from forerun.options import SamplingParams
from forerun.protocols import (
    BLOCK_LEN,
    NUM_MARGINS,
    NUM_RANKS,
    FeatureBackend,
    Growth,
    GrowthPlan,
    Sampler,
)

torch = pytest.importorskip("torch")

from forerun.backends.torch.block import BlockDrafter  # noqa: E402  after the skip
from forerun.backends.torch.decoder import Rotation  # noqa: E402
from forerun.backends.torch.eagle import EagleDrafter  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402

ALL = {case.name: case for case in cases()}
BLOCKS = [name for name, case in ALL.items() if case.is_block]
MARKOVS = [name for name in BLOCKS if ALL[name].spec["markov_rank"]]
EAGLES = [name for name, case in ALL.items() if not case.is_block]
# In standard deviations of the logits. The modules take their angles in float32, as checkpoints are
# trained with; with exact ones everything else is held to float64.
PRECISIONS = {
    "float64, exact angles": (torch.float64, 1e-9),
    "float64": (torch.float64, 1e-5),
    "float32": (torch.float32, 1e-4),
}
NUM_BLOCKS, NUM_SEEDS, CLEAR, MOST_CLEAR, MOST_LOST = 4, 48, 0.1, 12, 0.01
precisions = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- the modules ----------------------------------------------------------------------------------


@pytest.fixture
def limits(precision: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], tuple[Any, float]]:
    """Of a case, the type to compute in and how close it must come."""

    def limits_of(case: Case) -> tuple[Any, float]:
        body = case.spec["body"]
        half = body["head_dim"] // 2
        exact = body["rope"]["theta"] ** (-torch.arange(half, dtype=torch.float64) / half)

        def at(_: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
            angles = (positions.unsqueeze(-1) * exact).repeat(1, 2)
            return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))

        if precision == "float64, exact angles":
            monkeypatch.setattr(Rotation, "at", staticmethod(at))
        return PRECISIONS[precision]

    return limits_of


def module_of(case: Case, dtype: torch.dtype) -> Any:
    """The torch module with the case's tensors."""
    module = (BlockDrafter if case.is_block else EagleDrafter)(case.built_spec()).to(dtype)
    tensors = {name: torch.from_numpy(one.copy()) for name, one in case.tensors.items()}
    module.load_state_dict(tensors)
    return module.requires_grad_(requires_grad=False)


def as_tensor(values: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def block_hidden(case: Case, module: Any, dtype: torch.dtype, num_slots: int) -> torch.Tensor:
    """What comes out of all layers `[num_slots, H]`."""
    ids = [case.pending] + [case.spec["mask_id"]] * (num_slots - 1)
    places, anchors = torch.arange(case.start), torch.tensor([[case.start]])
    return module.blocks(
        module.fuse(as_tensor(case.features, dtype)[None]),
        places,
        as_tensor(case.table[ids], dtype)[None],
        case.start + torch.arange(num_slots),
        module.masks(places, anchors, num_slots),
    )[0]


@precisions
@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_module_gives_the_known_logits(name: str, limits: Any) -> None:
    case = ALL[name]
    dtype, close = limits(case)
    module, head = module_of(case, dtype), as_tensor(case.head, dtype)
    for key in ("logits", "short_logits"):
        expected = case.answers[key]
        found = module.logits(block_hidden(case, module, dtype, len(expected)), head)
        assert apart(found.numpy(), expected) < close, key


@precisions
@pytest.mark.parametrize("name", MARKOVS)
def test_both_heads_of_the_module_give_the_known_figures(name: str, limits: Any) -> None:
    # given the known greedy block
    case = ALL[name]
    dtype, close = limits(case)
    module = module_of(case, dtype)
    hidden = block_hidden(case, module, dtype, case.spec["block_len"])
    before = torch.tensor([case.pending, *case.answers["greedy"][:-1]])
    # then each slot adds what the tokens before it say, and is as sure of it
    logits = module.logits(hidden, as_tensor(case.head, dtype)) + module.markov(before, hidden)
    assert apart(logits.numpy(), case.answers["greedy_logits"]) < close
    if case.spec["has_confidence"]:
        sure = torch.sigmoid(module.confidence(hidden, before))
        assert apart(sure.numpy(), case.answers["confidence"]) < close


@precisions
@pytest.mark.parametrize("name", EAGLES)
def test_the_eagle_module_gives_the_known_logits(name: str, limits: Any) -> None:
    case = ALL[name]
    dtype, close = limits(case)
    module, table = module_of(case, dtype), as_tensor(case.table, dtype)
    # given the text's rows in one pass
    causal = torch.ones(case.start, case.start, dtype=torch.bool).tril()[None, None]
    embedded, fused = table[case.tokens[1:]][None], module.fuse(as_tensor(case.features, dtype))
    rows, past = module.layer(embedded, fused[None], torch.arange(case.start), causal)
    states, lineages = [rows[:, -1:]], [[case.start - 1]]
    # and below them the tree, node by node
    for node, (token, parent) in enumerate(zip(case.drafted, case.parents, strict=True)):
        lineages.append([*lineages[parent], case.start + node])
        visible = torch.arange(case.start + node + 1) < case.start
        visible[lineages[-1]] = True
        place = torch.tensor([case.start + len(lineages[-1]) - 2])
        embedded, mask = table[token][None, None], visible[None, None, None]
        state, past = module.layer(embedded, states[parent], place, mask, past)
        states.append(state)
    # then every node says what is known
    found = module.logits(torch.cat(states, dim=1)[0])
    assert apart(found.numpy(), case.answers["logits"]) < close


# --- the backends ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class InMemory:
    """A checkpoint of bf16 tensors without files, of a drafter or of its target."""

    spec: DrafterSpec | ModelSpec
    tensors: dict[str, NDArray[Any]]
    token_map: NDArray[np.int64] | None = None
    own_table: bool = False
    own_head: bool = False

    def tensor(self, name: str) -> WeightTensor:
        bits = self.tensors[name].astype(np.float32).view(np.uint32) >> np.uint32(16)
        return WeightTensor(bits.astype(np.uint16), "BF16")

    def drop_pages(self) -> None:
        """Nothing is mapped."""


def drafter_of(case: Case) -> InMemory:
    tensors = {name: one for name, one in case.tensors.items() if name != "d2t"}
    offsets = case.tensors.get("d2t")
    ids = None if offsets is None else offsets + np.arange(len(offsets))
    return InMemory(case.built_spec(), tensors, ids)


@contextmanager
def opened_torch(case: Case, dtype: torch.dtype) -> Iterator[FeatureBackend]:
    table, head = as_tensor(case.table, dtype), as_tensor(case.head, dtype)
    backend = TorchFeatureBackend(drafter_of(case), table=table, head=head, num_blocks=NUM_BLOCKS)
    yield backend
    backend.close()


@contextmanager
def opened_native(case: Case) -> Iterator[FeatureBackend]:
    """Beside a target of one layer that lends the case's table and head."""
    native = pytest.importorskip("forerun.backends.native_features", exc_type=ImportError)
    from forerun.backends.native import NativeBackend

    body = replace(case.built_spec().body, family="qwen3", num_layers=1, qk_norm=True)
    body = replace(body, vocab=len(case.table), tied=False)
    tensors: dict[str, NDArray[Any]] = {
        name: drawn_tensor(0, name, shape) for name, shape in expected_tensors(body).items()
    }
    tensors |= {"model.embed_tokens.weight": case.table, "lm_head.weight": case.head}
    target = NativeBackend(
        InMemory(body, tensors), cores=(min(os.sched_getaffinity(0)),), num_blocks=NUM_BLOCKS
    )
    drafter = native.NativeFeatureBackend(
        drafter_of(case), target, num_blocks=NUM_BLOCKS, cores=(min(os.sched_getaffinity(0)),)
    )
    yield drafter
    drafter.close()
    target.close()


Opened = Callable[[Case], Any]
BACKENDS: dict[str, tuple[Opened, float]] = {  # and how far a logarithm of a probability may be off
    "torch-float64": (lambda case: opened_torch(case, torch.float64), 1e-5),  # scores are float32
    "torch-float32": (lambda case: opened_torch(case, torch.float32), 1e-4),
    "native": (opened_native, 0.2),
}
backends = pytest.mark.parametrize(("opened", "close"), BACKENDS.values(), ids=BACKENDS)


def plan_of(case: Case, first: int, last: int, parents: Sequence[int]) -> GrowthPlan:
    """One greedy row that catches up with positions `first` to `last`, the pending one."""
    tokens = case.tokens[first : last + 1].astype(np.int32)
    return GrowthPlan(
        catch_up=tokens,
        catch_up_starts=np.array([0, len(tokens)], np.int32),
        committed=np.array([first], np.int32),
        block_table=np.arange(NUM_BLOCKS, dtype=np.int32)[::-1][None].copy(),
        samplers=[Sampler(SamplingParams(temperature=0.0), seed=5)],
        budgets=np.array([len(parents)], np.int32),
        depths=np.array([len(parents)], np.int32),
        growth=Growth(Draw.POINT, tuple(parents)),
        acceptance=np.ones((1, NUM_RANKS, NUM_MARGINS), np.float32),
    )


def chain_of(backend: FeatureBackend, case: Case, chunk: int | None = None) -> Draft:
    """The greedy chain as long as the known one, the text read at once or in chunks."""
    assert case.start + len(case.answers["greedy"]) < NUM_BLOCKS * BLOCK_LEN
    firsts = range(0, case.start, chunk or case.start)
    for first in firsts[:-1]:
        plan = plan_of(case, first, firsts[1] + first, (0,))
        backend.absorb(
            plan.catch_up,
            plan.catch_up_starts,
            plan.committed,
            plan.block_table,
            case.features[first : first + firsts[1]],
        )
    parents = range(len(case.answers["greedy"]))
    plan = plan_of(case, firsts[-1], case.start, parents)
    (draft,) = backend.grow(plan, case.features[firsts[-1] :])
    return draft


def known_log_scores(case: Case) -> NDArray[np.float64]:
    """Of each known greedy token, the logarithm of its path's probability."""
    logits = case.answers["greedy_logits"]
    best = logits.max(axis=-1)
    return np.cumsum(-np.log(np.exp(logits - best[:, None]).sum(axis=-1)))


@backends
@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("name", ALL)
def test_backends_draft_the_known_chain(
    name: str, chunk: int | None, opened: Opened, close: float
) -> None:
    case = ALL[name]
    with opened(case) as backend:
        draft = chain_of(backend, case, chunk)
    assert draft.tree.tokens[1:].tolist() == case.answers["greedy"].tolist()
    assert draft.scores is not None
    assert np.abs(np.log(draft.scores[1:]) - known_log_scores(case)).max() < close


@cache
def clear_cases(name: str) -> tuple[Case, ...]:
    """Cases of other seeds, those without near ties."""
    found = []
    for seed in range(1000, 1000 + NUM_SEEDS):
        case = unanswered(name, seed)
        case.answers.update(answers(case))
        best = np.sort(case.answers["greedy_logits"], axis=-1)[:, -2:]
        if (best[:, 1] - best[:, 0]).min() >= CLEAR * case.answers["greedy_logits"].std():
            found.append(case)
    assert len(found) >= 5
    return tuple(found[:MOST_CLEAR])


def share_lost(
    opened: Opened, name: str, changed: Callable[[Case], Case] = lambda case: case
) -> float:
    """Of blocks without near ties, the share in which some token is not the known one."""
    lost = []
    for case in clear_cases(name):
        with opened(changed(case)) as backend:
            draft = chain_of(backend, case)
        lost.append(draft.tree.tokens[1:].tolist() != case.answers["greedy"].tolist())
    return float(np.mean(lost))


@backends
@pytest.mark.parametrize("name", SPECS)
def test_backends_draft_alike_with_other_weights(name: str, opened: Opened, close: float) -> None:
    assert share_lost(opened, name) <= MOST_LOST


@backends
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("block_same_position", {"is_causal": (True, True)}),
        ("block_shifted_markov", {"mask_id": 2}),
        ("block_window_causal", {"windows": (9, 0)}),
        ("block_gated", {"mask_id": 2}),
        ("block_gated", {"markov_kind": MarkovKind.VANILLA}),
        ("block_rnn", {"mask_id": 2}),
        ("block_rnn", {"markov_kind": MarkovKind.VANILLA}),
        ("eagle_full_vocabulary", {"norm_before_residual": True}),
    ],
)
def test_a_backend_with_another_spec_is_told(
    name: str, wrong: dict[str, Any], opened: Opened, close: float
) -> None:
    assert share_lost(opened, name, lambda case: replace(case, spec=case.spec | wrong)) > 0.5
