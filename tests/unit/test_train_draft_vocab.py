"""Drafters that know some of their target's tokens: which, how they are taught, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from test_train_blocks import HEADS, SIZES, VOCAB, some_text, stirred, tiny_target  # noqa: E402

from forerun.backends.torch.block import BlockDrafter  # noqa: E402  (needs the extra)
from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.backends.torch.eagle import EagleDrafter  # noqa: E402
from forerun.cli import run as forerun  # noqa: E402
from forerun.errors import ModelError, OptionError  # noqa: E402
from forerun.models.drafter_files import open_drafter  # noqa: E402
from forerun.models.spec import read_spec  # noqa: E402
from forerun.train import arguments  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    BlockArguments,
    DraftArguments,
    Layout,
    SourceArguments,
    StepArguments,
)
from forerun.train.blocks import block_logits, block_spec, block_states  # noqa: E402
from forerun.train.checkpoints import read_state  # noqa: E402
from forerun.train.draft_vocab import LEAST, draft_vocab_of, frequent_tokens  # noqa: E402
from forerun.train.drafter_export import load_drafter  # noqa: E402
from forerun.train.drafters import train_block, train_eagle  # noqa: E402
from forerun.train.drafting import Drafter, Drafting, Examination  # noqa: E402
from forerun.train.eagle import eagle_logits, eagle_spec  # noqa: E402
from forerun.train.examining import BEST  # noqa: E402
from forerun.train.inherit import start_at_drafter, start_head  # noqa: E402
from forerun.train.lesson import Job  # noqa: E402
from forerun.train.lm import CHECKPOINT_NAME  # noqa: E402
from forerun.train.losses import DraftLoss, sayable  # noqa: E402
from forerun.train.reading import head_of, read  # noqa: E402
from forerun.train.text import Text  # noqa: E402

SOME = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47])
ANCHORS, SLOTS = torch.tensor([[1, 7, 8], [2, 15, 17]]), torch.arange(4)
KINDS = [*HEADS, None]  # None: EAGLE-3


def spoken_by(*eos_ids: int, special: tuple[int, ...] = ()) -> Any:
    """All that is asked of a tokenizer."""
    return SimpleNamespace(eos_ids=eos_ids, special_ids=frozenset(special))


def drafter_of(target: Decoder, head: dict[str, Any] | None, num: int, seed: int = 3) -> Drafter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if head is None:
            model: Drafter = EagleDrafter(eagle_spec(target.spec, num))
        else:
            spec = block_spec(target.spec, **{**SIZES, **head, "draft_vocab": num})
            model = BlockDrafter(spec)
    return stirred(model, seed)  # type: ignore[return-value]


@pytest.fixture(name="target", scope="module")
def _target() -> Decoder:
    return tiny_target()


class TestWhichTokens:
    def test_they_are_what_the_target_said_most_often_and_what_ends_a_text(self) -> None:
        # given: prompts of 9s, then 5 three times, 6 twice, 7 and 8 once; and padding of 4s
        rows = np.array([[9, 9, 9, 5, 5, 6, 7], [9, 9, 5, 6, 8, 4, 4]], np.uint16)
        text = Text(rows, np.array([[3, 7], [2, 5]]), np.zeros(2), np.zeros(2, np.int64))
        # when, then
        assert frequent_tokens(text, 2, 12, spoken_by()).tolist() == [5, 6]
        assert frequent_tokens(text, 3, 12, spoken_by(0)).tolist() == [0, 5, 6]
        # of two as frequent the lower, and what was never said last
        assert frequent_tokens(text, 3, 12, spoken_by()).tolist() == [5, 6, 7]
        assert frequent_tokens(text, 6, 12, spoken_by()).tolist() == [0, 1, 5, 6, 7, 8]
        # of special ones those that were said
        assert frequent_tokens(text, 2, 12, spoken_by(special=(8, 11))).tolist() == [5, 8]
        # Control: with the prompts counted it would be another.
        whole = replace(text, spans=np.array([[0, 7], [0, 5]]))
        assert frequent_tokens(whole, 2, 12, spoken_by()).tolist() == [5, 9]

    def test_a_number_that_cannot_be_is_refused_with_both_numbers_and_a_way_out(self) -> None:
        assert draft_vocab_of(0, 48) == 0 == draft_vocab_of(48, 48)
        assert draft_vocab_of(LEAST, 48) == LEAST
        with pytest.raises(OptionError, match="-vocab 49: the model has 48 tokens: give fewer"):
            draft_vocab_of(49, 48)
        for few in (LEAST - 1, -1):
            with pytest.raises(OptionError, match=f"{few} is less than {LEAST}: .* give enough"):
                draft_vocab_of(few, 48)
        with pytest.raises(OptionError, match=r"2: 3 tokens .* give more than 3"):
            frequent_tokens(some_text(2, 9), 2, VOCAB, spoken_by(1, 2, 3))


class TestLoss:
    @pytest.mark.parametrize("head", KINDS)
    @pytest.mark.parametrize("loss", [DraftLoss(), DraftLoss("l1", "pace", hard_share=0.3)])
    def test_all_tokens_in_another_order_are_taught_as_the_targets_own(
        self, target: Decoder, head: dict[str, Any] | None, loss: DraftLoss
    ) -> None:
        # given: two drafters of the same weights, one of which has all tokens in its own order
        plain, mapped = drafter_of(target, head, 0), drafter_of(target, head, VOCAB)
        shared = {n: v for n, v in plain.state_dict().items() if "lm_head" not in n}
        mapped.load_state_dict(shared, strict=False)
        order = np.random.default_rng(0).permutation(VOCAB)
        start_head(mapped, target, order)
        if isinstance(plain, EagleDrafter):
            with torch.no_grad():
                plain.lm_head.weight.copy_(head_of(target))
        elif plain.spec.markov_rank:
            with torch.no_grad():
                second = plain.markov_head.markov_w2.weight
                mapped.markov_head.markov_w2.weight.copy_(second[torch.from_numpy(order)])
        random = torch.Generator().manual_seed(0)
        windows = torch.randint(2, VOCAB, (2, 21), generator=random)
        ends = torch.tensor([21, 19])
        drafting = Drafting(target, loss)

        @torch.no_grad()
        def taught(model: Drafter) -> float:
            return float(drafting(model, windows, ANCHORS, ends, SLOTS))

        # when, then
        assert taught(mapped) == pytest.approx(taught(plain), rel=1e-4)
        # Control: the same rows, each taken for another token
        mapped.d2t.copy_(torch.from_numpy(np.roll(order, 1) - np.arange(VOCAB)))
        assert abs(taught(mapped) - taught(plain)) > 1e-2 * taught(plain)

    def test_only_drafts_that_can_be_kept_are_taught(self) -> None:
        # given: of tokens 2, 3 and 5 two drafts of three
        labels = torch.tensor([[5, 3, 2], [3, 4, 5]])
        counts = torch.tensor([[True, True, False], [True, True, True]])
        # when
        own, left = sayable(torch.tensor([2, 3, 5]), 6, labels, counts)
        # then: 4 cannot be said, so nothing behind it is kept either
        assert own.tolist() == [[2, 1, 0], [1, 0, 2]]
        assert left.tolist() == [[True, True, False], [True, False, False]]

    def test_where_nothing_can_be_said_nothing_is_taught(self) -> None:
        logits = torch.randn(2, 3, 4, requires_grad=True)
        labels, counts = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
        DraftLoss()(logits, torch.randn(2, 3, 4), labels, counts).backward()
        assert logits.grad is not None
        assert not logits.grad.any()

    def test_the_restricted_law_is_right_whenever_the_targets_token_can_be_said(self) -> None:
        # given: laws of a target, and the noise that it chooses with
        random = torch.Generator().manual_seed(1)
        laws = 2 * torch.randn(4000, VOCAB, generator=random)
        noise = -torch.log(-torch.log(torch.rand(laws.shape, generator=random)))
        chosen, known = (laws + noise).argmax(-1), torch.from_numpy(SOME)
        can_be_said = torch.isin(chosen, known)
        restricted = laws[:, known].log_softmax(-1)

        def right(log_q: torch.Tensor, own_noise: torch.Tensor) -> float:
            drafted = known[(log_q + own_noise).argmax(-1)]
            return float((drafted == chosen)[can_be_said].float().mean())

        # when, then: also what the loss is least at
        assert right(restricted, noise[:, known]) == 1.0
        labels, counts = torch.zeros(4000, dtype=torch.int64), torch.ones(4000, dtype=torch.bool)
        soft = DraftLoss(hard_share=0.0)
        least = soft(restricted[:, None], laws[:, None, known], labels[:, None], counts[:, None])
        assert float(least) < 1e-6
        # Controls: another law, and the noise of the head's numbers instead of the target's ids
        assert right(0.5 * restricted, noise[:, known]) < 0.95
        assert right(restricted, noise[:, : len(known)]) < 0.6


class TestDrafts:
    @pytest.mark.parametrize("head", KINDS)
    @torch.no_grad()
    def test_what_is_taught_is_what_the_module_says_of_its_tokens_and_nothing_of_others(
        self, target: Decoder, head: dict[str, Any] | None
    ) -> None:
        # given
        model = drafter_of(target, head, len(SOME))
        start_head(model, target, SOME)
        windows = torch.randint(2, VOCAB, (2, 21))
        features = read(target, windows[:, :-1], model.spec.tap_layers).features
        said = block_logits if isinstance(model, BlockDrafter) else eagle_logits
        # when
        ours = said(model, target, windows, ANCHORS, features, SLOTS)  # type: ignore[arg-type]
        spread = over_target(model, target, windows, features)
        # then
        known = torch.from_numpy(SOME)
        torch.testing.assert_close(ours, spread[..., known], rtol=1e-4, atol=1e-4)
        others = np.setdiff1d(np.arange(VOCAB), SOME)
        assert torch.isneginf(spread[..., torch.from_numpy(others)]).all()
        # Control: of another map it is another.
        assert (ours - spread[..., known.roll(1)]).abs().max() > 1e-2

    @pytest.mark.parametrize("head", KINDS)
    def test_a_text_of_other_tokens_is_drafted_in_vain(
        self, target: Decoder, head: dict[str, Any] | None
    ) -> None:
        # given: two texts, of one token each
        model = drafter_of(target, head, len(SOME))
        start_head(model, target, SOME)

        def kept(token: int) -> float:
            """Of drafts on a text of that token, by a head that says it wherever it knows it."""
            with torch.no_grad():
                model.norm.weight.zero_()
                if isinstance(model, BlockDrafter) and model.spec.markov_rank:
                    model.markov_head.markov_w2.weight.zero_()
            text = some_text(1, 30)
            text.rows[:] = token
            return Examination(text, 4).expected(model, target).tokens_per_round

        # when, then: all logits are equal, so the first that is known is said
        assert kept(int(SOME[0])) > 2
        assert kept(int(SOME[0]) - 1) == kept(4) == 1.0


def over_target(
    model: Drafter, target: Decoder, windows: torch.Tensor, features: torch.Tensor
) -> torch.Tensor:
    """What the module's own methods, which the engine runs, say over the target's vocabulary."""
    if isinstance(model, EagleDrafter):
        spied: list[torch.Tensor] = []
        plain, model.logits = model.logits, lambda x: spied.append(x) or plain(x)  # type: ignore
        eagle_logits(model, target, windows, ANCHORS, features, SLOTS)
        del model.logits
        return torch.stack([model.target_logits(one) for one in spied], dim=2)
    hidden = block_states(model, target, windows, ANCHORS, features, SLOTS)
    before = (ANCHORS.unsqueeze(-1) + SLOTS[: hidden.shape[2]]).clamp(max=windows.shape[1] - 1)
    previous = windows.gather(1, before.flatten(1)).view(before.shape)
    return model.logits(hidden, head_of(target)) + model.markov(previous, hidden)


class TestTraining:
    @pytest.fixture(name="model_dir")
    def _model_dir(self, tiny_checkpoint_dir: Callable[..., Path]) -> Path:
        return tiny_checkpoint_dir("qwen3", num_hidden_layers=6)

    def job(self, model: Path, out: Path, first: int, **draft: Any) -> Job:
        """A training on text of the forty tokens from `first` on."""
        rows = np.random.default_rng(first).integers(first, first + 40, (40, 24))
        spans, zeros = np.tile(np.array([4, 24]), (40, 1)), np.zeros(40)
        directory = out.parent / f"text-{first}"
        Text(rows.astype(np.uint16), spans, zeros, zeros.astype(np.int64)).save(directory / "a.npz")
        settings = {"anchors": 2, "dense_steps": 0, "max_steps": 2, "examine_every": 60.0} | draft
        step = StepArguments(rows=1, engine=arguments.Engine.EAGER, threads=1)
        source = SourceArguments(model=str(model), text=[directory])
        return Job("eagle3", out, 1.0, source, DraftArguments(**settings), step)

    def known(self, model: Path, drafter: Path) -> list[int]:
        return load_drafter(drafter, read_spec(model)).target_ids().tolist()

    def test_it_knows_the_texts_tokens_and_keeps_them_when_it_goes_on(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        # given
        first = self.job(model_dir, tmp_path / "out", 100, draft_vocab=30)
        train_eagle(first, num_steps=3)
        tokens = self.known(model_dir, tmp_path / "out")
        assert set(tokens) <= {*range(100, 140), *read_spec(model_dir).eos_ids}
        # when: it goes on with another text
        train_eagle(
            self.job(model_dir, tmp_path / "out", 180, draft_vocab=30, max_steps=4), num_steps=3
        )
        # then: those it goes on from, and those it wrote
        state = read_state(tmp_path / "out" / "run" / CHECKPOINT_NAME)
        assert state["position"]["step"] == 4
        assert (state["model"]["d2t"] + torch.arange(30)).tolist() == tokens
        assert self.known(model_dir, tmp_path / "out") == tokens
        # and a drafter that starts from it has them
        train_eagle(
            self.job(model_dir, tmp_path / "b", 180, draft_vocab=30, start_from=tmp_path / "out"),
            num_steps=3,
        )
        assert self.known(model_dir, tmp_path / "b") == tokens
        # Control: by itself the other text has others, and another number is another shape.
        train_eagle(self.job(model_dir, tmp_path / "c", 180, draft_vocab=30), num_steps=3)
        assert not set(self.known(model_dir, tmp_path / "c")) & set(tokens) - set(
            read_spec(model_dir).eos_ids
        )
        with pytest.raises(OptionError, match="of another shape"):
            train_eagle(self.job(model_dir, tmp_path / "c", 180, draft_vocab=31), num_steps=3)

    def test_its_head_begins_as_the_targets_rows(self, model_dir: Path, target: Decoder) -> None:
        model = drafter_of(target, None, len(SOME))
        start_head(model, target, SOME)
        assert torch.equal(model.lm_head.weight, head_of(target)[torch.from_numpy(SOME)])
        assert model.target_ids().tolist() == SOME.tolist()

    def test_a_drafter_of_all_tokens_is_no_start_for_one_of_some_nor_the_reverse(
        self, target: Decoder
    ) -> None:
        for head in KINDS:
            some, every = drafter_of(target, head, len(SOME)), drafter_of(target, head, 0)
            for model, like in ((some, every), (every, some)):
                with pytest.raises(OptionError, match="of another shape"):
                    start_at_drafter(model, like)

    @pytest.mark.parametrize("layout", [None, Layout.EAGLE3, Layout.SPECULATORS])
    def test_every_layout_of_an_eagle3_head_has_the_tokens(
        self, model_dir: Path, tmp_path: Path, layout: Layout | None
    ) -> None:
        job = self.job(model_dir, tmp_path / "out", 100, draft_vocab=30, export=layout)
        train_eagle(job, num_steps=3)
        opened = open_drafter(tmp_path / "out")
        assert opened.token_map is not None
        assert (opened.spec.head_vocab, opened.spec.target_vocab) == (30, 272)
        self.assert_written(tmp_path / "out", model_dir)
        assert "--draft-vocab 30" in (tmp_path / "out" / "run" / "training.json").read_text()

    def test_a_block_drafter_of_some_tokens_is_written_in_the_layout_that_can_say_it(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        shape = BlockArguments(layers=1, block=4, taps=1, mask_id=1)
        job = self.job(model_dir, tmp_path / "out", 100, draft_vocab=30)
        train_block(job, shape, is_shifted=True, markov_rank=4)
        assert open_drafter(tmp_path / "out").layout == "speculators"
        self.assert_written(tmp_path / "out", model_dir)
        for layout in (Layout.Z_LAB, Layout.DEEPSPEC):
            job = self.job(model_dir, tmp_path / "no", 100, draft_vocab=30, export=layout)
            with pytest.raises(ModelError, match="cannot say that this drafter knows 30 of 272"):
                train_block(job, shape, is_shifted=layout == Layout.DEEPSPEC, markov_rank=0)
            assert not (tmp_path / "no").exists()

    def assert_written(self, out: Path, model_dir: Path) -> None:
        """The files have what the training had: its tokens, its weights but for their rounding."""
        best = read_state(out / "run" / BEST)["model"]
        read_back = load_drafter(out, read_spec(model_dir)).state_dict()
        assert best.keys() == read_back.keys()
        for name, value in best.items():
            assert torch.equal(read_back[name].float(), value.bfloat16().float()) or name == "d2t"
        assert torch.equal(read_back["d2t"], best["d2t"])
        stored = load_file(out / "model.safetensors")
        assert torch.equal(stored["t2d"].nonzero()[:, 0], torch.arange(30) + stored["d2t"])

    def test_the_command_refuses_what_cannot_be(
        self, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = self.job(model_dir, tmp_path / "out", 100)
        words = ["train", "eagle3", "--model", str(model_dir), "--out", str(tmp_path / "out")]
        words += ["--text", str((job.source.text or [])[0]), "--draft-vocab", "273"]
        assert forerun(words) == 2
        assert "--draft-vocab 273: the model has 272 tokens" in capsys.readouterr().err
