"""A small model for a target: how large, what it learns, what it yields, and that it drafts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from counting_target import FIRST, NUM_LETTERS, counting_target

torch = pytest.importorskip("torch")

from forerun import Engine, SamplingParams, Speculation  # noqa: E402  (needs the extra)
from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.engine.discovery import record_of  # noqa: E402
from forerun.errors import OptionError  # noqa: E402
from forerun.models.spec import read_spec  # noqa: E402
from forerun.protocols import Sampler  # noqa: E402
from forerun.sampling import select  # noqa: E402
from forerun.train import token_loss  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    DraftArguments,
    LessonArguments,
    ShapeArguments,
    SourceArguments,
    StepArguments,
)
from forerun.train.arguments import Engine as StepEngine  # noqa: E402
from forerun.train.batches import Batches  # noqa: E402
from forerun.train.drafters import as_data, expect_drafter, write_card  # noqa: E402
from forerun.train.drafting import by_temperature  # noqa: E402
from forerun.train.expected import Expected  # noqa: E402
from forerun.train.export import load_decoder  # noqa: E402
from forerun.train.lesson import Job  # noqa: E402
from forerun.train.lm import Budget, Recipe, Run, Watch, code_spec, initialise  # noqa: E402
from forerun.train.next_tokens import examine_small, kept_runs  # noqa: E402
from forerun.train.small_arguments import SmallArguments, corpus_alone  # noqa: E402
from forerun.train.small_model import train_small  # noqa: E402
from forerun.train.small_sizes import num_bytes, small_spec  # noqa: E402
from forerun.train.text import (  # noqa: E402
    Regeneration,
    Text,
    joined,
    listed_prompts,
    read_text,
    regenerate,
)
from forerun.train.token_loss import OwnText, TokenLoss  # noqa: E402

VOCAB = 272
GREEDY = "T=0"
WRITING = Regeneration(0.0, 40, 8, (0.0, 1.0), seed=3, batch_rows=128, threads=1)
STEP = StepArguments(rows=8, row_len=40, learning_rate=1e-2, engine=StepEngine.EAGER)


def tiny(seed: int = 0, vocab: int = VOCAB) -> Decoder:
    """A model with every parameter moved, so that no projection is zero as it starts."""
    model = Decoder(code_spec(hidden=64, layers=1, heads=1, kv_heads=1, ffn=64, vocab=vocab))
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def untrained(like: Decoder) -> Decoder:
    model = Decoder(like.spec)
    initialise(model, 0)
    return model


def some_text(num_rows: int, length: int, vocab: int = VOCAB) -> Text:
    rows = np.random.default_rng(0).integers(2, vocab, (num_rows, length)).astype(np.uint32)
    spans = np.tile(np.array([4, length - 3]), (num_rows, 1))
    return Text(rows, spans, np.zeros(num_rows), np.zeros(num_rows, np.int64))


@pytest.fixture(name="target", scope="module")
def _target(tiny_checkpoint_dir: Callable[..., Path]) -> Path:
    return counting_target(tiny_checkpoint_dir)


@pytest.fixture(name="text", scope="module")
def _text(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it writes of 64 prompts, at temperatures 0 and 1."""
    chooser = np.random.default_rng(0)
    prompts = chooser.integers(FIRST, FIRST + NUM_LETTERS, (64, 8)).tolist()
    directory = tmp_path_factory.mktemp("text")
    made = regenerate(target, listed_prompts(prompts, WRITING), WRITING)
    joined(list(made)).save(directory / "a.npz")
    return directory


def job_of(target: Path, out: Path, **source: object) -> Job:
    watched = DraftArguments(max_steps=30, patience=0, examine_every=60.0)
    return Job("lm", out, 60.0, SourceArguments(model=str(target), **source), watched, STEP)


@pytest.fixture(name="trained", scope="module")
def _trained(target: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small model that was trained for 30 steps."""
    out = tmp_path_factory.mktemp("small")
    train_small(job_of(target, out, text=[text]), LessonArguments(), ShapeArguments())
    return out


def mean_of(figures: Mapping[str, Expected], num_drafted: int) -> float:
    """Tokens a round of all temperatures, in chains of so many."""
    return float(np.mean([one.by_length[num_drafted - 1] for one in figures.values()]))


class TestSizes:
    def test_without_sizes_it_has_about_a_twentieth_of_the_bytes(self) -> None:
        shallow = code_spec(hidden=4096, layers=36, heads=64, kv_heads=8, ffn=12288, vocab=151936)
        target = replace(shallow, max_position=32768, eos_ids=(7, 9), bos_id=None)
        spec = small_spec(target, 16_000_000_000, ShapeArguments())
        assert num_bytes(spec) == pytest.approx(800_000_000, rel=0.05)
        assert (spec.num_layers, spec.hidden % 64, spec.tied) == (4, 0, True)
        assert (spec.vocab, spec.max_position, spec.eos_ids) == (151936, 32768, (7, 9))

    def test_sizes_that_are_asked_for_are_taken(self) -> None:
        target = tiny().spec
        asked = ShapeArguments(hidden=192, layers=3, ffn=256)
        spec = small_spec(target, 100_000_000, asked)
        sizes = (spec.hidden, spec.num_layers, spec.ffn, spec.num_heads, spec.num_kv_heads)
        assert sizes == (192, 3, 256, 3, 1)

    def test_a_table_that_is_too_large_is_refused_with_what_would_do(self) -> None:
        target = replace(tiny().spec, vocab=151936)
        with pytest.raises(OptionError, match=r"19\.4 of them its table of 151936.*train dspark"):
            small_spec(target, 30_000_000, ShapeArguments())
        # Control: beside a larger model the same one is no burden.
        assert small_spec(target, 300_000_000, ShapeArguments()).hidden == 64

    def test_a_width_that_is_no_number_of_heads_is_refused(self) -> None:
        with pytest.raises(OptionError, match="--hidden 100 is not a multiple of 64"):
            small_spec(tiny().spec, 1 << 30, ShapeArguments(hidden=100))


class TestLoss:
    windows = torch.from_numpy(some_text(3, 21).rows.astype(np.int64))
    spans = torch.tensor([[4, 15], [1, 21], [9, 21]])

    def test_only_tokens_of_the_span_count(self) -> None:
        model, loss = tiny(), TokenLoss()
        before = loss(model, self.windows, self.spans).item()
        padded = self.windows.clone()
        padded[0, 15:] = 0  # past the end of the first text
        assert loss(model, padded, self.spans).item() == pytest.approx(before, rel=1e-5)
        # Control: the last token of the span does count.
        padded[0, 14] = 0
        assert abs(loss(model, padded, self.spans).item() - before) > 1e-3

    @pytest.mark.parametrize("teacher", [None, tiny(seed=5)])
    def test_logits_in_parts_give_the_same_loss_and_gradients(
        self, teacher: Decoder | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def found() -> tuple[float, list[torch.Tensor]]:
            model = tiny()
            loss = TokenLoss(teacher)(model, self.windows, self.spans)
            loss.backward()
            return loss.item(), [one.grad for one in model.parameters() if one.grad is not None]

        whole, gradients = found()
        monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", 7 * VOCAB)  # 60 positions in nine parts
        parted, others = found()
        assert parted == pytest.approx(whole, rel=1e-4)
        for one, other in zip(gradients, others, strict=True):
            assert (one - other).norm() < 0.02 * one.norm()  # sums of bfloat16, in another order

    def test_of_a_teacher_nothing_is_left_to_learn_once_it_is_imitated(self) -> None:
        teacher = tiny()
        pure = TokenLoss(teacher, hard_share=0.0)
        assert pure(tiny(), self.windows, self.spans).item() == pytest.approx(0.0, abs=1e-6)
        assert pure(tiny(seed=1), self.windows, self.spans).item() > 0.01


class TestOwnText:
    def test_every_row_comes_once_an_epoch_and_a_corpus_every_fourth_step(self) -> None:
        text, stream = some_text(6, 17), np.arange(4000).astype(np.uint16)
        batches = OwnText(text, 2, 0, Batches(stream, 2, 16, 0, long_every=2))
        seen = np.concatenate([batches.at(step)[0] for step in (0, 1, 2)])
        assert sorted(seen.tolist()) == sorted(text.rows.astype(np.int64).tolist())
        assert np.array_equal(batches.at(5)[0], batches.at(5)[0])
        windows, spans = batches.at(3)
        assert (np.diff(windows, axis=1) == 1).all()  # the corpus counts upward
        assert spans.tolist() == [[1, windows.shape[1]]] * len(windows)
        assert batches.at(7)[0].shape[1] > windows.shape[1]


class TestExamination:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @torch.no_grad()
    def test_a_chain_is_kept_as_far_as_one_drafted_token_by_token(self, temperature: float) -> None:
        # given: a text half of which the small model would say itself, with the same noise
        model, seed, num_drafted = tiny(), 11, 3
        sampler = Sampler(SamplingParams(temperature=temperature, seed=seed), seed)

        def said(tokens: list[int]) -> int:
            logits = model(torch.tensor([tokens]))[0, -1].numpy()
            return int(select(logits, sampler, len(tokens)))

        tokens, other = [5, 6, 7], np.random.default_rng(1).integers(2, VOCAB, 40)
        while len(tokens) < 22:
            tokens.append(said(tokens) if len(tokens) % 5 else int(other[len(tokens)]))
        rows, span = np.array([tokens], np.uint16), np.array([[3, len(tokens)]])
        text = Text(rows, span, np.array([temperature]), np.array([seed]))
        # when: each chain is drafted on its own
        slowly = []
        for start in range(3, len(tokens)):
            drafted, kept = tokens[:start], 0
            while len(drafted) < min(start + num_drafted, len(tokens)):
                drafted.append(said(drafted))
            while start + kept < len(drafted) and drafted[start + kept] == tokens[start + kept]:
                kept += 1
            slowly.append(kept)
        # then
        assert kept_runs(model, text, 0, num_drafted).tolist() == slowly
        assert set(slowly) == {0, 1, 2, 3}
        # Control: with another seed's noise other tokens are kept; greedy text has none.
        elsewhere = replace(text, seeds=np.array([seed + 1]))
        is_same = kept_runs(model, elsewhere, 0, num_drafted).tolist() == slowly
        assert is_same == (temperature == 0.0)


class TestTraining:
    def test_it_is_a_model_of_the_targets_vocabulary_with_its_record(
        self, target: Path, trained: Path
    ) -> None:
        spec, whole = read_spec(trained), read_spec(target)
        assert (spec.family, spec.tied, spec.vocab) == ("qwen3", True, whole.vocab)
        assert (spec.eos_ids, spec.max_position) == (whole.eos_ids, whole.max_position)
        name = "tokenizer.json"
        assert (trained / name).read_bytes() == (target / name).read_bytes()
        assert {"loss.png", "acceptance.png"} <= {one.name for one in trained.iterdir()}
        assert set(record_of(trained)) == {2, 4, 7}
        facts = json.loads((trained / "run" / "training.json").read_text())
        assert facts["num_steps"] == 30
        assert f"train lm --out {trained} --minutes 60 --model {target}" in facts["command"]

    def test_what_it_drafts_is_kept_more_than_before_it_was_trained(self, trained: Path) -> None:
        held_out = by_temperature(read_text([trained / "run" / "heldout.npz"]), 6, 4)
        model = load_decoder(trained)
        after = examine_small(held_out, model)[GREEDY].tokens_per_round
        before = examine_small(held_out, untrained(model))[GREEDY].tokens_per_round
        assert before < 1.5
        assert after > before + 1.0

    def test_expect_says_what_it_yields_on_what_was_held_out(
        self, target: Path, trained: Path, tmp_path: Path
    ) -> None:
        source = SourceArguments(model=str(target))
        found = expect_drafter(trained, source, num_rows=6, num_steps=7, threads=0)
        assert round(mean_of(found, 7), 2) == record_of(trained)[7]
        # Control: it does not yield that much in chains of two.
        assert mean_of(found, 2) < mean_of(found, 7) - 0.5
        # and its card says it
        assert not (trained / "MODEL_CARD.md").exists()
        write_card(trained, source, {name: as_data(one) for name, one in found.items()})
        card = (trained / "MODEL_CARD.md").read_text()
        assert "# A small model that drafts" in card
        assert f"| T=0 | {found[GREEDY].tokens_per_round:.2f} |" in card
        assert "30 steps" in card
        # An unfinished training has a checkpoint and no config.json yet.
        (tmp_path / "run").mkdir()
        for name in ("checkpoint.safetensors", "heldout.npz"):
            (tmp_path / "run" / name).write_bytes((trained / "run" / name).read_bytes())
        unfinished = expect_drafter(tmp_path, source, num_rows=6, num_steps=7, threads=0)
        assert unfinished[GREEDY].num_tokens == found[GREEDY].num_tokens

    def test_it_drafts_for_the_target_and_changes_no_token(
        self, target: Path, trained: Path
    ) -> None:
        # given: prompts that were held out
        text = read_text([trained / "run" / "heldout.npz"])
        prompts = [
            row[:first].tolist() for row, first in zip(text.rows, text.spans[:, 0], strict=True)
        ]
        wishes = [
            SamplingParams(temperature=float(warmth), seed=int(seed), max_tokens=33)
            for warmth, seed in zip(text.temperatures, text.seeds, strict=True)
        ]

        def written(*parts: str) -> list[tuple[tuple[int, ...], int]]:
            with Engine(target, speculate=Speculation(*parts), threads=1) as engine:
                made = [engine.generate([p], [w])[0] for p, w in zip(prompts, wishes, strict=True)]
            return [(tuple(one.token_ids), one.stats.num_rounds) for one in made]

        # when
        plain, drafted = written("none"), written(f"lm:{trained}", "chain:4")
        # then: the same tokens, in as many rounds as were expected without an engine
        assert [tokens for tokens, _ in drafted] == [tokens for tokens, _ in plain]
        num_rounds = sum(drafted[row][1] for row in np.flatnonzero(text.temperatures == 0))
        found = examine_small(by_temperature(text, len(text.rows), 4), load_decoder(trained))
        assert num_rounds == found[GREEDY].num_rounds
        assert num_rounds < found[GREEDY].num_tokens / 2

    def test_a_stopped_training_goes_on_to_the_same_weights(
        self, text: Path, tmp_path: Path
    ) -> None:
        batches = OwnText(read_text([text]), 4, 0)

        def trained(directory: Path, *stops: int) -> dict[str, torch.Tensor]:
            for stop in stops:
                run = Run(tiny(), Recipe(rows=4, warmup_steps=2), directory)
                # The rate depends on the whole budget: a stop is a watch that says enough.
                pauses = Watch(lambda at=stop, one=run: one.position.step < at, every_s=0.0)
                run.train(batches.at, TokenLoss(), Budget(steps=6), watch=pauses)
            return run.model.state_dict()

        whole = trained(tmp_path / "whole", 6)
        parted = trained(tmp_path / "parted", 3, 6)
        assert all(torch.equal(whole[name], parted[name]) for name in whole)
        fewer = trained(tmp_path / "fewer", 3)
        assert not all(torch.equal(whole[name], fewer[name]) for name in whole)

    def test_the_same_command_again_finds_nothing_left_to_do(
        self, target: Path, text: Path, trained: Path
    ) -> None:
        before = (trained / "model.safetensors").read_bytes()
        train_small(job_of(target, trained, text=[text]), LessonArguments(), ShapeArguments())
        assert (trained / "model.safetensors").read_bytes() == before


class TestRefusals:
    def refused(self, sentence: str, job: Job, **lesson: object) -> None:
        with pytest.raises(OptionError, match=sentence):
            train_small(job, LessonArguments(**lesson), ShapeArguments())

    def test_what_cannot_be_learned_from(self, target: Path, text: Path, tmp_path: Path) -> None:
        some_text(96, 41, vocab=900).save(tmp_path / "foreign" / "a.npz")
        foreign = job_of(target, tmp_path / "a", text=[tmp_path / "foreign"])
        self.refused("written by another model", foreign)
        (tmp_path / "corpus" / "tokenizer").mkdir(parents=True)
        (tmp_path / "corpus" / "tokenizer" / "tokenizer.json").write_text("{}")
        corpus = job_of(target, tmp_path / "b", corpus=tmp_path / "corpus")
        self.refused("a tokenizer of its own.*--data FILE", corpus)
        self.refused("give one of --corpus DIR and --data", job_of(target, tmp_path / "c"))

    def test_lessons_that_are_of_another_model(
        self, target: Path, text: Path, tmp_path: Path
    ) -> None:
        job = job_of(target, tmp_path / "out", text=[text])
        self.refused("its own drafter", job, exit_layer=1)
        other = tmp_path / "other"
        other.mkdir()
        config = json.loads((target / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        self.refused("has 300 tokens, --model 272", job, distill_from=other)

    def test_options_of_a_drafter_without_a_model_to_draft_for(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="name it with --model"):
            corpus_alone(tmp_path, SmallArguments(text=[tmp_path]))
        with pytest.raises(OptionError, match="--model DIR with --data"):
            corpus_alone(None, SmallArguments())
        assert corpus_alone(tmp_path, SmallArguments()) == tmp_path
