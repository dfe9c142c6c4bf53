"""Training: what enters a corpus, that a resumed run is the same run, and what is exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from forerun.backends.torch.decoder import Decoder  # noqa: E402  (needs the extra)
from forerun.errors import ModelError, OptionError  # noqa: E402
from forerun.models.spec import read_spec  # noqa: E402
from forerun.train.batches import Batches  # noqa: E402
from forerun.train.completions import function_headers, parses  # noqa: E402
from forerun.train.corpus import (  # noqa: E402
    Document,
    Limits,
    Package,
    collect,
    licence_of,
    packages_under,
    read_documents,
    reading_order,
    worth_reading,
    write_corpus,
)
from forerun.train.distill import (  # noqa: E402
    Distillation,
    MixedText,
    SamplingPlan,
    agreement,
    sample_target,
    start_like,
)
from forerun.train.evaluate import (  # noqa: E402
    Examination,
    bits_per_byte,
    compressed_bits_per_byte,
)
from forerun.train.export import export_checkpoint, load_decoder, qwen3_config  # noqa: E402
from forerun.train.grow import start_from  # noqa: E402
from forerun.train.lm import (  # noqa: E402
    Budget,
    Recipe,
    Run,
    code_spec,
    initialise,
    next_token_loss,
)
from forerun.train.sample import continue_rows  # noqa: E402
from forerun.train.tokenizer import (  # noqa: E402
    END_OF_TEXT_ID,
    encode_documents,
    save_tokenizer,
    train_tokenizer,
)

SOURCE = """
def total(numbers):
    result = 0
    for number in numbers:
        result += number
    return result


class Basket:
    def __init__(self, items):
        self.items = list(items)
        self.open = True

    def price(self):
        prices = [item.price for item in self.items]
        return total(prices)
"""
OTHER = "\n".join(f"def other_{n}(value):\n    return value * {n} + {n * n}\n" for n in range(20))


def package(folder: Path, name: str, **files: str) -> Package:
    root = folder / "site-packages" / name
    root.mkdir(parents=True)
    for stem, text in files.items():
        (root / f"{stem}.py").write_text(text)
    return Package(name, "1", "MIT", tuple(sorted(root.iterdir())))


def tiny(vocab: int = 300, seed: int = 0, layers: int = 1, ffn: int = 96) -> Decoder:
    model = Decoder(code_spec(hidden=64, layers=layers, heads=2, kv_heads=1, ffn=ffn, vocab=vocab))
    initialise(model, seed)
    return model


def disturbed(model: Decoder, seed: int) -> Decoder:
    """The model with every parameter moved, so that no projection is zero as it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class TestCorpus:
    def test_a_licence_is_permissive_or_the_package_is_not_read(self) -> None:
        assert licence_of("License-Expression: MIT OR GPL-3.0-only\n") == "MIT OR GPL-3.0-only"
        assert licence_of("License-Expression: MIT AND LGPL-2.1-only\n") is None
        assert licence_of("Classifier: License :: OSI Approved :: BSD License\n") == "BSD"
        two = "Classifier: License :: OSI Approved :: MIT License\n" + (
            "Classifier: License :: OSI Approved :: GNU General Public License (GPL)\n"
        )
        assert licence_of(two) is None
        assert licence_of("License: Apache 2.0\n") == "Apache-2.0"
        assert licence_of("License: LGPL with exceptions or ZPL\n") is None
        assert licence_of("Name: unknown\n") is None

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("p/short.py", "x = 1\n"),
            ("p/minified.py", SOURCE + "x = '" + "a" * 400 + "'\n"),
            ("p/table.py", "TABLE = [\n" + "    0x1234, 17,\n" * 80 + "]\n"),
            ("p/made.py", "# This file is auto-generated. Do not edit.\n" + SOURCE),
            ("p/api_pb2.py", SOURCE),
            ("p/tests/test_it.py", SOURCE),
            ("p/_vendor/it.py", SOURCE),
            ("p/old.py", SOURCE + "print 'python two'\n"),
        ],
    )
    def test_files_not_worth_learning_from(self, path: str, text: str) -> None:
        assert worth_reading(Path("p/good.py"), SOURCE, Limits())
        assert not worth_reading(Path(path), text, Limits())

    def test_copies_are_dropped_and_held_out_packages_keep_theirs(self, tmp_path: Path) -> None:
        nearly = SOURCE.replace("result", "outcome", 1)
        packages = [
            package(tmp_path / "a", "first", same=SOURCE.replace("    ", "  "), other=OTHER),
            package(tmp_path / "b", "unseen", original=SOURCE, nearly=nearly),
        ]
        documents, records = collect(packages, ["unseen"], Limits())
        assert [(d.package, d.path) for d in documents] == [
            ("unseen", "unseen/original.py"),
            ("first", "first/other.py"),
        ] or [(d.package, d.path) for d in documents] == [
            ("unseen", "unseen/nearly.py"),
            ("first", "first/other.py"),
        ]
        assert {record.name: record.held_out for record in records} == {
            "unseen": True,
            "first": False,
        }
        write_corpus(documents, records, tmp_path / "out")
        assert read_documents(tmp_path / "out" / "heldout.jsonl") == documents[:1]
        assert read_documents(tmp_path / "out" / "train.jsonl") == documents[1:]

    def test_distributions_are_found_by_their_metadata(self, tmp_path: Path) -> None:
        (tmp_path / "good.py").write_text(SOURCE)
        for name, licence in (("good", "MIT"), ("bad", "GPL-3.0-only")):
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Name: {name}\nVersion: 1.0\nLicense-Expression: {licence}\n"
            )
            (info / "RECORD").write_text("good.py,sha256=x,1\n")
        assert [(p.name, p.licence, p.files) for p in packages_under(tmp_path)] == [
            ("good", "MIT", (tmp_path / "good.py",))
        ]

    def test_a_missing_corpus_is_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="forerun train corpus"):
            read_documents(tmp_path / "train.jsonl")

    def test_reading_order_keeps_every_document(self) -> None:
        documents = [Document(f"p{n % 3}", f"{n:02}.py", "x") for n in range(50)]
        ordered = reading_order(documents)
        assert ordered != documents
        assert sorted(ordered, key=lambda d: d.path) == documents


class TestTokenizer:
    def test_round_trip_and_size(self, tmp_path: Path) -> None:
        tokenizer = train_tokenizer([SOURCE, OTHER], 300)
        save_tokenizer(tokenizer, tmp_path, 64)
        loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
        text = SOURCE + "\n        é = '\\t🙂'\n"
        assert len(loaded) == tokenizer.get_vocab_size() == 300
        assert loaded.decode(loaded(text).input_ids) == text
        assert loaded.eos_token_id == END_OF_TEXT_ID

    def test_indentation_stays_together(self) -> None:
        tokenizer = train_tokenizer([SOURCE, OTHER], 320)
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode("\n        return x").ids]
        assert "       " in pieces


class TestBatches:
    def test_an_epoch_has_every_short_window_once(self) -> None:
        batches = Batches(np.arange(41, dtype=np.uint16), 2, 4, seed=3, long_every=0)
        rows = np.concatenate([batches.at(step) for step in range(5)])
        assert rows.shape == (10, 5)
        assert sorted(rows[:, 0]) == list(range(0, 40, 4))

    def test_long_windows_have_their_turn(self) -> None:
        batches = Batches(np.zeros(1000, dtype=np.uint16), 8, 16, seed=0, long_every=4)
        shapes = [batches.at(step).shape for step in range(12)]
        assert shapes[3] == shapes[7] == (2, 65)
        assert shapes[11] == (1, 129)
        assert {shape for at, shape in enumerate(shapes) if at % 4 != 3} == {(8, 17)}


class TestRun:
    recipe = Recipe(rows=2, row_len=16, warmup_steps=2, long_every=4)

    def stream(self) -> Batches:
        tokens = np.random.default_rng(0).integers(0, 300, 2000).astype(np.uint16)
        return Batches(tokens, 2, 16, seed=0, long_every=4)

    def test_a_resumed_run_is_the_same_run(self, tmp_path: Path) -> None:
        whole = Run(tiny(), self.recipe, tmp_path / "whole")
        whole.train(self.stream().at, next_token_loss, Budget(steps=6))

        class Stop(Exception):
            pass

        def at(step: int) -> np.ndarray:
            if step == 3:
                raise Stop
            return self.stream().at(step)

        first = Run(tiny(), self.recipe, tmp_path / "halves")
        with pytest.raises(Stop):
            first.train(at, next_token_loss, Budget(steps=6), save_every_s=0.0)
        second = Run(tiny(seed=1), self.recipe, tmp_path / "halves")
        assert second.position.step == 3
        second.train(self.stream().at, next_token_loss, Budget(steps=6))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name

    def test_another_shape_does_not_continue_a_run(self, tmp_path: Path) -> None:
        Run(tiny(), self.recipe, tmp_path).save()
        with pytest.raises(OptionError, match="another shape"):
            Run(tiny(vocab=299), self.recipe, tmp_path)

    def test_it_learns(self, tmp_path: Path) -> None:
        run, losses = Run(tiny(), self.recipe, tmp_path), list[float]()
        tokens = Batches(np.tile(np.arange(20, dtype=np.uint16), 50), 2, 16, seed=0)
        run.train(
            tokens.at, next_token_loss, Budget(steps=30), report=lambda r: losses.append(r["loss"])
        )
        assert losses[-1] < 0.5 * losses[0]
        assert (tmp_path / "log.jsonl").read_text().count("\n") == 30

    def test_the_rate_warms_up_holds_and_decays(self) -> None:
        recipe = Recipe(warmup_steps=10, decay_share=0.5)
        assert recipe.rate(0, 0.0) == pytest.approx(0.1)
        assert recipe.rate(100, 0.5) == 1.0
        assert recipe.rate(200, 0.75) == pytest.approx(0.5)
        assert 0 < recipe.rate(400, 1.0) < 0.01

    def test_a_budget_is_minutes_or_steps(self) -> None:
        with pytest.raises(OptionError, match="exactly one"):
            Budget(minutes=1, steps=1)


class TestSampling:
    def test_the_cache_changes_nothing(self) -> None:
        model = tiny(seed=2).double()
        prompts = torch.randint(0, 300, (3, 7))
        rows = continue_rows(model, prompts, 6, torch.zeros(3), torch.Generator())
        assert torch.equal(rows[:, :7], prompts)
        for at in range(7, 13):
            assert torch.equal(model(rows[:, :at])[:, -1].argmax(-1), rows[:, at])


class TestDistillation:
    def test_a_perfect_imitation_diverges_by_nothing(self) -> None:
        model = tiny(seed=2)
        windows = torch.randint(0, 300, (2, 20))
        assert Distillation(model, hard_share=0.0)(model, windows).item() == pytest.approx(0.0)
        assert Distillation(model, hard_share=0.0)(tiny(seed=3), windows).item() > 0.0
        assert agreement(model, model, windows) == {"greedy": 1.0, "0.7": 1.0, "1.0": 1.0}

    def test_a_drafter_of_the_same_width_starts_with_the_same_similarities(self) -> None:
        target, drafter = tiny(seed=2), tiny(seed=3)
        start_like(drafter, target)
        ours, theirs = (m.model.embed_tokens.weight for m in (drafter, target))
        assert torch.allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)

    def test_text_is_half_the_corpus_and_half_the_targets(self) -> None:
        stream = np.full(500, 5, dtype=np.uint16)
        plan = SamplingPlan(seconds=0, batch_rows=5, prompt_len=4, row_len=16)
        sampled = sample_target(tiny(seed=2), stream, plan)
        assert sampled.shape == (5, 17)
        mixed = MixedText(Batches(stream, 2, 16, seed=0, long_every=0), sampled)
        assert (mixed.at(0) == 5).all()
        assert not (mixed.at(1) == 5).all()
        assert mixed.at(1).shape == (2, 17)


class TestGrowth:
    def test_a_deeper_model_starts_as_the_same_function(self) -> None:
        trained = disturbed(tiny(seed=2, layers=2), seed=1)
        deeper = disturbed(tiny(seed=3, layers=5), seed=2)
        tokens = torch.arange(24).reshape(2, 12)
        assert not torch.allclose(deeper(tokens), trained(tokens), atol=1e-2)
        start_from(deeper, trained)
        assert torch.equal(deeper(tokens), trained(tokens))

    def test_an_added_layer_copies_its_like_and_learns(self) -> None:
        trained = disturbed(tiny(seed=2, layers=2), seed=1)
        deeper = tiny(seed=3, layers=4)
        start_from(deeper, trained)
        added, like = deeper.model.layers[1], trained.model.layers[0]
        assert torch.equal(added.mlp.up_proj.weight, like.mlp.up_proj.weight)
        next_token_loss(deeper, torch.arange(26).reshape(2, 13)).backward()
        gradient = added.mlp.down_proj.weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0

    def test_another_width_or_a_shallower_model_is_refused(self) -> None:
        with pytest.raises(OptionError, match="'ffn': 128"):
            start_from(tiny(layers=2, ffn=128), tiny())
        with pytest.raises(OptionError, match="with 1 layers, the trained one has"):
            start_from(tiny(), tiny(layers=2))


class TestExport:
    def test_transformers_loads_it_and_agrees(self, tmp_path: Path) -> None:
        tokenizer = train_tokenizer([SOURCE, OTHER], 300)
        save_tokenizer(tokenizer, tmp_path / "tokenizer", 4096)
        model = tiny(seed=2)
        export_checkpoint(model, tmp_path / "tokenizer", tmp_path / "out")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32
        )
        assert read_spec(tmp_path / "out") == model.spec
        token_ids = torch.randint(0, 300, (1, 40))
        with torch.no_grad():
            expected, found = loaded(token_ids).logits, load_decoder(tmp_path / "out")(token_ids)
            assert (expected - found).abs().max() < 1e-4 * expected.abs().max()
            assert (model(token_ids) - found).abs().max() < 0.05 * expected.abs().max()

    def test_other_families_are_refused(self) -> None:
        config = qwen3_config(tiny().spec)
        assert config["head_dim"] == 64
        with pytest.raises(ModelError, match="llama"):
            qwen3_config(replace(tiny().spec, family="llama"))


class TestEvaluation:
    def test_headers_of_functions_with_a_body(self) -> None:
        headers = function_headers(Document("p", "p.py", SOURCE))
        assert [header.source for header in headers] == ["def total(numbers):\n"]

    def test_a_completion_parses_if_four_fifths_of_it_do(self) -> None:
        document = Document("p", "p.py", SOURCE)
        (header,) = function_headers(document)

        def decode(token_ids: list[int]) -> str:
            return bytes(token_ids).decode()

        good = b"    x = 1\n    return x\n\n\ndef next_one(a):\n    return a\n"
        assert parses(header, list(good), decode)
        assert parses(header, list(good + b"    broken ("), decode)
        assert not parses(header, list(b"    broken (\n" + good), decode)
        assert not parses(header, list(good + b"    broken (" * 5), decode)

    def test_windows_with_overlap_count_every_token_once(self) -> None:
        tokenizer = train_tokenizer([SOURCE, OTHER], 300)
        document = Document("p", "p.py", SOURCE)
        model = tiny()
        with torch.no_grad():
            model.model.embed_tokens.weight.zero_()  # a uniform law: the same bits a token
        plan = Examination(window=32, stride=16)
        num_tokens = len(encode_documents(tokenizer, [SOURCE])) - 1
        expected = num_tokens * np.log2(300) / len(SOURCE.encode())
        assert bits_per_byte(model, tokenizer, [document], plan) == pytest.approx(expected, 1e-4)

    def test_compressors_gain_from_one_stream(self) -> None:
        documents = [Document("p", "a.py", SOURCE), Document("p", "b.py", SOURCE)]
        figures = compressed_bits_per_byte(documents)
        assert figures["bz2_concatenated"] < figures["bz2_per_document"]
        assert figures["xz_concatenated"] < figures["xz_per_document"]
