"""Training a drafter at home: the commands that the page gives, and what they leave."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from forerun import Engine, SamplingParams  # noqa: E402  (needs the extra)
from forerun.cli import run as forerun  # noqa: E402
from forerun.control.trial import expected_tokens  # noqa: E402
from forerun.engine.discovery import record_of  # noqa: E402
from forerun.errors import ModelError, OptionError  # noqa: E402
from forerun.models.drafter_notes import DrafterNotes, read_notes, write_notes  # noqa: E402
from forerun.models.spec import read_spec  # noqa: E402
from forerun.train import arguments, drafters  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    DraftArguments,
    Layout,
    SourceArguments,
    SparkArguments,
    StepArguments,
)
from forerun.train.checkpoints import read_state  # noqa: E402
from forerun.train.distill import TEMPERATURES  # noqa: E402
from forerun.train.drafter_export import load_drafter  # noqa: E402
from forerun.train.drafters import train_block, train_eagle  # noqa: E402
from forerun.train.examining import Examiner  # noqa: E402
from forerun.train.expected import Expected, expected  # noqa: E402
from forerun.train.held_out import held_out_rows, learned_rows  # noqa: E402
from forerun.train.lesson import Job  # noqa: E402
from forerun.train.outcome import Ending, recorded_yields  # noqa: E402
from forerun.train.progress import progress_bar  # noqa: E402
from forerun.train.text import Text  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "drafters.md"
WORDS = ["tree", "leaf", "root", "bark", "seed", "twig", "moss", "fern", "reed", "lime"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}:{% endfor %}"
# What makes each command of the page small.
SMALL = {
    "text": "--row-len 40 --prompt-len 16 --threads 1",
    "dspark": "--rows 1 --anchors 2 --layers 1 --block 4 --taps 1 --markov-rank 4 --threads 1"
    " --engine eager --dense-steps 1 --max-steps 2",
    "expect": "--rows 2 --threads 1",
    "generate": "-n 6 --threads 1",
}
SHAPE = SparkArguments(layers=1, block=4, taps=1, markov_rank=4)
Figures = dict[str, Expected]


@pytest.fixture
def model(tiny_checkpoint_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny model of one's own, that was made for chat."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint_dir("qwen3", num_hidden_layers=4), directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def own_text(num_prompts: int = 12, length: int = 24) -> Text:
    """Each prompt of four tokens three times, in the order that `forerun train text` has."""
    random, num_rows = np.random.default_rng(0), 3 * num_prompts
    prompts = random.integers(0, 256, (num_prompts, 4))
    answers = random.integers(0, 256, (num_rows, length))
    rows = np.concatenate([np.tile(prompts, (3, 1)), answers], axis=1).astype(np.uint16)
    spans = np.tile(np.array([4, 4 + length]), (num_rows, 1))
    temperatures = np.array([TEMPERATURES[row % len(TEMPERATURES)] for row in range(num_rows)])
    return Text(rows, spans, temperatures, np.arange(1, num_rows + 1))


def job_of(model: Path, out: Path, **draft: Any) -> Job:
    """A training of a few steps on text alone."""
    own_text().save(out.parent / "text" / "a.npz")
    settings = {"anchors": 2, "dense_steps": 0, "max_steps": 6, "examine_every": 0.0} | draft
    step = StepArguments(rows=1, engine=arguments.Engine.EAGER, threads=1)
    source = SourceArguments(model=str(model), text=[out.parent / "text"])
    return Job("dspark", out, 1.0, source, DraftArguments(**settings), step)


def trained(job: Job) -> drafters.Outcome:
    return train_block(job, SHAPE, is_shifted=True, markov_rank=4)


def figures_of(tokens_per_round: float) -> Figures:
    num_tokens = round(100 * tokens_per_round)
    return {"T=0": Expected(num_tokens, 100, (0.5,), 1.0, (1.5, 1.75, tokens_per_round))}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, torch.Tensor]]]:
    """Lets examinations find given yields, and keeps the weights that each of them saw."""

    def script(*yields: float) -> list[dict[str, torch.Tensor]]:
        seen: list[dict[str, torch.Tensor]] = []

        def examine(examinations: object, drafter: torch.nn.Module, target: object) -> Figures:
            seen.append({name: one.clone() for name, one in drafter.state_dict().items()})
            return figures_of(yields[min(len(seen), len(yields)) - 1])

        monkeypatch.setattr(drafters, "examine", examine)
        return seen

    return script


class TestPage:
    def commands(self) -> Iterator[list[str]]:
        section = PAGE.read_text(encoding="utf-8").split("## Training one at home")[1]
        block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
        for line in block.splitlines():
            yield shlex.split(line, comments=True)

    def test_the_recipe_runs_as_it_is_written(
        self,
        model: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        # given what the reader has: a model and prompts
        monkeypatch.chdir(tmp_path)
        lines = [json.dumps({"prompt": f"{word} {at}"}) for at, word in enumerate(WORDS)]
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        names = []
        # when each command is run, made small
        for program, *words in self.commands():
            assert program == "forerun"
            name = words[1] if words[0] == "train" else words[0]
            words = [re.sub(r"^MODEL", str(model), word) for word in words]
            words = ["0.01" if before == "--minutes" else word
                     for before, word in zip(["", *words], words, strict=False)]  # fmt: skip
            assert forerun([*words, *SMALL[name].split()]) == 0, (words, capsys.readouterr().err)
            names.append(name)
        # then it is a drafter that is recorded, examined and used
        assert names == ["text", "dspark", "expect", "generate"]
        said = capsys.readouterr()
        out = model / "drafters" / "dspark"
        assert "tokens a round at T = 0 / 0.7 / 1 on held-out text" in said.err
        assert f'forerun generate --model {model} --drafter dspark:{out} "…"' in said.err
        assert '"by_length"' in said.out
        notes = read_notes(out)
        assert notes.trained_positions == 40
        assert set(notes.tokens_per_round) == {2, 4}
        assert all(1.0 <= tokens <= 5.0 for tokens in notes.tokens_per_round.values())

    def test_without_text_or_prompts_the_sentence_says_what_to_give(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["train", "dspark", "--model", str(model), "--taps", "1"]
        words += ["--out", str(tmp_path / "out")]
        assert forerun(words) == 2
        assert "--corpus DIR and --data FILE" in capsys.readouterr().err


class TestHeldOut:
    def test_no_prompt_of_a_held_out_row_is_learned(self) -> None:
        text = own_text()
        held_out = held_out_rows(text)
        learned = learned_rows(text, held_out)

        def prompts(part: Text) -> set[bytes]:
            return {row[:4].tobytes() for row in part.rows}

        assert set(held_out.temperatures.tolist()) == {0.0, 0.7, 1.0}
        assert not prompts(held_out) & prompts(learned)
        assert len(learned.rows) > 0
        # Control: taking out those rows only leaves their prompts at other temperatures.
        taken = {row.tobytes() for row in held_out.rows}
        rest = [row for row in text.rows if row.tobytes() not in taken]
        assert {row[:4].tobytes() for row in rest} & prompts(held_out)

    def test_it_is_a_function_of_the_text(self) -> None:
        first, again = held_out_rows(own_text()), held_out_rows(own_text())
        assert np.array_equal(first.rows, again.rows)

    def test_rows_whose_noise_nobody_knows_are_not_examined_on(self) -> None:
        text = own_text()
        unknown = Text(text.rows, text.spans, text.temperatures, np.zeros_like(text.seeds))
        assert set(held_out_rows(unknown).temperatures.tolist()) == {0.0}

    def test_a_text_of_one_prompt_is_refused_with_the_way_out(self) -> None:
        text = own_text()
        one = Text(text.rows[:1], text.spans[:1], text.temperatures[:1], text.seeds[:1])
        with pytest.raises(OptionError, match="1 rows, too few to hold some out: make more"):
            held_out_rows(one)


class TestEnding:
    def test_training_ends_when_examinations_bring_nothing(
        self, model: Path, tmp_path: Path, looks: Callable[..., Any]
    ) -> None:
        looks(1.5, 2.0, 2.0, 2.0)
        job = job_of(model, tmp_path / "out", patience=2)
        outcome = trained(job)
        assert (outcome.ending, outcome.step, outcome.last_step) == (Ending.PATIENCE, 2, 4)
        assert "the last examinations brought no progress" in outcome.sentence
        # The same command again: it still does not pay, so no step is made.
        assert trained(job).last_step == 4
        # Control: without patience all steps are made.
        endless = replace(job, out=tmp_path / "all", draft=replace(job.draft, patience=0))
        outcome = trained(endless)
        assert (outcome.ending, outcome.last_step) == (Ending.BUDGET, 6)

    def test_the_best_weights_are_written_and_the_last_are_gone_on_from(
        self, model: Path, tmp_path: Path, looks: Callable[..., Any]
    ) -> None:
        seen = looks(1.5, 3.0, 2.0)
        out = tmp_path / "out"
        outcome = trained(job_of(model, out))
        written = load_drafter(out, read_spec(model)).state_dict()
        kept = read_state(out / "run" / "checkpoint.safetensors")
        assert (outcome.step, outcome.last_step, len(seen)) == (2, 6, 6)
        rounded = {name: one.to(torch.bfloat16).float() for name, one in seen[1].items()}
        assert all(torch.equal(one, rounded[name]) for name, one in written.items())
        assert kept["position"]["step"] == 6
        assert all(torch.equal(one, seen[-1][name]) for name, one in kept["model"].items())
        # Control: the two are not the same weights.
        assert not all(torch.equal(one, seen[-1][name]) for name, one in seen[1].items())
        assert read_notes(out).tokens_per_round == {2: 1.75, 3: 3.0}

    def test_patience_is_on_unless_it_is_turned_off(self) -> None:
        assert DraftArguments().patience > 0

    def test_every_look_is_drawn_and_a_killed_trainings_later_looks_are_forgotten(
        self, tmp_path: Path
    ) -> None:
        yields = iter([1.5, 2.0, 1.75])

        def examiner(at_step: int) -> Examiner:
            picture = tmp_path / "acceptance.png"
            return Examiner(lambda: figures_of(next(yields)), tmp_path, picture, 2, at_step)

        drafter: Any = torch.nn.Linear(1, 1)
        first = examiner(0)
        first.look(1, drafter)
        drawn = (tmp_path / "acceptance.png").read_bytes()
        first.look(5, drafter)
        assert drawn != (tmp_path / "acceptance.png").read_bytes()
        assert first.latest == 2.0
        # The checkpoint of step 3 was the last one that was written.
        again = examiner(3)
        again.look(6, drafter)
        lines = (tmp_path / "acceptance.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["step"] for record in records] == [1, 6]
        best = again.best()
        assert best is not None
        assert best.step == 5

    def test_the_bar_says_what_the_last_examination_found(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        step = {"step": 7, "num_tokens": 2e6, "loss": 1.5, "elapsed_s": 1.0}
        for latest, is_said in ((1.875, True), (None, False)):
            with progress_bar(1.0) as report:
                report(step | {"tokens_per_round": latest})
            assert ("1.88 tokens a round" in capsys.readouterr().err) == is_said


class TestRecord:
    def test_yields_by_length_are_those_of_shorter_chains(self) -> None:
        runs = [np.array([2, 0, 4, 1, 0, 0]), np.array([4, 4, 4, 3, 2, 1, 0, 0])]
        whole = expected(runs, 4)
        for num in (1, 2, 3, 4):
            shorter = expected([np.minimum(one, num) for one in runs], num)
            assert whole.by_length[num - 1] == shorter.tokens_per_round
        assert whole.by_length[3] == whole.tokens_per_round
        assert recorded_yields({"T=0": whole}) == {2: whole.by_length[1], 4: whole.by_length[3]}

    def test_discovery_reckons_with_what_training_found(
        self,
        model: Path,
        looks: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # given a drafter beside its model, trained
        looks(3.0)
        out = model / "drafters" / "dspark"
        trained(job_of(model, out))
        records: list[dict[int, float]] = []

        def gain(target: object, draft_of: object, record: dict[int, float], *_: object) -> float:
            records.append(record)
            return expected_tokens(record, 7)

        monkeypatch.setattr("forerun.engine.discovery.gain", gain)
        # when a model is opened, with and (the control) without what was recorded
        for _ in range(2):
            with Engine(model, threads=1) as engine:
                engine.generate("tree", SamplingParams(max_tokens=4))
            config = json.loads((out / "config.json").read_text())
            config.pop("forerun", None)
            (out / "config.json").write_text(json.dumps(config))
        # then
        assert records == [{2: 1.75, 3: 3.0}, {}]
        assert expected_tokens(records[0], 7) == 3.0 != expected_tokens(records[1], 7)

    def test_an_existing_drafter_is_recorded_when_asked(
        self, model: Path, looks: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        looks(3.0)
        out = model / "drafters" / "dspark"
        trained(job_of(model, out, max_steps=1, export=Layout.DEEPSPEC))
        config = json.loads((out / "config.json").read_text())
        assert "forerun" not in config  # an export has no keys but its layout's
        words = ["train", "expect", "dspark", "--model", str(model), "--threads", "1"]
        assert forerun(words) == 0
        assert record_of(out) == {}  # only when asked
        assert forerun([*words, "--record"]) == 0
        assert record_of(out) == {2: 1.75, 3: 3.0}
        left = json.loads((out / "config.json").read_text())
        assert {key: value for key, value in left.items() if key != "forerun"} == config
        capsys.readouterr()

    def test_notes_are_added_and_nonsense_counts_as_none(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="only a drafter that was written"):
            write_notes(tmp_path, DrafterNotes({2: 1.5}))
        path = tmp_path / "config.json"
        path.write_text('{"model_type": "qwen3", "forerun": {"tokens_per_round": {"2": 1}}}')
        write_notes(tmp_path, DrafterNotes(trained_positions=64))
        assert read_notes(tmp_path) == DrafterNotes({2: 1.0}, 64)
        for nonsense in ("[]", '{"forerun": 3}', '{"forerun": {"trained_positions": true}}', "{"):
            path.write_text(nonsense)
            assert read_notes(tmp_path) == DrafterNotes()


def test_an_eagle_head_is_exported_in_the_layouts_that_the_sentence_names(
    tiny_checkpoint_dir: Callable[..., Path], tmp_path: Path, looks: Callable[..., Any]
) -> None:
    looks(2.0)
    model = tiny_checkpoint_dir("qwen3", num_hidden_layers=8)
    for layout in (Layout.EAGLE3, Layout.SPECULATORS):
        train_eagle(job_of(model, tmp_path / layout, max_steps=1, export=layout), num_steps=3)
        assert load_drafter(tmp_path / layout, read_spec(model)).spec.body.num_layers == 1
    job = job_of(model, tmp_path / "other", export=Layout.Z_LAB)
    with pytest.raises(ModelError, match="write 'eagle3' or 'speculators'"):
        train_eagle(job, num_steps=3)


def test_a_target_with_too_few_layers_to_read_is_refused_before_it_costs_an_hour(
    model: Path, tmp_path: Path
) -> None:
    job = job_of(model, tmp_path / "out")
    with pytest.raises(OptionError, match=r"4 layers has no 3 to read .*: give --taps 1"):
        train_block(job, replace(SHAPE, taps=3), is_shifted=True, markov_rank=4)
    with pytest.raises(OptionError, match=r"4 layers has no 3 to read .*: train dspark --taps 1"):
        train_eagle(job, num_steps=3)
