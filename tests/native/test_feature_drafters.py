"""Drafters that read features, in the native core: the torch reference's laws, and the same bits
however a text is chunked, whatever rows stand beside it, on every instruction path."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import CORES, PATHS, opened, random_checkpoint, require_same_bits, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "unit"))

from feature_cases import (  # noqa: E402  after the skip
    EVERY_KIND,
    HIDDEN,
    NUM_BLOCKS,
    VOCAB,
    InMemory,
    a_text,
    absorb,
    body,
    drafted,
    eagle_spec,
    kinds,
    plan_of,
    random_module,
)

from forerun.backends.native_features import NativeFeatureBackend  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.errors import BackendError  # noqa: E402
from forerun.protocols import Growth  # noqa: E402

TARGET = random_checkpoint(
    replace(tiny_spec(vocab=VOCAB, tied=True), hidden=HIDDEN, head_dim=8, num_layers=1), 4
)
TABLE = torch.from_numpy(TARGET.tensor("model.embed_tokens.weight").float32().copy())
WIDE = Growth(Draw.COUPLED, width=3, frontier=4)


def rounded(module):
    """The module with the weights that the native core keeps: bf16."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return module


def native(module, isa=None, cores=None, num_blocks=NUM_BLOCKS):
    with opened(TARGET, isa=isa) as target:  # what is lent stays, although the target is closed
        return NativeFeatureBackend(InMemory(module), target, num_blocks=num_blocks, cores=cores)


def assert_same_bits(one, other):
    assert one.tree.tokens.tolist() == other.tree.tokens.tolist()
    assert one.tree.parents.tolist() == other.tree.parents.tolist()
    require_same_bits(one.scores, other.scores, "scores")


@kinds
def test_given_a_text_then_probabilities_are_those_of_the_torch_reference(spec):
    module = rounded(random_module(spec))
    reference = TorchFeatureBackend(InMemory(module), table=TABLE, num_blocks=NUM_BLOCKS)
    near, same, by_another = 0, 0, 0
    for seed in range(12):
        tokens, features = a_text(20 + 3 * seed, spec, seed)
        expected = drafted(reference, tokens, features)
        draft = drafted(native(module), tokens, features)
        same += expected.tree.tokens.tolist() == draft.tree.tokens.tolist()
        near += abs(best_score(draft, expected) / expected.scores[1] - 1) < 0.05
        other = drafted(native(random_module(spec, seed=1)), tokens, features)
        by_another += abs(best_score(other, expected) / expected.scores[1] - 1) < 0.05

    assert near >= 11
    assert same >= 6  # seven nodes each, of random weights: bf16 activations tip some near-ties
    assert by_another <= 3


def best_score(draft, expected):
    """What a draft says of the token that another holds likeliest; 0 where it has it not."""
    is_same = draft.tree.tokens[1] == expected.tree.tokens[1]
    return draft.scores[1] if is_same else 0.0


@kinds
def test_given_a_text_in_chunks_then_the_draft_has_the_bits_of_the_text_at_once(spec):
    module = random_module(spec)
    tokens, features = a_text(45, spec)
    whole = drafted(native(module), tokens, features, growth=WIDE, temperature=0.7)

    backend = native(module)
    for first, end in ((0, 7), (7, 8), (8, 37)):
        absorb(backend, tokens, features, first, end)
    chunked = drafted(backend, tokens, features, first=37, growth=WIDE, temperature=0.7)
    assert_same_bits(chunked, whole)

    # what a draft wrote behind the text is no part of the next one
    again = drafted(backend, tokens, features, first=37, growth=WIDE, temperature=0.7)
    assert_same_bits(again, whole)


@kinds
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_given_company_then_each_row_has_the_bits_it_has_alone(spec, lengths, seed):
    module = random_module(spec)
    rows = [a_text(length, spec, seed + at) for at, length in enumerate(lengths)]
    plan = plan_of([tokens for tokens, _ in rows], [0] * len(rows), growth=WIDE)

    backend = native(module, cores=CORES[:1], num_blocks=3 * len(rows))
    together = backend.grow(plan, np.concatenate([features for _, features in rows]))

    for draft, (tokens, features) in zip(together, rows, strict=True):
        alone = drafted(native(module, cores=CORES[:1]), tokens, features, growth=WIDE)
        assert_same_bits(draft, alone)


@kinds
@pytest.mark.parametrize("isa", PATHS)
def test_given_any_instruction_path_then_the_bits_are_the_same(spec, isa):
    module = random_module(spec)
    tokens, features = a_text(45, spec)

    portable, other = (
        drafted(native(module, path), tokens, features, growth=WIDE, temperature=1.0)
        for path in ("portable", isa)
    )

    assert_same_bits(other, portable)


@kinds
def test_given_a_tree_then_each_of_its_paths_has_the_bits_of_a_chain(spec):
    module = random_module(spec)
    tokens, features = a_text(33, spec)
    tree = drafted(native(module), tokens, features, growth=Growth(Draw.POINT, (0, 0, 1, 2, 2)))
    chain = drafted(native(module), tokens, features, growth=Growth(Draw.POINT, (0, 1)))

    assert tree.tree.tokens[[1, 3]].tolist() == chain.tree.tokens[1:].tolist()
    require_same_bits(tree.scores[[1, 3]], chain.scores[1:], "scores of a path")


def test_given_a_map_of_tokens_then_drafts_are_tokens_of_the_target():
    spec = eagle_spec(
        body=body(family="llama", num_layers=1, qk_norm=False, tied=False, vocab=7),
        has_token_map=True,
    )
    module = rounded(random_module(spec))
    ids = torch.tensor([3, 5, 8, 13, 21, 34, 39])
    module.d2t.copy_(ids - torch.arange(7))
    tokens, features = a_text(20, spec)
    reference = TorchFeatureBackend(InMemory(module), table=TABLE, num_blocks=NUM_BLOCKS)

    draft = drafted(native(module), tokens, features, growth=WIDE)

    assert set(draft.tree.tokens[1:].tolist()) <= set(ids.tolist())
    expected = drafted(reference, tokens, features, growth=Growth(Draw.POINT, (0,)))
    assert draft.tree.tokens[1] == expected.tree.tokens[1]


def test_given_nothing_to_draft_then_features_are_still_taken_in():
    module = random_module(EVERY_KIND["shifted"])
    tokens, features = a_text(45, module.spec)
    whole = drafted(native(module), tokens, features)

    backend = native(module)
    nothing = drafted_part(backend, tokens[:38], features[:37], budget=0)
    assert nothing.num_drafted == 0

    assert_same_bits(drafted(backend, tokens, features, first=37), whole)


def drafted_part(backend, tokens, features, **options):
    (draft,) = backend.grow(plan_of([tokens], [0], **options), features)
    return draft


def test_given_a_target_of_another_width_then_it_is_refused():
    spec = eagle_spec(body=body(hidden=32, family="llama", num_layers=1, qk_norm=False))

    with pytest.raises(BackendError, match="equal widths"):
        native(random_module(spec))


@kinds
def test_given_features_that_are_no_numbers_then_nothing_is_drafted_and_nothing_remains(spec):
    module = random_module(spec)
    tokens, features = a_text(20, spec)
    whole = drafted(native(module), tokens, features, growth=WIDE)
    backend = native(module)

    broken = features.copy()
    broken[3] = np.nan
    assert drafted(backend, tokens, broken, growth=WIDE).num_drafted == 0

    assert_same_bits(drafted(backend, tokens, features, growth=WIDE), whole)


@kinds
def test_given_shared_weights_then_each_draft_has_the_bits_it_has_alone(spec):
    module = random_module(spec)
    packed = native(module)
    with opened(TARGET) as target:
        shares = NativeFeatureBackend(
            InMemory(module), target, num_blocks=NUM_BLOCKS, weights=packed.weights
        )
    # both have a text at the same places of their own blocks, at the same time
    texts = [a_text(30, spec, seed) for seed in (3, 4)]
    for backend, (tokens, features) in zip((packed, shares), texts, strict=True):
        absorb(backend, tokens, features, 0, 20)
    first = drafted(packed, texts[0][0], texts[0][1], first=20, growth=WIDE)
    packed.close()
    second = drafted(shares, texts[1][0], texts[1][1], first=20, growth=WIDE)

    assert_same_bits(first, drafted(native(module), *texts[0], growth=WIDE))
    assert_same_bits(second, drafted(native(module), *texts[1], growth=WIDE))
    assert shares.weights.num_bytes > 0
