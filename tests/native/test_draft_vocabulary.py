"""Block drafters whose head knows some of the target's tokens: natively what the reference says,
over the target's vocabulary, with no chance for any other token."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import opened, random_checkpoint, tiny_spec

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "unit"))

from feature_cases import (  # noqa: E402  after the skip
    EVERY_KIND,
    HIDDEN,
    NUM_BLOCKS,
    VOCAB,
    InMemory,
    a_text,
    drafted,
    plan_of,
    random_module,
)

from forerun.backends.native_features import NativeFeatureBackend  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.options import SamplingParams  # noqa: E402
from forerun.protocols import Growth, Sampler  # noqa: E402

TARGET = random_checkpoint(
    replace(tiny_spec(vocab=VOCAB, tied=True), hidden=HIDDEN, head_dim=8, num_layers=1), 4
)
TABLE = torch.from_numpy(TARGET.tensor("model.embed_tokens.weight").float32().copy())
CHAIN = Growth(Draw.POINT, (0, 1, 2))
NUM_TEXTS, NEAR = 24, 0.1  # near ties are tipped by bf16
FEW = {name: spec for name, spec in EVERY_KIND.items() if name.startswith("few")}
few = pytest.mark.parametrize("spec", FEW.values(), ids=FEW)


def module_of(spec):
    module = random_module(spec)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return module


def natively(module):
    with opened(TARGET) as target:
        return NativeFeatureBackend(InMemory(module), target, num_blocks=NUM_BLOCKS)


def reference(module):
    return TorchFeatureBackend(InMemory(module), table=TABLE, num_blocks=NUM_BLOCKS)


def chains(backend, spec):
    texts = [a_text(10 + seed, spec, seed) for seed in range(NUM_TEXTS)]
    return [drafted(backend, tokens, features, growth=CHAIN) for tokens, features in texts]


def clear(draft, spec, seed, module):
    """How many tokens of a greedy chain were chosen with no other one near."""
    tokens, features = a_text(10 + seed, spec, seed)
    wide = Growth(Draw.POINT, (0, 0, 1, 1, 3, 3))
    tree = drafted(reference(module), tokens, features, growth=wide)
    best, second = tree.scores[[1, 3, 5]], tree.scores[[2, 4, 6]]
    ties = np.flatnonzero(np.log(best / second) < NEAR)
    return int(ties[0]) if len(ties) else len(best)


@few
def test_given_clear_choices_then_greedy_proposals_are_those_of_the_reference(spec):
    module = module_of(spec)
    ids = set(module.target_ids().tolist())

    expected, found = chains(reference(module), spec), chains(natively(module), spec)

    num_clear = [clear(draft, spec, seed, module) for seed, draft in enumerate(expected)]
    assert sum(num_clear) > NUM_TEXTS  # of three tokens each
    for draft, own, count in zip(expected, found, num_clear, strict=True):
        assert own.tree.tokens[1 : 1 + count].tolist() == draft.tree.tokens[1 : 1 + count].tolist()
        assert set(own.tree.tokens[1:].tolist()) <= ids

    # control: a map that leads each token to its neighbour's place
    wrong = module_of(spec)
    moved = module.target_ids().roll(1)
    wrong.d2t.copy_(moved - torch.arange(len(moved)))
    others = chains(natively(wrong), spec)
    first = [(a.tree.tokens[1], b.tree.tokens[1]) for a, b in zip(others, expected, strict=True)]
    assert all(a != b for a, b in first)


@few
def test_given_draws_then_they_are_from_a_law_of_the_targets_tokens(spec):
    module = module_of(spec)
    unknown = sorted(set(range(VOCAB)) - set(module.target_ids().tolist()))
    tokens, features = a_text(20, spec)
    growth = Growth(Draw.SAMPLED, (0, 0))

    laws = [
        drafted(backend, tokens, features, growth=growth, temperature=1.0).law
        for backend in (natively(module), reference(module))
    ]

    assert laws[0].shape == (1, VOCAB)
    for law in laws:
        assert not law[:, unknown].any()
        assert law.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.abs(laws[0] - laws[1]).max() < 0.05


@few
@pytest.mark.parametrize("draw", [Draw.POINT, Draw.COUPLED])
def test_given_only_tokens_that_it_does_not_know_then_nothing_is_drafted(spec, draw):
    module = module_of(spec)
    known = module.target_ids().tolist()
    unknown = tuple(sorted(set(range(VOCAB)) - set(known)))
    tokens, features = a_text(20, spec)
    growth = Growth(draw, (0, 1)) if draw is Draw.POINT else Growth(draw, width=2, frontier=2)

    def num_drafted(backend, allowed):
        params = SamplingParams(temperature=0.0, allowed_tokens=allowed)
        plan = plan_of([tokens], [0], growth=growth)
        (draft,) = backend.grow(replace(plan, samplers=[Sampler(params, 5)]), features)
        return draft.num_drafted

    for backend in (natively(module), reference(module)):
        assert num_drafted(backend, unknown) == 0
        assert num_drafted(backend, (*unknown, known[0])) > 0
