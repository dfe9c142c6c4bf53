"""`benchmarks/inflate.py`: the embedded family, a little larger, as files any engine loads."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Text, opened, require_same_bits
from safetensors import safe_open

from forerun import Engine, SamplingParams, Speculation
from forerun.errors import ModelError, OptionError
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.models.weights import open_checkpoint
from forerun.tools.inflation import Frame, Size, grown_rows

EMBEDDED = read_spec(resolve_model("forerun-code"))
SMALL = Size(
    EMBEDDED.num_parameters * 6,
    Frame(4 * EMBEDDED.hidden, EMBEDDED.num_layers + 1, 2 * EMBEDDED.num_heads),
    {"lm": Frame(2 * EMBEDDED.hidden, 3, 4)},
)
ASKED = {"parameters": "small", "ratio": "matched", "seed": 0, "model": "forerun-code"}


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    path = Path(__file__).parents[2] / "benchmarks" / "inflate.py"
    sys.path.insert(0, str(path.parent))  # where it finds what stands beside it
    spec = importlib.util.spec_from_file_location("inflate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["inflate"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(path.parent))


@pytest.fixture(scope="module")
def written(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded family a little larger, in shards of 10 MB."""
    out = tmp_path_factory.mktemp("inflated") / "model"
    plan = script.make_plan(resolve_model("forerun-code"), SMALL, "matched")
    script.write(plan, out, ASKED, max_shard_bytes=10_000_000)
    return out


def test_the_written_family_has_the_bits_of_the_embedded_one(written: Path) -> None:
    family = resolve_model("forerun-code")
    for part in ("", "drafters/lm"):
        source, grown = open_checkpoint(family / part), open_checkpoint(written / part)
        assert grown.spec != source.spec
        tokens = np.random.default_rng(5).integers(0, EMBEDDED.vocab, 40).tolist()
        with opened(source) as small, opened(grown) as large:
            expected = Text(small, [0, 1]).decode(tokens)[:, : EMBEDDED.vocab]
            found = Text(large, [0, 1]).read(tokens)[:, : EMBEDDED.vocab]
        require_same_bits(found, expected, part)


def test_the_written_family_writes_the_text_of_the_embedded_one(written: Path) -> None:
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=24)
    texts = []
    for name, drafter in (("forerun-code", "none"), (str(written), "none"), (str(written), "lm")):
        with Engine(name, speculate=Speculation(drafter=drafter)) as engine:
            texts.append(engine.generate(["def quicksort(items):"], [params])[0])
    assert {one.text for one in texts} == {texts[0].text}
    # and the larger drafter is heard
    assert texts[2].stats.num_accepted > 0
    # a control: another seed writes something else
    with Engine(str(written), speculate=Speculation(drafter="none")) as engine:
        other = engine.generate(["def quicksort(items):"], [replace(params, seed=2)])[0]
    assert other.text != texts[0].text


def test_the_record_says_what_it_is_and_the_config_does_not(written: Path) -> None:
    record = json.loads((written / "inflation.json").read_text())
    assert record["forerun_inflated"] is True
    assert record["early_exit"].startswith("forbidden")
    assert record["drafters"]["lm"]["byte_ratio"] >= 1 / 20
    files = [open_checkpoint(written / part).num_bytes for part in ("drafters/lm", "")]
    assert record["drafters"]["lm"]["byte_ratio"] == files[0] / files[1]
    assert "inflated" not in (written / "config.json").read_text()
    assert (written / "tokenizer.json").is_file()
    assert not (written / "MODEL_CARD.md").exists()


def test_shards_are_no_larger_than_asked_and_indexed(written: Path) -> None:
    index = json.loads((written / "model.safetensors.index.json").read_text())
    files = sorted(written.glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    assert index["metadata"]["total_size"] == open_checkpoint(written).num_bytes
    assert all(file.stat().st_size < 10_100_000 for file in files)
    with safe_open(files[0], "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_transformers_loads_it_and_agrees(written: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    tokens = torch.tensor([list(range(7, 400, 13))])
    logits = []
    for path in (resolve_model("forerun-code"), written):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.inference_mode():
            logits.append(model(tokens).logits)
    assert (logits[1] - logits[0]).abs().max() <= 1e-4 * logits[0].abs().max()
    # a control: the same text shifted by one does not agree
    assert (logits[1][:, 1:] - logits[0][:, :-1]).abs().max() > 0.1 * logits[0].abs().max()


def test_shipped_drafters_are_copies(script: Any) -> None:
    plan = script.make_plan(resolve_model("forerun-code"), SMALL, "shipped")
    assert not plan.target.is_copy
    assert plan.drafters["lm"].is_copy


def test_a_drafter_of_unknown_kind_is_refused(script: Any, tmp_path: Path) -> None:
    for file in resolve_model("forerun-code").glob("*.*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "drafters" / "oracle").mkdir(parents=True)
    with pytest.raises(
        ModelError, match="'oracle' cannot go with an enlarged target: known are lm"
    ):
        script.make_plan(tmp_path, SMALL, "shipped")


def test_an_interrupted_run_leaves_nothing(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = script.make_plan(resolve_model("forerun-code"), SMALL, "shipped")

    def interrupted(*_: Any) -> Any:
        yield from grown_rows(plan.target.source, plan.target.grown, "model.norm.weight", 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "grown_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.write(plan, tmp_path / "out", ASKED)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_with_a_sentence(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--parameters", "260M", "--ratio", "matched", "--out", str(tmp_path)]
    assert script.main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert script.main([*arguments, "--model", str(tmp_path / "nowhere")]) == 2
    assert "no model" in capsys.readouterr().err
    plan = script.make_plan(resolve_model("forerun-code"), SMALL, "shipped")
    with pytest.raises(OptionError, match="exists"):
        script.write(plan, tmp_path, ASKED)
