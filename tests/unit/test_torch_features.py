"""Drafters that read features, in torch: chunks, company, types and trees change nothing."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from feature_cases import (  # noqa: E402  after the skip
    NUM_BLOCKS,
    InMemory,
    a_text,
    absorb,
    assert_alike,
    block_spec,
    body,
    drafted,
    eagle_spec,
    kinds,
    opened,
    plan_of,
    random_module,
)

from forerun.backends.torch.backend import TorchBackend  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.errors import BackendError  # noqa: E402
from forerun.models.weights import open_checkpoint  # noqa: E402
from forerun.protocols import Growth  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# --- every drafter --------------------------------------------------------------------------------


@kinds
def test_given_a_text_in_chunks_then_the_draft_is_that_of_the_text_at_once(spec):
    module = random_module(spec)
    tokens, features = a_text(45, spec)  # more than one block of K/V
    whole = drafted(opened(module), tokens, features)

    backend = opened(module)
    for first, end in ((0, 7), (7, 8), (8, 37)):
        absorb(backend, tokens, features, first, end)

    assert_alike(drafted(backend, tokens, features, first=37), whole)
    # nothing new since: the last state is still there, and the draft before left no trace
    assert_alike(drafted(backend, tokens, features, first=44), whole)


@kinds
def test_given_other_features_then_the_draft_is_another(spec):
    module = random_module(spec)
    tokens, features = a_text(20, spec)
    before = drafted(opened(module), tokens, features).scores

    features[-1] += 1.0

    assert not np.allclose(before[1:], drafted(opened(module), tokens, features).scores[1:])


@kinds
def test_given_company_then_each_row_drafts_as_alone(spec):
    module = random_module(spec)
    rows = [a_text(length, spec, seed) for seed, length in enumerate((3, 37, 12))]
    plan = plan_of([tokens for tokens, _ in rows], [0, 0, 0])

    together = opened(module).grow(plan, np.concatenate([features for _, features in rows]))

    for draft, (tokens, features) in zip(together, rows, strict=True):
        assert_alike(draft, drafted(opened(module), tokens, features))


@pytest.mark.parametrize("spec", [block_spec(), eagle_spec()], ids=["block", "eagle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_a_narrow_type_then_the_best_probability_is_near_that_of_float64(spec, dtype):
    module = random_module(spec)
    tokens, features = a_text(20, spec)

    exact, narrow = (
        drafted(opened(module, one), tokens, features, growth=Growth(Draw.POINT, (0,)))
        for one in (torch.float64, dtype)
    )

    assert abs(exact.scores[1] - narrow.scores[1]) < (1e-4 if dtype == torch.float32 else 0.1)


def test_given_features_of_another_width_then_both_shapes_are_named():
    spec = block_spec()
    tokens, features = a_text(6, spec)

    with pytest.raises(BackendError, match=r"features are \[5, 31\], \[5, 32\] are needed"):
        drafted(opened(random_module(spec)), tokens, features[:, 1:])


def test_given_a_target_beside_it_then_table_and_head_are_borrowed(tiny_checkpoint_dir):
    target = TorchBackend(open_checkpoint(tiny_checkpoint_dir("qwen3", 0)), num_blocks=1)
    spec = block_spec(body=body(hidden=64, vocab=272), target_hidden=64)
    module = random_module(spec)
    tokens, features = a_text(9, spec)

    beside = TorchFeatureBackend.beside(InMemory(module), target, NUM_BLOCKS)

    given = target.borrowed[0]
    explicit = TorchFeatureBackend(InMemory(module), table=given, num_blocks=NUM_BLOCKS)
    assert_alike(drafted(beside, tokens, features), drafted(explicit, tokens, features))
    assert beside.spec is spec
    assert beside.num_blocks == NUM_BLOCKS
