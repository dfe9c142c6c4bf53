"""EAGLE-3 in torch: trees and unrolled texts, against chains read token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from feature_cases import (  # noqa: E402  after the skip
    TREE,
    VOCAB,
    a_text,
    assert_is_law,
    chains,
    drafted,
    eagle_spec,
    opened,
    random_module,
    table,
)

from forerun.backends.torch.eagle import unroll_mask  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.protocols import Growth  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def eagle_logits(module, tokens, features, drafted_tokens):
    """Logits below a chain: one uncached pass over the text, then token by token."""
    fused = module.fuse(torch.from_numpy(features).double())
    read = torch.tensor(tokens[1:].tolist())
    x, past = module.layer(
        table()[read][None], fused[None], torch.arange(len(read)), unroll_mask(len(read), 0)
    )
    x = x[:, -1:]
    for depth, token in enumerate(drafted_tokens, start=1):
        position = torch.tensor([len(read) - 1 + depth])
        everything = torch.ones(1, len(read) + depth, dtype=torch.bool)
        x, past = module.layer(table()[[token]][None], x, position, everything, past)
    return module.target_logits(x)[0, 0].detach()


@pytest.mark.parametrize("normed", [False, True])
def test_given_an_eagle_tree_then_every_path_reads_as_a_chain_of_its_own(normed):
    spec = eagle_spec(norm_before_residual=normed)
    module = random_module(spec).double()
    tokens, features = a_text(40, spec)

    draft = drafted(opened(module), tokens, features)

    assert draft.tree.parents.tolist() == [-1, *TREE]
    assert draft.num_passes == 3
    for path, children, law in chains(draft):
        assert_is_law(children, law, eagle_logits(module, tokens, features, path[1:]))


def test_given_best_first_growth_then_every_path_of_it_reads_as_a_chain_too():
    module = random_module(eagle_spec()).double()
    tokens, features = a_text(12, module.spec)
    growth = Growth(Draw.POINT, None, width=3, frontier=2)

    draft = drafted(opened(module), tokens, features, growth=growth, depth=4)

    assert draft.num_drafted == 12
    for path, children, law in chains(draft):
        assert_is_law(children, law, eagle_logits(module, tokens, features, path[1:]))


def test_given_a_sibling_in_a_path_then_the_logits_are_others():
    module = random_module(eagle_spec()).double()
    tokens, features = a_text(12, module.spec)

    below = [eagle_logits(module, tokens, features, [token, 7]) for token in (3, 4)]

    assert not torch.allclose(*below, atol=1e-2)


def test_given_an_unrolled_text_then_every_row_reads_as_its_draft_would():
    module = random_module(eagle_spec()).double()
    tokens, features = a_text(14, module.spec)
    num_rows, num_steps = 9, 4
    x, past = module.fuse(torch.from_numpy(features).double())[None, :num_rows], None
    unrolled = []
    for step in range(num_steps):
        ids = torch.tensor(tokens[1 + step : 1 + step + num_rows].tolist())
        positions = torch.arange(num_rows) + step
        x, past = module.layer(table()[ids][None], x, positions, unroll_mask(num_rows, step), past)
        unrolled.append(module.logits(x)[0].detach())

    for row in range(num_rows):
        text, known = tokens[: row + 2], features[: row + 1]
        for step in range(num_steps):
            below = tokens[row + 2 : row + 2 + step].tolist()
            torch.testing.assert_close(
                unrolled[step][row], eagle_logits(module, text, known, below)
            )


def test_given_a_token_map_then_only_its_tokens_are_drafted():
    spec = eagle_spec(
        body=replace(eagle_spec().body, vocab=7), has_token_map=True, target_vocab=VOCAB
    )
    module = random_module(spec)
    known = torch.tensor([2, 5, 6, 11, 20, 33, 39])
    module.d2t.copy_(known - torch.arange(7))
    tokens, features = a_text(20, spec)
    wide = Growth(Draw.POINT, (0,) * 12)

    draft = drafted(opened(module), tokens, features, growth=wide)

    assert sorted(draft.tree.tokens[1:].tolist()) == known.tolist()
    logits = eagle_logits(module.double(), tokens, features, [])
    assert torch.isinf(logits).sum() == VOCAB - 7


def test_given_no_feature_then_eagle_drafts_nothing():
    spec = eagle_spec()
    tokens, features = a_text(1, spec)

    assert drafted(opened(random_module(spec)), tokens, features).num_drafted == 0
