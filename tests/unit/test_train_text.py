"""The commands that train drafters, and the text a model writes for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from forerun.backends.torch.block import BlockDrafter  # noqa: E402  (needs the extra)
from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.errors import ModelError, OptionError  # noqa: E402
from forerun.models.drafter_spec import MarkovKind  # noqa: E402
from forerun.models.resolve import resolve_model  # noqa: E402
from forerun.models.spec import read_spec  # noqa: E402
from forerun.models.tokenizer import load_tokenizer  # noqa: E402
from forerun.options import SamplingParams  # noqa: E402
from forerun.protocols import Sampler  # noqa: E402
from forerun.sampling import select  # noqa: E402
from forerun.train import drafters, held_out  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    DraftArguments,
    Engine,
    Layout,
    SourceArguments,
    SparkArguments,
    StepArguments,
)
from forerun.train.drafter_export import load_drafter  # noqa: E402
from forerun.train.drafters import expect_drafter, load_target, train_block  # noqa: E402
from forerun.train.lesson import Job  # noqa: E402
from forerun.train.prompts import mask_id_of, read_data  # noqa: E402
from forerun.train.text import (  # noqa: E402
    Regeneration,
    Text,
    listed_prompts,
    regenerate,
    stream_prompts,
)


def some_text(num_rows: int, length: int, seed: int = 0) -> Text:
    rows = np.random.default_rng(seed).integers(2, 48, (num_rows, length)).astype(np.uint16)
    spans = np.tile(np.array([2, length]), (num_rows, 1))
    return Text(rows, spans, np.zeros(num_rows), np.zeros(num_rows, np.int64))


class TestCommand:
    @pytest.mark.parametrize(
        ("minutes", "max_steps", "export", "kind"),
        [(0.01, 0, Layout.SPECULATORS, MarkovKind.RNN), (60, 2, None, MarkovKind.GATED)],
    )
    def test_the_command_leaves_a_drafter_its_figures_and_how_it_was_made(
        self,
        minutes: float,
        max_steps: int,
        export: Layout | None,
        kind: MarkovKind,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # given: little held-out text, so that what is tested is not how long it takes
        little = Regeneration(0.0, 24, 16, (0.0, 1.0), seed=9, batch_rows=2)
        monkeypatch.setattr(held_out, "HELD_OUT", little)
        monkeypatch.setattr(drafters, "EXAMINED_ROWS", 1)
        random = np.random.default_rng(0)
        for part in ("train", "heldout"):
            np.save(tmp_path / f"{part}.npy", random.integers(2, 4000, 400).astype(np.uint16))
        some_text(2, 33).save(tmp_path / "text" / "a.npz")
        out = tmp_path / "out"
        source = SourceArguments(corpus=tmp_path, text=[tmp_path / "text"])
        step = StepArguments(rows=1, row_len=32, engine=Engine.EAGER)
        draft = DraftArguments(anchors=2, dense_steps=1, max_steps=max_steps, export=export)
        job = Job("dspark", out, minutes, source, draft, step)
        shape = SparkArguments(layers=1, markov_rank=8, markov_kind=kind)
        # when
        train_block(job, shape, is_shifted=True, markov_rank=8, markov_kind=kind)
        # then
        made = load_drafter(out, read_spec(resolve_model("forerun-code")))
        assert isinstance(made, BlockDrafter)
        assert (made.spec.block_len, made.spec.markov_rank) == (8, 8)
        assert made.spec.markov_kind is kind
        assert {"loss.png", "acceptance.png", "tokenizer.json"} <= {f.name for f in out.iterdir()}
        facts = json.loads((out / "run" / "training.json").read_text())
        command = f"train dspark --out {out} --minutes {minutes:g} --corpus {tmp_path}"
        assert command in facts["command"]
        assert facts["num_steps"] == max_steps or not max_steps
        assert "--layers 1" in facts["command"]
        is_default = kind is SparkArguments().markov_kind
        assert (f"--markov-kind {kind.value}" in facts["command"]) != is_default
        found = expect_drafter(out, source_of(tmp_path), num_rows=1, num_steps=5, threads=0)
        assert set(found) == {"T=0", "T=1"}
        assert found["T=0"].num_tokens == 9
        if export is not None:  # others are told whose drafter it is
            config = json.loads((out / "config.json").read_text())
            verifier = config["speculators_config"]["verifier"]["name_or_path"]
            assert verifier == str(resolve_model("forerun-code").resolve())

    def test_a_layout_that_cannot_say_the_drafter_is_refused_before_it_is_trained(
        self, tmp_path: Path
    ) -> None:
        draft, step = DraftArguments(export=Layout.Z_LAB), StepArguments(engine=Engine.EAGER)
        job = Job("dspark", tmp_path / "out", 60, source_of(tmp_path), draft, step)
        with pytest.raises(ModelError, match="holds plain DFlash"):
            train_block(job, SparkArguments(layers=1), is_shifted=True, markov_rank=8)
        assert not (tmp_path / "out").exists()


def source_of(corpus: Path) -> SourceArguments:
    return SourceArguments(corpus=corpus)


class TestText:
    PLAN = Regeneration(
        seconds=0.0, row_len=40, prompt_len=16, temperatures=(0.0, 1.0), seed=3, batch_rows=4
    )

    def test_a_models_text_is_what_its_noise_chooses(self) -> None:
        # given
        model = resolve_model("forerun-code")
        prompts = stream_prompts(np.arange(100, 900).astype(np.uint16), self.PLAN)
        # when
        (text,) = regenerate(model, prompts, self.PLAN)
        (again,) = regenerate(model, prompts, self.PLAN)
        # then
        assert np.array_equal(text.rows, again.rows)
        assert text.rows.shape == (4, 41)
        assert text.spans.tolist() == [[16, 41]] * 4
        target = load_target(model)
        assert agreement(target, text, seeds=text.seeds) > 0.95
        # Control: with other noise the sampled half is another text.
        assert agreement(target, text, seeds=text.seeds + 1) < 0.8

    def test_prompts_of_files_are_read_once_at_every_temperature(self, tmp_path: Path) -> None:
        model = resolve_model("forerun-code")
        tokenizer = load_tokenizer(model, read_spec(model))
        lines, plain = tmp_path / "data.jsonl", tmp_path / "data.txt"
        lines.write_text('{"prompt": "def a():"}\n\n{"text": "import os"}\n')
        plain.write_text("x = 1\n" * 60)
        prompts = read_data([lines, plain], tokenizer, self.PLAN, is_chat=False)
        assert tokenizer.decode(prompts[0]) == "def a():"
        assert tokenizer.decode(prompts[1]) == "import os"
        assert {len(prompt) for prompt in prompts[2:-1]} == {16}
        batches = listed_prompts(prompts[:3], self.PLAN)
        assert [*batches(0), *batches(1)] == [*prompts[:3], *prompts[:3]]
        assert not batches(2)

    def test_what_is_no_prompt_is_named_with_its_line(self, tmp_path: Path) -> None:
        model = resolve_model("forerun-code")
        tokenizer = load_tokenizer(model, read_spec(model))
        path = tmp_path / "data.jsonl"
        path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
        with pytest.raises(OptionError, match=r"data\.jsonl:2"):
            read_data([path], tokenizer, self.PLAN, is_chat=False)
        with pytest.raises(OptionError, match="cannot be read"):
            read_data([tmp_path / "none.txt"], tokenizer, self.PLAN, is_chat=False)

    def test_the_mask_is_a_token_that_no_text_has(self) -> None:
        model = resolve_model("forerun-code")
        spec = read_spec(model)
        assert mask_id_of(model, spec, None) == 1
        assert mask_id_of(model, spec, 7) == 7
        with pytest.raises(OptionError, match="outside the vocabulary"):
            mask_id_of(model, spec, spec.vocab)


@torch.no_grad()
def agreement(target: Decoder, text: Text, *, seeds: np.ndarray) -> float:
    """The share of a text's tokens that a target chooses with the noise of `seeds`."""
    same = []
    for row, (first, end) in enumerate(text.spans.tolist()):
        tokens = text.rows[row, :end].astype(np.int64)
        logits = target(torch.from_numpy(tokens[None, :-1]))[0].numpy()
        params = SamplingParams(temperature=float(text.temperatures[row]), seed=int(seeds[row]))
        sampler = Sampler(params, int(seeds[row]))
        same += [select(logits[at - 1], sampler, at) == tokens[at] for at in range(first, end)]
    return float(np.mean(same))
