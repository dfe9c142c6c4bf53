"""Prompts to train on: which corpus is the model's own, and in which mode it answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from forerun.errors import ModelError, OptionError  # noqa: E402  (needs the extra)
from forerun.models.drafter_notes import read_notes  # noqa: E402
from forerun.models.spec import read_spec  # noqa: E402
from forerun.models.tokenizer import load_tokenizer  # noqa: E402
from forerun.train import held_out  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    BlockArguments,
    DraftArguments,
    Engine,
    SourceArguments,
    StepArguments,
    Thinking,
)
from forerun.train.drafters import train_block, train_eagle  # noqa: E402
from forerun.train.lesson import Job, lesson_of, make_text  # noqa: E402
from forerun.train.prompts import prompts_for  # noqa: E402
from forerun.train.text import Regeneration, joined, read_text  # noqa: E402

PLAN = Regeneration(0.0, 24, 16, (0.0, 1.0), seed=9, batch_rows=2, threads=1)
STEP = StepArguments(rows=1, row_len=24, engine=Engine.EAGER, threads=1)
DRAFT = DraftArguments(anchors=2, dense_steps=1, max_steps=2, patience=0)
ASKED = "{% for one in messages %}[{{ one.content }}]{% endfor %}"
# As published: thinking is what happens where nothing is said against it.
SWITCHED = ASKED + "{% if enable_thinking is defined and not enable_thinking %}<>{% endif %}"


@pytest.fixture(name="target")
def _target(tiny_checkpoint_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of its own, six layers deep."""
    directory = tiny_checkpoint_dir("qwen3", 3, num_hidden_layers=6, pad_token_id=1)
    return Path(shutil.copytree(directory, tmp_path / "target"))


@pytest.fixture(name="corpus")
def _corpus(target: Path, tmp_path: Path) -> Path:
    """Token ids of both parts and the tokenizer that made them: the model's."""
    corpus = tmp_path / "corpus"
    (corpus / "tokenizer").mkdir(parents=True)
    shutil.copy(target / "tokenizer.json", corpus / "tokenizer")
    random = np.random.default_rng(0)
    for part in ("train", "heldout"):
        np.save(corpus / f"{part}.npy", random.integers(2, 250, 400).astype(np.uint16))
    return corpus


def rewrite(
    corpus: Path, change: Callable[[dict[str, Any]], None], indent: int | None = None
) -> None:
    path = corpus / "tokenizer" / "tokenizer.json"
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file, indent=indent))


def swap_two(file: dict[str, Any]) -> None:
    vocab = file["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


class TestCorpus:
    def test_one_of_the_models_tokenizer_is_read_however_its_file_is_written(
        self, target: Path, corpus: Path
    ) -> None:
        source = SourceArguments(model=str(target), corpus=corpus)
        assert len(prompts_for(source, target, PLAN)[0](0)) == 2
        rewrite(corpus, lambda _: None, indent=7)
        assert len(prompts_for(source, target, PLAN)[0](0)) == 2

    def test_one_of_another_tokenizer_is_refused_before_anything_is_made(
        self, target: Path, corpus: Path, tmp_path: Path
    ) -> None:
        rewrite(corpus, swap_two)
        source = SourceArguments(model=str(target), corpus=corpus)
        out, shape = tmp_path / "out", BlockArguments(layers=1, block=3, taps=2)
        refused = pytest.raises(OptionError, match=r"a tokenizer of its own.*--data FILE")
        with refused:
            train_block(Job("dspark", out, 60, source, DRAFT, STEP), shape, is_shifted=True,
                        markov_rank=8)  # fmt: skip
        with refused:
            train_block(Job("dflash", out, 60, source, DRAFT, STEP), shape, is_shifted=False,
                        markov_rank=0)  # fmt: skip
        with refused:
            train_eagle(Job("eagle3", out, 60, source, DRAFT, STEP), num_steps=2)
        with refused:
            make_text(out, source, PLAN)
        assert not out.exists()

    def test_numbers_alone_are_refused_if_one_is_no_token(self, target: Path, corpus: Path) -> None:
        shutil.rmtree(corpus / "tokenizer")
        source = SourceArguments(model=str(target), corpus=corpus)
        prompts_for(source, target, PLAN)
        np.save(corpus / "train.npy", np.full(400, 272, np.uint16))
        with pytest.raises(OptionError, match=r"token 272.*ends at 271.*--data FILE"):
            prompts_for(source, target, PLAN)


def with_template(target: Path, template: str) -> Path:
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"chat_template": template}))
    return target


@pytest.fixture(name="asked")
def _asked(target: Path, tmp_path: Path) -> SourceArguments:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": f"ab {at}"}) + "\n" for at in range(40)))
    return SourceArguments(
        model=str(with_template(target, SWITCHED)), data=[lines], chat=True, thinking=Thinking.OFF
    )


class TestThinking:
    def first_prompt(self, source: SourceArguments) -> str:
        directory = Path(source.model)
        tokenizer = load_tokenizer(directory, read_spec(directory))
        return tokenizer.decode(prompts_for(source, directory, PLAN)[0](0)[0])

    def test_the_template_is_told_what_was_asked_for(self, asked: SourceArguments) -> None:
        assert self.first_prompt(asked) == "[ab 1]<>"
        assert self.first_prompt(replace(asked, thinking=Thinking.ON)) == "[ab 1]"
        assert self.first_prompt(replace(asked, thinking=None)) == "[ab 1]"

    def test_a_template_without_such_a_mode_refuses_it_by_name(
        self, target: Path, asked: SourceArguments
    ) -> None:
        with_template(target, ASKED)
        with pytest.raises(
            OptionError, match=r"--thinking off: the chat template.*enable_thinking"
        ):
            self.first_prompt(asked)
        assert self.first_prompt(replace(asked, thinking=None)) == "[ab 1]"
        (target / "tokenizer_config.json").unlink()
        with pytest.raises(ModelError, match="no chat template"):
            self.first_prompt(asked)

    @pytest.mark.parametrize("change", ["chat", "data"])
    def test_it_is_nothing_without_a_template_to_tell(
        self, asked: SourceArguments, corpus: Path, change: str
    ) -> None:
        changed = (
            replace(asked, chat=False)
            if change == "chat"
            else replace(asked, data=None, corpus=corpus)
        )
        with pytest.raises(OptionError, match="give --data FILE and --chat"):
            self.first_prompt(changed)

    def test_the_mode_goes_with_the_text_into_the_drafters_record(
        self, asked: SourceArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given: text that was written without thinking
        monkeypatch.setattr(held_out, "HELD_OUT", PLAN)
        make_text(tmp_path / "text", asked, PLAN)
        text = read_text([tmp_path / "text"])
        assert text.thinking == "off"
        # when
        source = replace(asked, text=[tmp_path / "text"])
        job = Job("dflash", tmp_path / "out", 60, source, DRAFT, STEP)
        train_block(job, BlockArguments(layers=1, block=3, taps=2), is_shifted=False, markov_rank=0)
        # then
        assert read_notes(tmp_path / "out").thinking == "off"
        # Controls: of text of both ways nothing is said; the other mode is not this text's.
        assert joined([text, replace(text, thinking="on")]).thinking is None
        other = replace(job, source=replace(source, thinking=Thinking.ON))
        with pytest.raises(OptionError, match=r"--thinking on, but --text.*thinking off"):
            lesson_of(other, tmp_path / "out" / "run")

    def test_text_of_before_there_were_modes_has_none(
        self, asked: SourceArguments, tmp_path: Path
    ) -> None:
        make_text(tmp_path / "text", replace(asked, thinking=None), PLAN)
        (path,) = (tmp_path / "text").glob("*.npz")
        assert read_text([path]).thinking is None
        fields = {name: part for name, part in np.load(path).items() if name != "thinking"}
        np.savez(path, **fields)
        assert read_text([path]).thinking is None
