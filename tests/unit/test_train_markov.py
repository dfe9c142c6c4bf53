"""Training the Markov heads of block drafters: what reaches them, where they begin, how they
resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from test_train_blocks import (  # noqa: E402  after the skip
    SLOTS,
    VOCAB,
    some_text,
    stirred,
    tiny_drafter,
    tiny_target,
)

from forerun.backends.torch.block import BlockDrafter, initialise  # noqa: E402
from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.errors import OptionError  # noqa: E402
from forerun.models.drafter_spec import MarkovKind  # noqa: E402
from forerun.train.anchors import AnchoredText  # noqa: E402
from forerun.train.blocks import block_logits  # noqa: E402
from forerun.train.checkpoints import write_state  # noqa: E402
from forerun.train.drafter_export import load_drafter  # noqa: E402
from forerun.train.drafting import Drafting  # noqa: E402
from forerun.train.inherit import start_at_drafter  # noqa: E402
from forerun.train.lm import CHECKPOINT_NAME, Budget, Recipe, Run, load_checkpoint  # noqa: E402
from forerun.train.losses import DraftLoss  # noqa: E402
from forerun.train.reading import head_of, read  # noqa: E402

NEAR, FAR = 0.1, 0.5  # shares of a bias' spread


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(name="target", scope="module")
def _target() -> Decoder:
    return tiny_target()


def batch(target: Decoder, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Windows, anchors, and what a drafter reads of them."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(2, VOCAB, (2, 25), generator=generator)
    anchors = torch.tensor([[1, 5, 19], [2, 3, 17]])
    return windows, anchors, read(target, windows[:, :-1], (1, 3)).features


def fresh(target: Decoder, seed: int = 5, **changes: object) -> BlockDrafter:
    """A drafter as a training makes it."""
    model = tiny_drafter(target, **changes)
    initialise(model, seed)
    return model


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MarkovKind)
@torch.no_grad()
def test_given_many_drafts_then_each_slot_hears_its_own_draft_step_by_step(
    target: Decoder, kind: MarkovKind
) -> None:
    model = tiny_drafter(target, markov_kind=kind)
    windows, anchors, features = batch(target)

    together = block_logits(model, target, windows, anchors, features, SLOTS)

    spec, forgetful = model.spec, torch.zeros_like(together)
    for row, at in ((row, at) for row in range(2) for at in range(3)):
        anchor = int(anchors[row, at])
        fed = torch.full((1, spec.block_len), spec.mask_id)
        fed[0, 0] = windows[row, anchor]
        places, seen = anchor + SLOTS, torch.arange(anchor)
        fused, inputs = model.fuse(features[row, None, :anchor]), target.embed(fed)
        masks = model.masks(seen, torch.tensor([[anchor]]), spec.block_len)
        hidden = model.blocks(fused, seen, inputs, places, masks)[0]
        state = nothing = torch.zeros(1, spec.markov_rank)
        for slot in range(spec.max_drafted):
            before, own = windows[row, anchor + slot, None], hidden[slot, None]
            state, bias = model.markov_step(state, before, own)
            alone = model.logits(own, head_of(target))
            torch.testing.assert_close(together[row, at, slot], (alone + bias)[0])
            forgetful[row, at, slot] = (alone + model.markov_step(nothing, before, own)[1])[0]
    # and a control: with every slot beginning anew an rnn would say something else
    assert ((together - forgetful).abs().max() > 1e-2) == (kind is MarkovKind.RNN)


def mixing_gradient(target: Decoder, model: BlockDrafter, num_slots: int) -> torch.Tensor:
    """Of the loss, by the matrix of the Markov head."""
    windows, anchors, _ = batch(target)
    drafting, ends = Drafting(target, DraftLoss()), torch.tensor([24, 24])
    drafting(model, windows, anchors, ends, SLOTS[:num_slots]).backward()
    is_rnn = model.spec.markov_kind is MarkovKind.RNN
    layer = getattr(model.markov_head, "joint_proj" if is_rnn else "gate_proj")
    assert layer.bias.grad.abs().max() > 0
    gradient: torch.Tensor = layer.weight.grad
    return gradient


def test_given_a_loss_then_a_gradient_reaches_every_part_of_the_head(target: Decoder) -> None:
    rnn = mixing_gradient(target, tiny_drafter(target, markov_kind=MarkovKind.RNN), 4)
    gated = mixing_gradient(target, tiny_drafter(target, markov_kind=MarkovKind.GATED), 4)

    rank = rnn.shape[0] // 3
    for part in (*rnn.split(rank), rnn[:, :rank], rnn[:, rank : 2 * rank], rnn[:, 2 * rank :]):
        assert part.abs().amax(0 if len(part) == rank else 1).min() > 0
    assert gated.abs().min() > 0


def test_control_given_one_slot_then_no_gradient_reaches_what_only_later_ones_hear(
    target: Decoder,
) -> None:
    gradient = mixing_gradient(target, tiny_drafter(target, markov_kind=MarkovKind.RNN), 1)

    rank = gradient.shape[0] // 3
    assert gradient[: 2 * rank].abs().max() == 0
    assert gradient[:, :rank].abs().max() == 0
    assert gradient[2 * rank :, rank:].abs().max() > 0


@pytest.mark.parametrize("kind", MarkovKind)
def test_given_tokens_that_repeat_the_one_before_the_last_then_only_an_rnn_learns_them(
    target: Decoder, kind: MarkovKind
) -> None:
    """Slot 1 is to say what stands before slot 0, of which the token before it says nothing."""
    model, num_words = fresh(target, markov_kind=kind), 6
    pairs = torch.cartesian_prod(torch.arange(num_words), torch.arange(num_words))
    hidden = torch.zeros(len(pairs), 2, model.spec.body.hidden)
    optimizer = torch.optim.Adam(model.markov_head.parameters(), lr=0.03)
    for _ in range(100):
        logits = model.markov(pairs, hidden)[:, 1, :num_words]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, pairs[:, 0]).backward()
        optimizer.step()

    said = model.markov(pairs, hidden)[:, 1, :num_words].argmax(-1)
    share = (said == pairs[:, 0]).float().mean().item()

    assert share == pytest.approx(1.0 if kind is MarkovKind.RNN else 1 / num_words)


# --- where a head begins --------------------------------------------------------------------------


def trained(target: Decoder, **changes: object) -> BlockDrafter:
    """A drafter whose codes are as large as those of the embedded one."""
    model = tiny_drafter(target, **changes)
    if model.spec.markov_rank:
        generator = torch.Generator().manual_seed(8)
        torch.nn.init.normal_(model.markov_head.markov_w1.weight, std=0.44, generator=generator)
    return model


@torch.no_grad()
def spread_apart(model: BlockDrafter, like: BlockDrafter) -> float:
    """How far apart two drafters' biases are, in standard deviations of what `like` adds."""
    generator = torch.Generator().manual_seed(6)
    before = torch.randint(VOCAB, (20, 4), generator=generator)
    hidden = torch.randn(20, 4, model.spec.body.hidden, generator=generator)
    expected = like.markov(before, hidden)
    difference = model.markov(before, hidden) - expected
    return float(difference.square().mean().sqrt() / expected.std())


WIDER = [
    (MarkovKind.RNN, 8),
    (MarkovKind.RNN, 12),
    (MarkovKind.GATED, 8),
    (MarkovKind.GATED, 12),
    (MarkovKind.VANILLA, 12),
]


@pytest.mark.parametrize(("kind", "rank"), WIDER)
def test_given_a_trained_plain_head_then_one_that_hears_more_begins_by_saying_the_same(
    target: Decoder, kind: MarkovKind, rank: int
) -> None:
    like = trained(target)
    model = fresh(target, markov_kind=kind, markov_rank=rank)
    assert spread_apart(model, like) > FAR  # control: it does not of itself

    start_at_drafter(model, like)

    assert spread_apart(model, like) < NEAR
    for name, value in like.state_dict().items():
        assert name.startswith("markov_head.") or torch.equal(model.state_dict()[name], value)


def test_given_parameters_that_were_something_else_then_it_begins_the_same(
    target: Decoder,
) -> None:
    like = trained(target)
    for kind in MarkovKind:
        model = stirred(fresh(target, markov_kind=kind, markov_rank=12), 4)
        start_at_drafter(model, like)
        assert spread_apart(model, like) < NEAR, kind


@pytest.mark.parametrize("kind", [MarkovKind.RNN, MarkovKind.GATED])
def test_given_a_head_that_began_as_a_plain_one_then_a_gradient_reaches_its_matrix(
    target: Decoder, kind: MarkovKind
) -> None:
    model = fresh(target, markov_kind=kind, markov_rank=12)
    start_at_drafter(model, trained(target))

    assert mixing_gradient(target, model, 4).abs().max() > 0


@pytest.mark.parametrize("kind", MarkovKind)
def test_given_a_drafter_of_the_same_kind_and_rank_then_all_of_it_is_copied(
    target: Decoder, kind: MarkovKind
) -> None:
    like = trained(target, markov_kind=kind)
    model = fresh(target, markov_kind=kind)

    start_at_drafter(model, like)

    assert all(map(torch.equal, model.state_dict().values(), like.state_dict().values()))


def test_given_a_drafter_without_a_markov_head_then_a_new_one_adds_nothing(target: Decoder) -> None:
    model = fresh(target, markov_kind=MarkovKind.RNN)

    start_at_drafter(model, trained(target, markov_rank=0))

    before, hidden = torch.tensor([[2, 3]]), torch.randn(1, 2, model.spec.body.hidden)
    assert model.markov(before, hidden).abs().max() == 0


REFUSED = {
    "more layers": ({"num_layers": 3}, {}, "of another shape"),
    "fewer layers": ({"num_layers": 1}, {}, "of another shape"),
    "other taps": ({"num_taps": 3}, {}, "of another shape"),
    "a wider head": ({"markov_rank": 12}, {"markov_kind": MarkovKind.RNN}, "'vanilla' of rank 12"),
    "another kind": ({"markov_kind": MarkovKind.RNN}, {}, "'rnn' of rank 8.*'vanilla' of rank 8"),
    "a narrower one of its kind": (
        {"markov_kind": MarkovKind.RNN},
        {"markov_kind": MarkovKind.RNN, "markov_rank": 12},
        "'rnn' of rank 8.*'rnn' of rank 12",
    ),
    "none": ({}, {"markov_rank": 0}, "'vanilla' of rank 8.*none"),
}


@pytest.mark.parametrize(("theirs", "own", "sentence"), REFUSED.values(), ids=REFUSED)
def test_given_a_drafter_of_another_shape_then_it_is_refused_and_nothing_is_copied(
    target: Decoder, theirs: dict[str, object], own: dict[str, object], sentence: str
) -> None:
    model = fresh(target, **own)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(OptionError, match=f"{sentence}.*none to start from"):
        start_at_drafter(model, trained(target, **theirs))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- checkpoints ----------------------------------------------------------------------------------


def stopped(target: Decoder, directory: Path, num_steps: int, **changes: object) -> BlockDrafter:
    """A drafter of a training that ends after so many steps, and goes on if it has begun."""
    run = Run(tiny_drafter(target, **changes), Recipe(rows=2, warmup_steps=2), directory)
    batches = AnchoredText(some_text(6, 25), 2, 4, 4, 0)
    run.train(batches.at, Drafting(target, DraftLoss()), Budget(steps=num_steps))
    return run.model


@pytest.mark.parametrize("kind", MarkovKind)
def test_given_a_training_that_is_not_over_then_its_drafter_is_read_and_goes_on(
    target: Decoder, tmp_path: Path, kind: MarkovKind
) -> None:
    model = stopped(target, tmp_path / "run", 2, markov_kind=kind)

    found = load_drafter(tmp_path, target.spec)

    assert found.spec == model.spec
    assert type(found.spec.markov_kind) is MarkovKind
    assert all(map(torch.equal, found.state_dict().values(), model.state_dict().values()))
    resumed = stopped(target, tmp_path / "run", 3, markov_kind=kind)
    assert not torch.equal(resumed.fc.weight, model.fc.weight)
    moved = resumed.markov_head.state_dict()
    assert not any(
        torch.equal(moved[name], one) for name, one in model.markov_head.state_dict().items()
    )


def test_given_a_training_of_another_kind_then_it_is_not_resumed(
    target: Decoder, tmp_path: Path
) -> None:
    stopped(target, tmp_path / "run", 1, markov_kind=MarkovKind.RNN)

    with pytest.raises(OptionError, match="of another shape than asked for"):
        stopped(target, tmp_path / "run", 2, markov_kind=MarkovKind.GATED)


def test_given_a_checkpoint_from_before_there_were_kinds_then_its_head_is_plain(
    target: Decoder, tmp_path: Path
) -> None:
    model = stopped(target, tmp_path / "run", 1)
    path = tmp_path / "run" / CHECKPOINT_NAME
    state = load_checkpoint(path)
    del state["spec"]["markov_kind"]
    write_state(state, path)

    found = load_drafter(tmp_path, target.spec)

    assert found.spec == replace(model.spec, markov_kind=MarkovKind.VANILLA)
