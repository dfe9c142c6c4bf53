"""Block drafters in torch: what each slot sees, against one uncached pass."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from feature_cases import (  # noqa: E402  after the skip
    MASK,
    TREE,
    a_text,
    assert_is_law,
    block_kinds,
    block_spec,
    chains,
    drafted,
    opened,
    random_module,
    table,
)

from forerun.backends.torch.block import BlockDrafter, block_mask, initialise  # noqa: E402
from forerun.backends.torch.features import FREE_SLOTS  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.protocols import Growth  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def slot_logits(module, tokens, features, depth, *, reach=0):
    """`[slots V]` of one uncached pass; a `reach` of 1 lets the anchor's own features in."""
    spec = module.spec
    pending = len(tokens) - 1
    num_slots = depth + (not spec.is_shifted)
    num_context = len(features)
    context = torch.arange(num_context)
    ids = torch.tensor([int(tokens[-1])] + [MASK] * (num_slots - 1))
    masks = module.masks(context, torch.tensor([[pending]]), num_slots)
    for mask in masks:
        mask[..., pending : pending + reach] = True
    x = module.blocks(
        module.fuse(torch.from_numpy(features).double())[None],
        context,
        table()[ids][None],
        pending + torch.arange(num_slots),
        masks,
    )
    return module.logits(x[0], table())


@block_kinds
def test_given_a_tree_then_every_node_reads_its_slot_and_the_token_above(spec):
    module = random_module(spec).double()
    tokens, features = a_text(20, spec)

    draft = drafted(opened(module), tokens, features)

    assert draft.tree.parents.tolist() == [-1, *TREE]
    assert draft.num_passes == 1
    slots = slot_logits(module, tokens, features, spec.max_drafted).detach()  # fed whole
    for path, children, law in chains(draft):
        bias = module.markov(torch.tensor(path[-1])).detach()
        assert_is_law(children, law, slots[len(path) - spec.is_shifted] + bias)


def test_given_the_anchors_own_features_then_the_slots_say_something_else():
    spec = block_spec()
    module = random_module(spec).double()
    tokens, features = a_text(20, spec)
    _, leaked = a_text(21, spec)

    right = slot_logits(module, tokens, features, 3)

    behind_a_mask = slot_logits(module, tokens, np.vstack([features, leaked[-1:]]), 3)
    torch.testing.assert_close(behind_a_mask, right)
    seen = slot_logits(module, tokens, np.vstack([features, leaked[-1:]]), 3, reach=1)
    assert not torch.allclose(seen, right, atol=1e-2)


def test_given_causal_layers_then_fewer_slots_say_the_same_and_else_they_do_not():
    for is_causal in (True, False):
        spec = block_spec(is_causal=(is_causal, is_causal))
        module = random_module(spec).double()
        tokens, features = a_text(20, spec)

        short, long = (slot_logits(module, tokens, features, depth) for depth in (2, 4))

        assert torch.allclose(short, long[:2]) is is_causal


@block_kinds
def test_given_more_depth_than_slots_then_the_draft_ends_with_the_slots(spec):
    tokens, features = a_text(9, spec)
    chain = Growth(Draw.POINT, tuple(range(9)))

    draft = drafted(opened(random_module(spec)), tokens, features, growth=chain, depth=9)

    assert draft.num_drafted == spec.max_drafted


def test_given_no_context_then_a_block_is_drafted_all_the_same():
    spec = block_spec()
    tokens, features = a_text(1, spec)

    assert drafted(opened(random_module(spec)), tokens, features).num_drafted == len(TREE)


@block_kinds
def test_given_several_anchors_then_each_block_is_as_if_alone(spec):
    module = random_module(spec).double()
    tokens, features = a_text(20, spec)
    anchors = torch.tensor([[4, 11, 19]])
    ids = torch.full((1, 3, 4), MASK)
    ids[..., 0] = torch.from_numpy(tokens.astype(np.int64))[anchors]
    positions = anchors[..., None] + torch.arange(4)

    x = module.blocks(
        module.fuse(torch.from_numpy(features).double())[None],
        torch.arange(19),
        table()[ids].flatten(1, 2),
        positions.flatten(1),
        module.masks(torch.arange(19), anchors, 4),
    )

    depth = 3 + spec.is_shifted
    together = module.logits(x, table()).unflatten(1, (3, 4))[0]
    for block, anchor in zip(together, anchors[0].tolist(), strict=True):
        alone = slot_logits(module, tokens[: anchor + 1], features[:anchor], depth)
        torch.testing.assert_close(block, alone)


def test_given_a_window_then_what_is_that_far_back_is_hidden():
    mask = block_mask(torch.arange(6), torch.tensor([[6]]), 2, window=3, is_causal=True)

    assert mask[0, 0].int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 1]]


def test_given_a_fresh_module_then_blocks_leave_their_inputs_and_seeds_repeat():
    spec = block_spec(has_confidence=True)
    one, other = BlockDrafter(spec), BlockDrafter(spec)
    initialise(one, 4)
    initialise(other, 4)

    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    inputs = table(torch.float32)[None, :3]
    fused = one.fuse(torch.ones(1, 2, spec.feature_width))
    mask = block_mask(torch.arange(2), torch.tensor([[2]]), 3)
    assert torch.equal(one.blocks(fused, torch.arange(2), inputs, torch.arange(2, 5), mask), inputs)
    assert one.markov(torch.tensor([3, 4])).abs().max() == 0
    assert one.confidence(inputs, torch.tensor([[2, 3, 4]])).shape == (1, 3)


def test_given_a_long_block_then_free_slots_are_fed_and_beyond_them_what_is_asked_for():
    spec = block_spec(block_len=12)
    module = random_module(spec).double()
    tokens, features = a_text(20, spec)

    for depth, num_fed in ((1, FREE_SLOTS), (10, 10)):
        chain = Growth(Draw.POINT, tuple(range(depth)))
        draft = drafted(opened(module), tokens, features, growth=chain, depth=depth)

        slots = slot_logits(module, tokens, features, num_fed).detach()
        bias = module.markov(torch.tensor(int(tokens[-1]))).detach()
        assert_is_law(draft.tree.tokens[1:2].tolist(), draft.scores[1:2], slots[0] + bias)
