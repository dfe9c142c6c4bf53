"""Training a block drafter: its mask, its loss, its anchors, and what it yields on a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from forerun.backends.torch.block import BlockDrafter  # noqa: E402  (needs the extra)
from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.errors import OptionError  # noqa: E402
from forerun.models.drafter_spec import MarkovKind  # noqa: E402
from forerun.models.resolve import resolve_model  # noqa: E402
from forerun.models.weights import EMBEDDING, open_checkpoint  # noqa: E402
from forerun.noise import Purpose, words  # noqa: E402
from forerun.options import SamplingParams  # noqa: E402
from forerun.protocols import Sampler  # noqa: E402
from forerun.sampling import select  # noqa: E402
from forerun.train.anchors import AnchoredText, draw_anchors  # noqa: E402
from forerun.train.batches import Batches  # noqa: E402
from forerun.train.blocks import block_logits, block_spec  # noqa: E402
from forerun.train.drafter_export import load_drafter, write_drafter  # noqa: E402
from forerun.train.drafting import Drafting, Examination  # noqa: E402
from forerun.train.expected import expected, matched_runs, starts_of  # noqa: E402
from forerun.train.inherit import start_at_target  # noqa: E402
from forerun.train.lm import Budget, Recipe, Run, Watch, code_spec, initialise  # noqa: E402
from forerun.train.losses import DraftLoss, labels_of  # noqa: E402
from forerun.train.patience import Patience  # noqa: E402
from forerun.train.reading import head_of, read  # noqa: E402
from forerun.train.text import (  # noqa: E402
    Text,
    joined,
    read_text,
)

VOCAB, MASK = 48, 1
SLOTS = torch.arange(4)
SIZES = {
    "num_layers": 2,
    "block_len": 4,
    "num_taps": 2,
    "mask_id": MASK,
    "is_shifted": True,
    "markov_rank": 8,
}
HEADS = ({"is_shifted": False, "markov_rank": 0}, *({"markov_kind": one} for one in MarkovKind))


def tiny_target(seed: int = 0) -> Decoder:
    model = Decoder(code_spec(hidden=64, layers=6, heads=2, kv_heads=1, ffn=96, vocab=VOCAB))
    initialise(model, seed)
    return stirred(model, seed).requires_grad_(requires_grad=False)


def stirred(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every parameter moved, so that no projection is zero as it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_drafter(target: Decoder, seed: int = 3, **changes: object) -> BlockDrafter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BlockDrafter(block_spec(target.spec, **{**SIZES, **changes}))
    return stirred(model, seed)


def some_text(num_rows: int, length: int, seed: int = 0) -> Text:
    rows = np.random.default_rng(seed).integers(2, VOCAB, (num_rows, length)).astype(np.uint16)
    spans = np.tile(np.array([2, length]), (num_rows, 1))
    return Text(rows, spans, np.zeros(num_rows), np.zeros(num_rows, np.int64))


def one_block(
    model: BlockDrafter, target: Decoder, window: torch.Tensor, anchor: int, *, seen: int
) -> torch.Tensor:
    """The logits `[K V]` of one block by itself, which sees the features of `seen` positions."""
    spec = model.spec
    features = read(target, window[None, :-1], spec.tap_layers).features[:, :seen]
    fed = torch.full((1, spec.block_len), spec.mask_id)
    fed[0, 0] = window[anchor]
    places = anchor + torch.arange(spec.block_len)
    mask = torch.ones(1, 1, spec.block_len, seen + spec.block_len, dtype=torch.bool)
    inputs = target.embed(fed)
    hidden = model.blocks(model.fuse(features), torch.arange(seen), inputs, places, mask)[0]
    previous = window[(places).clamp(max=len(window) - 1)][: spec.max_drafted]
    hidden = hidden[-spec.max_drafted :]
    return model.logits(hidden, head_of(target)) + model.markov(previous, hidden)


@pytest.fixture(name="target")
def _target() -> Decoder:
    return tiny_target()


class TestMask:
    @pytest.mark.parametrize("head", HEADS)
    @torch.no_grad()
    def test_many_blocks_at_once_are_each_block_by_itself(
        self, target: Decoder, head: dict[str, object]
    ) -> None:
        model = tiny_drafter(target, **head)
        windows = torch.randint(2, VOCAB, (2, 25))
        anchors = torch.tensor([[1, 5, 6, 20], [2, 3, 17, 19]])
        features = read(target, windows[:, :-1], model.spec.tap_layers).features
        together = block_logits(model, target, windows, anchors, features, SLOTS)
        for row in range(2):
            for at, anchor in enumerate(anchors[row].tolist()):
                alone = one_block(model, target, windows[row], anchor, seen=anchor)
                torch.testing.assert_close(together[row, at], alone, rtol=1e-4, atol=1e-4)
                # Control: with the anchor's own feature it is another block.
                peeked = one_block(model, target, windows[row], anchor, seen=anchor + 1)
                assert (together[row, at] - peeked).abs().max() > 1e-2

    @torch.no_grad()
    def test_windows_and_causal_layers_are_those_of_the_module(self, target: Decoder) -> None:
        model = tiny_drafter(target)
        model.spec = replace(model.spec, windows=(6, 0), is_causal=(True, False))
        windows, anchors = torch.randint(2, VOCAB, (1, 25)), torch.tensor([[3, 9, 18]])
        features = read(target, windows[:, :-1], model.spec.tap_layers).features
        ours = block_logits(model, target, windows, anchors, features, SLOTS)
        places = torch.arange(24)
        fed = torch.full((1, 3, 4), MASK)
        fed[..., 0] = windows[0, anchors]
        slots = (anchors[..., None] + torch.arange(4)).flatten(1)
        masks = model.masks(places, anchors, 4)
        inputs = target.embed(fed.flatten(1))
        hidden = model.blocks(model.fuse(features), places, inputs, slots, masks)
        previous = windows[0, slots[0]].view(1, 3, 4)
        hidden = hidden.view(1, 3, 4, -1)
        theirs = model.logits(hidden, head_of(target)) + model.markov(previous, hidden)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        plain = block_logits(tiny_drafter(target), target, windows, anchors, features, SLOTS)
        assert (ours - plain).abs().max() > 1e-2


class TestLoss:
    def test_a_drafter_that_says_the_targets_law_is_at_the_entropy_of_the_text(self) -> None:
        laws, labels = torch.randn(3, 4, VOCAB), torch.randint(0, VOCAB, (3, 4))
        counts = torch.ones(3, 4, dtype=torch.bool)
        pure = DraftLoss(hard_share=0.0)
        assert pure(laws, laws, labels, counts).item() == pytest.approx(0.0, abs=1e-6)
        assert pure(torch.randn(3, 4, VOCAB), laws, labels, counts).item() > 0.1

    def test_earlier_tokens_weigh_more_and_uncounted_ones_nothing(self) -> None:
        laws, labels = torch.zeros(1, 3, VOCAB), torch.zeros(1, 3, dtype=torch.long)
        wrong = torch.zeros(3, 1, 3, VOCAB)
        for slot in range(3):
            wrong[slot, 0, slot, 5] = 4.0
        counts = torch.tensor([[True, True, False]])
        for loss in (DraftLoss(), DraftLoss(weights="pace"), DraftLoss("l1")):
            first, second, third = (loss(one, laws, labels, counts).item() for one in wrong)
            none = loss(laws, laws, labels, counts).item()
            assert first > second > none
            assert third == pytest.approx(none)

    def test_labels_end_where_the_text_does(self) -> None:
        windows = torch.arange(12)[None]
        places, counts = labels_of(windows, torch.tensor([[2, 8]]), torch.tensor([11]), 4)
        assert places.tolist() == [[[2, 3, 4, 5], [8, 9, 10, 10]]]
        assert counts.tolist() == [[[True] * 4, [True, True, False, False]]]


class TestAnchors:
    def test_they_are_a_function_of_seed_and_step_inside_the_spans(self) -> None:
        spans = np.array([[0, 40], [30, 40]])
        drawn = draw_anchors(spans, 8, seed=1, step=7)
        assert np.array_equal(drawn, draw_anchors(spans, 8, seed=1, step=7))
        assert not np.array_equal(drawn, draw_anchors(spans, 8, seed=1, step=8))
        assert (np.diff(drawn, axis=1) > 0).all()
        assert drawn[0].min() >= 1
        assert drawn[1].min() >= 30
        assert drawn.max() <= 38  # the token after it is in the span too
        assert draw_anchors(np.array([[30, 33]]), 5, 0, 0).tolist()[0] == sorted(
            draw_anchors(np.array([[30, 33]]), 5, 0, 0).tolist()[0]
        )

    def test_every_row_comes_once_an_epoch_and_the_corpus_every_fourth_step(self) -> None:
        stream = np.arange(4000).astype(np.uint16)
        text = some_text(6, 17)
        batches = AnchoredText(text, 2, 3, 4, 0, Batches(stream, 2, 16, 0, long_every=2))
        seen = np.concatenate([batches.at(step)[0] for step in (0, 1, 2)])
        assert sorted(seen.tolist()) == sorted(text.rows.astype(np.int64).tolist())
        windows, anchors, ends, slots = batches.at(3)
        assert slots.tolist() == [0, 1, 2, 3]
        assert (np.diff(windows, axis=1) == 1).all()  # the corpus counts upward
        assert anchors.shape[0] == len(ends) == len(windows)
        long, anchors, _, _ = batches.at(7)
        assert long.shape[1] > windows.shape[1]
        assert anchors.shape[1] <= 6

    def test_the_first_steps_fill_one_slot_of_many_drafts(self) -> None:
        batches = AnchoredText(some_text(6, 17), 2, 2, 4, 0, dense_steps=2)
        _, anchors, _, slots = batches.at(1)
        assert (anchors.shape, len(slots)) == ((2, 8), 1)
        _, anchors, _, slots = batches.at(2)
        assert (anchors.shape, len(slots)) == ((2, 2), 4)


class TestExpected:
    """A text of seven generated tokens; the first is made by the round that reads the prompt."""

    RUNS = np.array([2, 0, 5, 1, 0, 0])

    def test_rounds_jump_by_what_they_keep_and_one(self) -> None:
        # From index 0 two are kept, so the next round begins at 3, keeps one and begins at 5.
        assert starts_of(self.RUNS).tolist() == [0, 3, 5]
        found = expected([self.RUNS], 3)
        assert (found.num_tokens, found.num_rounds) == (7, 4)
        assert found.tokens_per_round == 7 / 4
        # Rounds at 0 and 3 draft a first token and keep it, the one at 5 has no room to draft.
        assert found.by_position == (1.0, 0.5, 0.0)
        # Control: were all positions starts alike, the yield would be another.
        assert found.from_anywhere == pytest.approx((3 + 1 + 4) / 3)

    def test_runs_end_at_the_first_token_that_is_not_the_texts(self) -> None:
        same = np.array([[True, True, False, True], [False, True, True, True], [True] * 4])
        assert matched_runs(same).tolist() == [2, 0, 4]

    @torch.no_grad()
    def test_a_drafter_is_judged_with_the_noise_that_chose_the_text(self, target: Decoder) -> None:
        # Given text chosen from the drafter's own first law, every first draft is kept.
        model, seed, length = tiny_drafter(target), 11, 30
        sampler = Sampler(SamplingParams(temperature=0.8, seed=seed), seed)
        tokens = [5, 6, 7]
        while len(tokens) < length:
            window = torch.tensor([*tokens, 0])
            logits = one_block(model, target, window, len(tokens) - 1, seen=len(tokens) - 1)
            tokens.append(select(logits[0].numpy(), sampler, len(tokens)))
        rows = np.array([tokens], np.uint16)
        span = np.array([[3, length]])
        text = Text(rows, span, np.array([0.8]), np.array([seed]))
        found = Examination(text, 4).expected(model, target)
        assert found.by_position[0] == 1.0
        # Control: with another seed's noise they are not.
        other = Examination(Text(rows, span, np.array([0.8]), np.array([seed + 1])), 4)
        assert other.expected(model, target).by_position[0] < 0.9
        assert len(words(seed, 0, Purpose.VERDICT, 3, VOCAB)) == VOCAB


class TestStart:
    def test_layers_are_the_targets_from_its_first_to_its_last(self, target: Decoder) -> None:
        model = tiny_drafter(target, num_layers=3)
        start_at_target(model, target)
        for layer, like in zip(model.layers, (0, 3, 5), strict=True):
            theirs = target.layers[like].state_dict()
            assert all(torch.equal(v, theirs[name]) for name, v in layer.state_dict().items())
        taps = torch.randn(5, model.spec.feature_width)
        last = taps[:, -64:]
        wanted = target.layers[model.spec.tap_layers[-1] + 1].input_layernorm(last)
        torch.testing.assert_close(model.fuse(taps), wanted)


class TestTraining:
    def test_eight_texts_are_learned_until_every_block_is_kept(
        self, target: Decoder, tmp_path: Path
    ) -> None:
        text = greedy_text(target, 8, 40)
        model = tiny_drafter(target)
        before = Examination(text, 4).expected(model, target)
        run = Run(model, Recipe(rows=8, warmup_steps=10, matrix_lr=1e-2, vector_lr=1e-2), tmp_path)
        batches = AnchoredText(text, 8, 12, 4, 0)
        run.train(batches.at, Drafting(target, DraftLoss()), Budget(steps=160))
        after = Examination(text, 4).expected(model, target)
        assert before.tokens_per_round < 1.5
        assert min(after.by_position) > 0.98
        assert after.tokens_per_round > 4.0

    @pytest.mark.parametrize("kind", [MarkovKind.VANILLA, MarkovKind.RNN])
    def test_a_stopped_training_goes_on_to_the_same_weights(
        self, target: Decoder, tmp_path: Path, kind: MarkovKind
    ) -> None:
        text = some_text(6, 25)

        def trained(directory: Path, *stops: int) -> dict[str, torch.Tensor]:
            for stop in stops:
                model = tiny_drafter(target, markov_kind=kind)
                run = Run(model, Recipe(rows=2, warmup_steps=2), directory)
                batches = AnchoredText(text, 2, 4, 4, 0)
                # The rate depends on the whole budget: a stop is a watch that says enough.
                pauses = Watch(lambda at=stop, one=run: one.position.step < at, every_s=0.0)
                run.train(batches.at, Drafting(target, DraftLoss()), Budget(steps=6), watch=pauses)
            return run.model.state_dict()

        whole = trained(tmp_path / "whole", 6)
        parted = trained(tmp_path / "parted", 3, 6)
        assert all(torch.equal(whole[name], parted[name]) for name in whole)
        fewer = trained(tmp_path / "fewer", 3)
        assert not all(torch.equal(whole[name], fewer[name]) for name in whole)

    def test_patience_ends_what_brings_nothing(self, tmp_path: Path) -> None:
        def figures(length: int) -> dict[str, object]:
            return {"T=0": expected([np.full(40, length)], 8)}

        patience = Patience(tmp_path / "acceptance.jsonl", 2)
        assert all(patience.goes_on(step, figures(step)) for step in (1, 2, 3))
        assert patience.goes_on(4, figures(3))
        assert not patience.goes_on(5, figures(3))


class TestFiles:
    @pytest.mark.parametrize("head", HEADS)
    def test_a_drafter_comes_back_from_its_files_rounded(
        self, target: Decoder, tmp_path: Path, head: dict[str, object]
    ) -> None:
        model = tiny_drafter(target, **head)
        write_drafter(model, tmp_path)
        read_back = load_drafter(tmp_path, target.spec)
        assert isinstance(read_back, BlockDrafter)
        assert read_back.spec.tap_layers == model.spec.tap_layers
        assert read_back.spec.is_shifted == model.spec.is_shifted
        assert read_back.spec.markov_kind is model.spec.markov_kind
        for name, value in model.state_dict().items():
            assert torch.equal(read_back.state_dict()[name], value.bfloat16().float())

    def test_the_targets_table_and_head_go_along_where_asked(self, tmp_path: Path) -> None:
        whole = open_checkpoint(resolve_model("forerun-code"))
        write_drafter(BlockDrafter(block_spec(whole.spec, **SIZES)), tmp_path, copied=whole)
        tensors = load_file(tmp_path / "model.safetensors")
        table = torch.from_numpy(whole.tensor(EMBEDDING).float32())
        for name in ("embed_tokens.weight", "lm_head.weight"):  # this target's are one
            assert torch.equal(tensors[name].float(), table)

    def test_text_of_several_files_is_one_text(self, tmp_path: Path) -> None:
        first, second = some_text(2, 9, seed=1), some_text(3, 9, seed=2)
        first.save(tmp_path / "a.npz")
        second.save(tmp_path / "b.npz")
        whole, both = read_text([tmp_path]), joined([first, second])
        assert np.array_equal(whole.rows, both.rows)
        some_text(1, 10).save(tmp_path / "c.npz")
        with pytest.raises(OptionError, match="row-len"):
            read_text([tmp_path])
        with pytest.raises(OptionError, match="forerun train text"):
            read_text([tmp_path / "empty"])


@torch.no_grad()
def greedy_text(target: Decoder, num_rows: int, length: int) -> Text:
    """Rows that a target makes greedily of random beginnings."""
    tokens = torch.from_numpy(np.random.default_rng(5).integers(2, VOCAB, (num_rows, 4)))
    while tokens.shape[1] < length:
        logits = target(tokens)[:, -1]
        logits[:, MASK] = -torch.inf
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
    spans = np.tile(np.array([4, length]), (num_rows, 1))
    rows = tokens.numpy().astype(np.uint16)
    return Text(rows, spans, np.zeros(num_rows), np.zeros(num_rows, np.int64))
