"""Exit training: what its loss is made of, what it changes, what an exported model says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402  (needs the extra)
from tokenizers import Tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402

from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.errors import ModelError, OptionError  # noqa: E402
from forerun.models.resolve import resolve_model  # noqa: E402
from forerun.models.spec import read_exit_layer, read_spec  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    Engine,
    LessonArguments,
    ShapeArguments,
    StepArguments,
)
from forerun.train.batches import Batches  # noqa: E402
from forerun.train.card import write_card  # noqa: E402
from forerun.train.distill import agreement  # noqa: E402
from forerun.train.exits import EarlyExit, both_exits, lower_layers  # noqa: E402
from forerun.train.export import export_checkpoint, load_decoder  # noqa: E402
from forerun.train.lm import (  # noqa: E402
    Budget,
    Recipe,
    Run,
    code_spec,
    initialise,
    next_token_loss,
)
from forerun.train.recipes import train_lm  # noqa: E402
from forerun.train.tokenizer import save_tokenizer, train_tokenizer  # noqa: E402

LAYERS, EXIT, VOCAB = 3, 1, 300
SIZES = {"hidden": 64, "heads": 1, "kv_heads": 1, "ffn": 64}


def tiny(seed: int = 0, *, moved: bool = False) -> Decoder:
    """A model of three layers; `moved` gives it layers that write something, as trained ones do."""
    model = Decoder(code_spec(**SIZES, layers=LAYERS, vocab=VOCAB))
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters() if moved else ():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def rows(count: int = 2, length: int = 20) -> Tensor:
    return torch.randint(0, VOCAB, (count, length), generator=torch.Generator().manual_seed(1))


def text() -> Batches:
    """A language of 40 words in which the last two tell the next, now and then otherwise."""
    chooser = np.random.default_rng(0)
    stream = [0, 1]
    for chance in chooser.random(4000):
        told = (3 * stream[-1] + 5 * stream[-2] + 7) % 40
        stream.append(told if chance < 0.8 else int(chooser.integers(40)))
    return Batches(np.array(stream, dtype=np.uint16), 4, 32, seed=0, long_every=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    tokenizer = train_tokenizer(["def one(a):\n    return a\n"], VOCAB)
    save_tokenizer(tokenizer, folder / "tokenizer", 4096)
    np.save(folder / "train.npy", text().stream)
    return folder


class TestWhereItIsRead:
    def test_given_a_layer_then_both_exits_share_the_norm_and_the_head(self) -> None:
        model, token_ids = tiny(moved=True), rows()
        early, last = both_exits(model, token_ids, EXIT)
        assert torch.equal(last, model(token_ids))
        by_hand = Decoder(replace(model.spec, num_layers=EXIT))
        lower = {n: v for n, v in model.state_dict().items() if n in by_hand.state_dict()}
        by_hand.load_state_dict(lower)
        assert torch.equal(early, by_hand(token_ids))
        assert not torch.equal(early, last)

    def test_given_a_layer_then_the_lower_layers_are_the_models_own(self) -> None:
        model, token_ids = tiny(moved=True), rows()
        before = torch.get_rng_state()
        lower = lower_layers(model, EXIT)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(lower(token_ids), both_exits(model, token_ids, EXIT)[0])
        own = {id(parameter) for parameter in model.parameters()}
        assert {id(parameter) for parameter in lower.parameters()} < own

    @pytest.mark.parametrize("layer", [-1, 0, LAYERS, LAYERS + 1])
    def test_given_no_layer_below_the_last_then_it_is_refused(self, layer: int) -> None:
        with pytest.raises(OptionError, match=f"after layer {layer} of 3.*1 to 2"):
            lower_layers(tiny(), layer)


class TestLoss:
    def test_it_is_the_last_layers_loss_and_a_weighted_one_of_the_exit(self) -> None:
        model, windows = tiny(moved=True), rows()
        early, last = (x.double() for x in both_exits(model, windows[:, :-1], EXIT))
        labels = windows[:, 1:].flatten()
        p, q = (x.flatten(0, 1).log_softmax(-1) for x in (last, early))
        divergence = F.kl_div(q, p, log_target=True, reduction="batchmean")
        truth, exit_truth = F.nll_loss(p, labels), F.nll_loss(q, labels)
        expected = truth + 0.4 * (0.75 * divergence + 0.25 * exit_truth)
        loss = EarlyExit(EXIT, weight=0.4, hard_share=0.25)(model, windows).item()
        assert loss == pytest.approx(expected.item(), rel=2e-3)  # one side in bf16
        assert abs(loss - truth.item()) > 0.1
        without = EarlyExit(EXIT, weight=0.0)(model, windows)
        assert without.item() == next_token_loss(model, windows).item()

    def test_the_last_layer_is_not_bent_towards_the_exit(self) -> None:
        """Only what is below the exit, the norm and the head feel its loss."""

        def gradients(objective: Callable[[Decoder, Tensor], Tensor]) -> dict[str, Tensor]:
            model = tiny(moved=True)
            objective(model, rows()).backward()
            return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

        plain, both = gradients(next_token_loss), gradients(EarlyExit(EXIT, weight=5.0))
        changed = {name for name in plain if not torch.allclose(plain[name], both[name])}
        above = {n for n in plain if ".layers." in n and int(n.split(".")[2]) >= EXIT}
        assert above
        assert changed == set(plain) - above


class TestRun:
    recipe = Recipe(rows=4, row_len=32, warmup_steps=2, long_every=4, matrix_lr=0.02)

    def test_a_resumed_run_is_the_same_run(self, tmp_path: Path) -> None:
        objective = EarlyExit(EXIT)
        whole = Run(tiny(), self.recipe, tmp_path / "whole")
        whole.train(text().at, objective, Budget(steps=6))

        class Stop(Exception):
            pass

        def at(step: int) -> np.ndarray:
            if step == 3:
                raise Stop
            return text().at(step)

        with pytest.raises(Stop):
            Run(tiny(), self.recipe, tmp_path / "halves").train(
                at, objective, Budget(steps=6), save_every_s=0.0
            )
        second = Run(tiny(seed=1), self.recipe, tmp_path / "halves")
        assert second.position.step == 3
        second.train(text().at, objective, Budget(steps=6))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name

    def test_it_agrees_more_than_before_and_than_a_model_without_the_loss(
        self, tmp_path: Path
    ) -> None:
        held_out = torch.from_numpy(text().at(1000))

        def agreed(name: str, weight: float, steps: int) -> float:
            run = Run(tiny(moved=True), self.recipe, tmp_path / name)
            run.train(text().at, EarlyExit(EXIT, weight), Budget(steps=steps))
            return agreement(run.model, lower_layers(run.model, EXIT), held_out)["greedy"]

        trained = agreed("with", 1.0, 25)
        assert trained > agreed("without", 0.0, 25) + 0.1
        assert trained > agreed("before", 1.0, 1) + 0.1


class TestCommand:
    def train(self, corpus: Path, out: Path, lesson: LessonArguments) -> None:
        shape = ShapeArguments(layers=LAYERS, **SIZES)
        step = StepArguments(rows=2, row_len=16, engine=Engine.EAGER)
        train_lm(corpus, out, 0.002, lesson=lesson, shape=shape, step=step)

    def test_what_is_written_says_where_it_exits(self, corpus: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        self.train(corpus, out, LessonArguments(exit_layer=2))
        assert json.loads((out / "config.json").read_text())["forerun"] == {"exit_layer": 2}
        assert read_exit_layer(out) == 2
        facts = json.loads((out / "run" / "training.json").read_text())
        assert "--exit-layer 2" in facts["command"]
        self.train(corpus, tmp_path / "plain", LessonArguments())
        assert "forerun" not in json.loads((tmp_path / "plain" / "config.json").read_text())
        assert read_exit_layer(tmp_path / "plain") is None

    def test_other_engines_load_it(self, corpus: Path, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        model, token_ids = tiny(moved=True), rows(1, 30)
        export_checkpoint(model, corpus / "tokenizer", tmp_path / "out", exit_layer=EXIT)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32
        )
        assert read_spec(tmp_path / "out") == model.spec
        with torch.no_grad():
            expected, found = loaded(token_ids).logits, load_decoder(tmp_path / "out")(token_ids)
        assert (expected - found).abs().max() < 1e-4 * expected.abs().max()

    def test_what_cannot_be_is_refused_with_a_sentence(self, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="after layer 3 of 3"):
            self.train(corpus, tmp_path / "last", LessonArguments(exit_layer=3))
        both = LessonArguments(exit_layer=1, distill_from=tmp_path)
        with pytest.raises(OptionError, match="its own drafter"):
            self.train(corpus, tmp_path / "both", both)
        export_checkpoint(tiny(), corpus / "tokenizer", tmp_path / "wrong", exit_layer=LAYERS)
        with pytest.raises(ModelError, match="exit_layer=3 is not one of 1 to 2"):
            read_exit_layer(tmp_path / "wrong")

    def test_the_card_has_the_figures_of_both_exits(self, tmp_path: Path) -> None:
        packages = [
            {"name": "p", "licence": "MIT", "num_files": 1, "num_bytes": 9, "held_out": True}
        ]
        manifest = {"packages": packages, "bytes": {"train": 9, "heldout": 9}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        same = {"greedy": 0.71, "0.7": 0.62, "1.0": 0.53}
        measured = {
            "packages": ["p"],
            "num_documents": 1,
            "num_bytes": 9,
            "window": 64,
            "prompt_len": 8,
            "num_new": 8,
            "compressors": dict.fromkeys(
                ("bz2_per_document", "bz2_concatenated", "xz_per_document", "xz_concatenated"), 2.0
            ),
            "target_bpb": 1.5,
            "bits_by_position": {"0-512": 1.5},
            "completions": {},
            "exit": {"layer": 2, "bpb": 1.75, "agreement": {"held-out text": same}},
        }
        write_card(tmp_path / "CARD.md", tmp_path / "manifest.json", [], measured, "a machine")
        card = (tmp_path / "CARD.md").read_text()
        assert card.startswith("# forerun-code-exit\n")
        assert "| its exit after layer 2 | 1.750 | |" in card
        assert "| held-out text | 71.0% | 62.0% | 53.0% |" in card


class TestEmbedded:
    def test_the_shipped_model_foretells_itself(self) -> None:
        directory = resolve_model("forerun-code-exit")
        layer, model = read_exit_layer(directory), load_decoder(directory)
        assert layer is not None
        assert model.spec.num_parameters < 3e6
        family = resolve_model("forerun-code")
        tokenizer = (directory / "tokenizer.json").read_bytes()
        assert tokenizer == (family / "tokenizer.json").read_bytes()
        # This file is younger than the corpus: the model has not seen it.
        ids = Tokenizer.from_str(tokenizer.decode()).encode(Path(__file__).read_text()).ids
        written = torch.tensor([ids[:512]])
        assert agreement(model, lower_layers(model, layer), written)["0.7"] > 0.5
        # The control: a good model that was never asked to be read there.
        plain = load_decoder(family)
        assert agreement(plain, lower_layers(plain, layer), written)["0.7"] < 0.3
