"""What `forerun doctor MODEL lm` says of a small model: what it yields, and whether it fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forerun.cli import run as forerun
from forerun.models.drafter_notes import DrafterNotes, write_notes
from forerun.models.resolve import resolve_model
from forerun.tools.doctor_drafter import drafter_path, examine

YIELDS = {2: 1.95, 4: 2.34}


@pytest.fixture(name="model")
def _model(tiny_checkpoint_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of six layers with a small one beside it."""
    target = tiny_checkpoint_dir("qwen3", 3, num_hidden_layers=6)
    model = Path(shutil.copytree(target, tmp_path / "model"))
    shutil.copytree(tiny_checkpoint_dir("qwen3", 4, num_hidden_layers=1), model / "drafters" / "lm")
    return model


def report_of(model: Path) -> dict[str, Any]:
    return examine(model, drafter_path("lm", model))


def check(report: dict[str, Any], name: str) -> tuple[str, str]:
    (one,) = [one for one in report["checks"] if one["name"] == name]
    return one["state"], one["sentence"]


def test_by_its_bare_name_it_is_the_models_own_and_its_record_is_shown(model: Path) -> None:
    assert report_of(model)["tokens_per_round"] == "not recorded"
    write_notes(model / "drafters" / "lm", DrafterNotes(YIELDS, 64))
    report = report_of(model)
    assert (report["kind"], report["num_layers"], report["belongs"]) == ("lm", 1, True)
    assert report["tokens_per_round"] == "1.95 of chains of 2, 2.34 of chains of 4"
    assert check(report, "tokenizer") == ("passed", "all ids stand for the target's tokens")
    assert check(report, "size")[0] == "passed"
    assert check(report, "context") == (
        "warning",
        "it learned from 64 positions, the target has 512: beyond 64 expect less of it",
    )


def test_other_tokens_a_mode_and_a_large_one_are_said(model: Path) -> None:
    lm = model / "drafters" / "lm"
    assert "thinking" not in {one["name"] for one in report_of(model)["checks"]}
    tokenizer = json.loads((lm / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (lm / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_notes(lm, DrafterNotes(YIELDS, thinking="off"))
    report = report_of(model)
    assert check(report, "tokenizer")[0] == "warning"
    assert "drafts by its text" in check(report, "tokenizer")[1]
    assert "written with thinking off" in check(report, "thinking")[1]
    shutil.rmtree(lm)
    shutil.copytree(model, lm, ignore=shutil.ignore_patterns("drafters"))
    assert check(report_of(model), "size")[0] == "warning"


def test_the_embedded_one_is_examined_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert forerun(["doctor", "forerun-code", "lm", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["drafter"] == str(resolve_model("forerun-code") / "drafters" / "lm")
    assert "of chains of 7" in report["tokens_per_round"]
