"""Drafters that read features, growing drafts further: each kind by its own way of reading."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from builders import EVERY_PATH, require_same_bits, yardstick

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "unit"))

from feature_cases import (  # noqa: E402  after the skip
    EVERY_KIND,
    NUM_BLOCKS,
    VOCAB,
    InMemory,
    a_text,
    kinds,
    opened,
    plan_of,
    random_module,
)
from test_feature_drafters import TABLE, native, rounded  # noqa: E402

from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.forecast import ForecastPlan  # noqa: E402
from forerun.protocols import Growth  # noqa: E402
from forerun.tree import TokenTree  # noqa: E402

CHAIN = Growth(Draw.COUPLED, (0,))


def forecast_of(below, trees, num_branches=3, exits=None):
    every = [range(len(tree)) for tree in trees] if exits is None else exits
    return ForecastPlan(
        below,
        trees,
        [np.array(list(one), np.int32) for one in every],
        np.full(len(trees), num_branches, np.int32),
        3,
        np.zeros(1, np.int32),
    )


def alone(tokens):
    return TokenTree(tokens[-1:].astype(np.int32), np.array([-1], np.int32))


def some_tree(tokens, parents, seed=0):
    drafted = np.random.default_rng(seed).permutation(VOCAB)[: len(parents)]
    return TokenTree(
        np.concatenate([tokens[-1:], drafted]).astype(np.int32), np.array([-1, *parents], np.int32)
    )


def foreseen(backend, tokens, features, tree, growth=CHAIN, depth=1, exits=None, **options):
    below = plan_of([tokens], [0], growth=growth, depth=depth, **options)
    plan = forecast_of(below, [tree], exits=None if exits is None else [exits])
    (draft,) = backend.foresee(plan, features)
    return draft


@kinds
@pytest.mark.parametrize("backend_of", [native, opened])
@pytest.mark.parametrize("draw", [Draw.COUPLED, Draw.POINT])
def test_given_nothing_drafted_then_a_forecast_is_the_tree_of_its_guesses(spec, backend_of, draw):
    module = random_module(spec)
    tokens, features = a_text(33, spec)
    comb = Growth(draw, (0, 0, 0, 1, 2, 3, 4, 5, 6))
    whole = plan_of([tokens], [0], growth=comb, depth=3, temperature=0.7)
    (expected,) = backend_of(module).grow(whole, features)

    chain = Growth(draw, (0, 1))
    found = foreseen(backend_of(module), tokens, features, alone(tokens), chain, 2, temperature=0.7)

    assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
    assert found.tree.parents.tolist() == expected.tree.parents.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
    if draw is Draw.COUPLED:
        require_same_bits(found.margins[1:], expected.margins[1:], "margins")


@kinds
def test_given_a_draft_then_the_native_forecast_is_that_of_the_torch_reference(spec):
    module = rounded(random_module(spec))
    reference = TorchFeatureBackend(InMemory(module), table=TABLE, num_blocks=NUM_BLOCKS)
    best = Growth(Draw.POINT, (0,))
    same, by_another = 0, 0
    for seed in range(12):
        tokens, features = a_text(20 + 3 * seed, spec, seed)
        tree = some_tree(tokens, (0, 0, 1), seed)
        expected = foreseen(reference, tokens, features, tree, best)
        draft = foreseen(native(module), tokens, features, tree, best)
        assert draft.tree.tokens[:4].tolist() == tree.tokens.tolist()
        assert draft.num_passes == expected.num_passes
        same += draft.tree.tokens.tolist() == expected.tree.tokens.tolist()
        other = foreseen(native(random_module(spec, seed=1)), tokens, features, tree, best)
        by_another += other.tree.tokens.tolist() == expected.tree.tokens.tolist()

    assert same >= 6  # of random weights: bf16 activations tip some near-ties
    assert by_another <= 3


@kinds
@pytest.mark.parametrize("isa", EVERY_PATH)
def test_given_company_then_each_row_has_the_bits_it_has_alone_on_every_path(spec, isa):
    module = random_module(spec)
    texts = [a_text(length, spec, length) for length in (5, 40, 17)]
    trees = [some_tree(tokens, (0, 0, 2)[:at]) for at, (tokens, _) in enumerate(texts, start=1)]
    below = plan_of([tokens for tokens, _ in texts], [0] * 3, growth=CHAIN, depth=1)

    together = native(module, isa, num_blocks=9).foresee(
        forecast_of(below, trees), np.concatenate([features for _, features in texts])
    )

    for draft, (tokens, features), tree in zip(together, texts, trees, strict=True):
        one = foreseen(native(module, yardstick(isa)), tokens, features, tree)
        assert draft.tree.tokens.tolist() == one.tree.tokens.tolist()
        require_same_bits(draft.scores, one.scores, "scores")


def test_given_a_draft_as_deep_as_a_block_then_nothing_is_said_past_its_end():
    spec = EVERY_KIND["shifted"]  # five slots
    module = random_module(spec)
    tokens, features = a_text(20, spec)
    deep = some_tree(tokens, (0, 1, 2, 3, 4))
    for backend in (native(module), opened(module)):
        draft = foreseen(backend, tokens, features, deep, depth=3, exits=[4, 5])
        assert draft.num_passes == 1
        assert draft.ranks[5] in range(4)  # the last slot's
        assert draft.tree.parents[6:].tolist() == [4, 4, 4]
