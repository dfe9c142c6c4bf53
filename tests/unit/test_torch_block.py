"""Block drafters in torch: what each slot sees, against one uncached pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from feature_cases import (  # noqa: E402  after the skip
    MASK,
    TREE,
    VOCAB,
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
from forerun.models.drafter_spec import MarkovKind  # noqa: E402
from forerun.protocols import Growth  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def slot_states(module, tokens, features, depth, *, reach=0):
    """`[slots H]` of one uncached pass; a `reach` of 1 lets the anchor's own features in."""
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
    return x[0]


def slot_logits(module, *given, **options):
    """The logits `[slots V]` of `slot_states`."""
    return module.logits(slot_states(module, *given, **options), table())


@block_kinds
@torch.no_grad()
def test_given_a_tree_then_every_node_reads_its_slot_and_the_tokens_above(spec):
    module = random_module(spec).double()
    tokens, features = a_text(20, spec)

    draft = drafted(opened(module), tokens, features)

    assert draft.tree.parents.tolist() == [-1, *TREE]
    assert draft.num_passes == 1
    states = slot_states(module, tokens, features, spec.max_drafted)  # fed whole
    states = states[1 - spec.is_shifted :]
    for path, children, law in chains(draft):
        own = states[: len(path)]
        logits = module.logits(own, table()) + module.markov(torch.tensor(path), own)
        assert_is_law(children, law, logits[-1])


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
    assert one.markov(torch.tensor([[3, 4, 5]]), inputs).abs().max() == 0
    assert one.confidence(inputs, torch.tensor([[2, 3, 4]])).shape == (1, 3)


def test_given_a_long_block_then_free_slots_are_fed_and_beyond_them_what_is_asked_for():
    spec = block_spec(block_len=12)
    module = random_module(spec).double()
    tokens, features = a_text(20, spec)

    for depth, num_fed in ((1, FREE_SLOTS), (10, 10)):
        chain = Growth(Draw.POINT, tuple(range(depth)))
        draft = drafted(opened(module), tokens, features, growth=chain, depth=depth)

        first = slot_states(module, tokens, features, num_fed)[:1].detach()
        bias = module.markov(torch.from_numpy(tokens[-1:].astype(np.int64)), first)
        logits = module.logits(first, table()) + bias
        assert_is_law(draft.tree.tokens[1:2].tolist(), draft.scores[1:2], logits[0].detach())


# --- how the choices before reach a slot ----------------------------------------------------------


def whole_drafts(module, num_drafts, length, seed):
    """Tokens `[N K]` before the slots of drafts, and the slots `[N K H]`."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(VOCAB, (num_drafts, length), generator=generator)
    hidden = module.spec.body.hidden
    return before, torch.randn(num_drafts, length, hidden, generator=generator).double()


def along(module, before, hidden, handed_on=lambda state: state):
    """`markov_step` from slot to slot `[N K V]`; `handed_on` changes the state between them."""
    state, biases = hidden.new_zeros(len(before), module.spec.markov_rank), []
    for slot in range(before.shape[1]):
        state, bias = module.markov_step(handed_on(state), before[:, slot], hidden[:, slot])
        biases.append(bias)
    return torch.stack(biases, dim=1)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(MarkovKind),
    rank=st.integers(1, 9),
    num_drafts=st.integers(1, 4),
    length=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_given_whole_drafts_then_their_slots_one_by_one_say_the_same(
    kind, rank, num_drafts, length, seed
):
    module = random_module(block_spec(markov_kind=kind, markov_rank=rank), seed).double()
    module.requires_grad_(requires_grad=False)
    before, hidden = whole_drafts(module, num_drafts, length, seed)

    whole = module.markov(before, hidden)

    assert whole.shape == (num_drafts, length, VOCAB)
    torch.testing.assert_close(whole, along(module, before, hidden), rtol=1e-12, atol=1e-12)
    nested = module.markov(before[None, :, None], hidden[None, :, None])
    torch.testing.assert_close(nested[0, :, 0], whole, rtol=1e-12, atol=1e-12)
    # and no slot hears what comes behind it
    shorter = module.markov(before[:, :1], hidden[:, :1])
    torch.testing.assert_close(shorter, whole[:, :1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MarkovKind)
@torch.no_grad()
def test_control_given_a_state_forgotten_then_only_an_rnn_says_something_else(kind):
    module = random_module(block_spec(markov_kind=kind)).double()
    before, hidden = whole_drafts(module, 3, 4, 0)

    whole, forgetful = (
        module.markov(before, hidden),
        along(module, before, hidden, torch.zeros_like),
    )

    assert torch.equal(forgetful[:, 0], along(module, before, hidden)[:, 0])
    assert ((forgetful - whole)[:, 1:].abs().max() > 1e-2) == (kind is MarkovKind.RNN)


@pytest.mark.parametrize("kind", MarkovKind)
@torch.no_grad()
def test_given_drafts_that_differ_early_then_only_an_rnn_hears_it_later(kind):
    module = random_module(block_spec(markov_kind=kind)).double()
    before, hidden = whole_drafts(module, 1, 4, 0)
    other = before.clone()
    other[0, 1] = (before[0, 1] + 1) % VOCAB

    apart = (module.markov(other, hidden) - module.markov(before, hidden))[0].abs().amax(-1)

    assert apart[0] == 0
    assert apart[1] > 1e-2
    assert ((apart[2:] > 1e-4) == (kind is MarkovKind.RNN)).all()


@pytest.mark.parametrize("kind", MarkovKind)
@torch.no_grad()
def test_given_other_states_then_all_heads_but_the_plain_one_say_something_else(kind):
    module = random_module(block_spec(markov_kind=kind)).double()
    before, hidden = whole_drafts(module, 1, 4, 0)

    apart = (module.markov(before, hidden.flip(-1)) - module.markov(before, hidden)).abs().max()

    assert (apart > 1e-2) == (kind is not MarkovKind.VANILLA)


def test_given_no_markov_head_then_nothing_is_added_and_no_state_goes_along():
    module = random_module(block_spec(markov_rank=0))
    state, hidden = torch.zeros(2, 0), torch.randn(2, module.spec.body.hidden)

    left, bias = module.markov_step(state, torch.tensor([3, 4]), hidden)

    assert left is state
    assert bias.shape == module.markov(torch.tensor([[3, 4]]), hidden[None]).shape == ()
    assert bias == 0
