"""Tiny drafters that read features, texts for them, and what their drafts are held against."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from forerun.backends.torch.block import BlockDrafter  # noqa: E402  after the skip
from forerun.backends.torch.eagle import EagleDrafter  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.models.drafter_spec import BlockSpec, EagleSpec, MarkovKind  # noqa: E402
from forerun.models.spec import ModelSpec, Rope  # noqa: E402
from forerun.models.weights import WeightTensor  # noqa: E402
from forerun.options import SamplingParams  # noqa: E402
from forerun.protocols import NUM_MARGINS, NUM_RANKS, Growth, GrowthPlan, Sampler  # noqa: E402

VOCAB, HIDDEN, NUM_BLOCKS, MASK = 40, 16, 8, 1
TREE = (0, 0, 1, 1, 2, 3, 3)  # parents of seven drafted nodes, three levels


def body(**changes):
    fields = {
        "family": "qwen3", "hidden": HIDDEN, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 8, "ffn": 24, "vocab": VOCAB, "max_position": 512, "norm_eps": 1e-6,
        "rope": Rope(), "tied": True, "qkv_bias": False, "qk_norm": True, "eos_ids": (0,),
        "bos_id": None, "dtype": "float32",
    }  # fmt: skip
    return ModelSpec(**{**fields, **changes})


def block_spec(**changes):
    fields = {
        "body": body(), "block_len": 5, "is_shifted": True, "tap_layers": (1, 3),
        "target_hidden": HIDDEN, "num_target_layers": 6, "mask_id": MASK, "windows": (0, 0),
        "is_causal": (False, False), "markov_rank": 4,
    }  # fmt: skip
    return BlockSpec(**{**fields, **changes})


def eagle_spec(**changes):
    fields = {
        "body": body(family="llama", num_layers=1, qk_norm=False, tied=False),
        "tap_layers": (1, 2, 3), "target_hidden": HIDDEN, "num_target_layers": 6,
        "target_vocab": VOCAB, "has_token_map": False,
    }  # fmt: skip
    return EagleSpec(**{**fields, **changes})


class InMemory:
    """A module's tensors as a drafter's file would give them."""

    def __init__(self, module):
        self.spec, self._tensors = module.spec, module.state_dict()
        has_map = "d2t" in self._tensors
        self.token_map = module.target_ids().numpy() if has_map else None

    def tensor(self, name):
        return WeightTensor(self._tensors[name].float().numpy(), "F32")

    def drop_pages(self):
        """Nothing is mapped."""


def random_module(spec, seed=0):
    module = (BlockDrafter if isinstance(spec, BlockSpec) else EagleDrafter)(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(centre, 0.3, generator=generator)
        if spec.has_token_map:
            ids = torch.randperm(VOCAB, generator=generator)[: spec.head_vocab].sort().values
            module.d2t.copy_(ids - torch.arange(spec.head_vocab))
    return module


def table(dtype=torch.float64):
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(9)).to(dtype)


def opened(module, dtype=torch.float64):
    return TorchFeatureBackend(InMemory(module), table=table(dtype), num_blocks=NUM_BLOCKS)


def a_text(length, spec, seed=3):
    """Tokens, the last pending, and features of all but that one."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(length - 1, spec.feature_width)).astype(np.float32)
    return rng.integers(2, VOCAB, length).astype(np.int32), features


def plan_of(texts, committed, *, growth=None, depth=3, budget=12, temperature=0.0):
    starts = np.cumsum([0] + [len(tokens) for tokens in texts]).astype(np.int32)
    num_rows = len(texts)
    blocks = np.arange(num_rows * 3, dtype=np.int32).reshape(3, num_rows).T
    return GrowthPlan(
        catch_up=np.concatenate(texts),
        catch_up_starts=starts,
        committed=np.array(committed, np.int32),
        block_table=np.ascontiguousarray(blocks),
        samplers=[Sampler(SamplingParams(temperature=temperature), 5)] * num_rows,
        budgets=np.full(num_rows, budget, np.int32),
        depths=np.full(num_rows, depth, np.int32),
        growth=growth or Growth(Draw.POINT, TREE),
        acceptance=np.ones((num_rows, NUM_RANKS, NUM_MARGINS), np.float32),
    )


def absorb(backend, tokens, features, first, end):
    """Read features of positions `first` to `end`."""
    part = plan_of([tokens[first : end + 1]], [first])
    backend.absorb(
        part.catch_up, part.catch_up_starts, part.committed, part.block_table, features[first:end]
    )


def drafted(backend, tokens, features, first=0, **options):
    plan = plan_of([tokens[first:]], [first], **options)
    (draft,) = backend.grow(plan, features[first:])
    return draft


def assert_alike(one, other):
    assert one.tree.tokens.tolist() == other.tree.tokens.tolist()
    assert one.tree.parents.tolist() == other.tree.parents.tolist()
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def chains(draft):
    """Of every node with children: the tokens from the pending one down to it, and those children
    with their probabilities."""
    tree = draft.tree
    for node in sorted(set(tree.parents.tolist()[1:])):
        below = np.flatnonzero(tree.parents == node)
        law = draft.scores[below] / draft.scores[node]
        yield tree.tokens[tree.path(node)].tolist(), tree.tokens[below].tolist(), law


def assert_is_law(tokens, shares, logits):
    law = torch.softmax(logits, -1)
    best = torch.argsort(-law, stable=True)[: len(tokens)]
    assert tokens == best.tolist()
    np.testing.assert_allclose(shares, law[best].numpy(), rtol=1e-5)


EVERY_KIND = {
    "shifted": block_spec(),
    "same position": block_spec(is_shifted=False, markov_rank=0),
    "causal": block_spec(is_causal=(True, True)),
    "gated": block_spec(markov_kind=MarkovKind.GATED),
    "recurrent": block_spec(markov_kind=MarkovKind.RNN),
    "windows": block_spec(windows=(4, 0), is_causal=(True, False)),
    "few tokens": block_spec(is_shifted=False, markov_rank=0, draft_vocab=24),
    "few tokens, markov": block_spec(draft_vocab=24),
    "few tokens, gated": block_spec(markov_kind=MarkovKind.GATED, draft_vocab=24),
    "few tokens, recurrent": block_spec(markov_kind=MarkovKind.RNN, draft_vocab=24),
    "eagle": eagle_spec(),
    "eagle, normed residual": eagle_spec(norm_before_residual=True),
}
kinds = pytest.mark.parametrize("spec", EVERY_KIND.values(), ids=EVERY_KIND)
block_kinds = pytest.mark.parametrize(
    "spec", [one for one in EVERY_KIND.values() if isinstance(one, BlockSpec)]
)
