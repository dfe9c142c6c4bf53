"""Does a drafter belong to a model? Every difference is named, with the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafter_cases import (
    BODY,
    DFLASH,
    DSPARK,
    EAGLE,
    FEW_HEARD,
    GATED,
    MAPPED,
    NUM_TARGET_LAYERS,
    RECURRENT,
    SLIDING,
    random_tensors,
)
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from forerun.cli import run as forerun
from forerun.errors import IncompatibleSpeculation
from forerun.models.drafter_files import open_drafter, write_drafter
from forerun.models.drafter_match import Finding, compare, compare_copies, refuse_mismatch
from forerun.models.drafter_notes import DrafterNotes, write_notes
from forerun.models.drafter_spec import DrafterSpec
from forerun.models.spec import ModelSpec
from forerun.models.weights import open_checkpoint
from forerun.tools.doctor_drafter import examine

TARGET = replace(BODY, num_layers=NUM_TARGET_LAYERS)
Write = Callable[..., Path]


@pytest.fixture
def model(tiny_checkpoint_dir: Write) -> Path:
    return tiny_checkpoint_dir("qwen3", num_hidden_layers=NUM_TARGET_LAYERS)


@pytest.fixture
def drafter(tmp_path: Path, model: Path) -> Path:
    write_drafter(
        tmp_path / "drafter",
        DSPARK,
        random_tensors(DSPARK),
        layout="deepspec",
        tokenizer_from=model,
    )
    return tmp_path / "drafter"


def states(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {one.name: one.state for one in findings}


def sentence(findings: tuple[Finding, ...], name: str) -> str:
    return next(one.sentence for one in findings if one.name == name)


@pytest.mark.parametrize("spec", [DFLASH, DSPARK, RECURRENT, SLIDING, EAGLE, MAPPED])
def test_given_the_target_it_was_made_for_then_all_is_well(spec: DrafterSpec) -> None:
    refuse_mismatch(spec, TARGET)
    assert set(states(compare(spec, TARGET)).values()) == {"passed"}


MISMATCHES: dict[str, tuple[DrafterSpec, ModelSpec, str, str]] = {
    "more layers": (DFLASH, replace(TARGET, num_layers=8), "layers",
                    "the drafter was made for a target of 6 layers, this one has 8: take the one"
                    " made for this model, or train one with `forerun train`"),
    "a tap too far": (replace(DFLASH, num_target_layers=0, tap_layers=(1, 2, 7, 9)), TARGET, "taps",
                      "the drafter reads layers 7, 9 of its target, this one's are 0 to 5: take"),
    "states": (DFLASH, replace(TARGET, hidden=128), "hidden size",
               "the drafter reads states of 64 values, this target's have 128: take"),
    "width": (replace(EAGLE, target_hidden=128), replace(TARGET, hidden=128), "hidden size",
              "the drafter's layers are 64 wide, this target's have 128: take"),
    "vocabulary": (DFLASH, replace(TARGET, vocab=300), "vocabulary",
                   "the drafter was made for a vocabulary of 272 tokens, this target has 300:"),
    "vocabulary of eagle3": (MAPPED, replace(TARGET, vocab=300), "vocabulary", "of 272 tokens"),
    "mask": (replace(DFLASH, mask_id=272), TARGET, "mask token",
             "the drafter fills its block with token 272, the target's table ends at 271: correct"
             " mask_token_id in its config.json, or take"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "target", "name", "expected"), MISMATCHES.values(), ids=MISMATCHES
)
def test_given_another_target_then_the_difference_is_named(
    spec: DrafterSpec, target: ModelSpec, name: str, expected: str
) -> None:
    findings = compare(spec, target)
    assert [one.name for one in findings if one.state == "failed"] == [name]
    assert sentence(findings, name).startswith(expected) or expected in sentence(findings, name)
    with pytest.raises(IncompatibleSpeculation) as caught:
        refuse_mismatch(spec, target)
    assert str(caught.value) == sentence(findings, name)


def test_given_a_shorter_trained_context_then_a_warning_and_no_refusal() -> None:
    long = replace(TARGET, max_position=4096)
    refuse_mismatch(DFLASH, long)
    findings = compare(DFLASH, long)
    assert states(findings)["context"] == "warning"
    said = sentence(findings, "context")
    assert "has 512 positions, the target 4096: beyond 512 expect little" in said
    assert "it learned from is not recorded" in said


def test_given_the_rows_it_learned_from_then_they_are_said_and_never_those_of_its_target(
    drafter: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert BODY.max_position == 512 == TARGET.max_position
    known = sentence(compare(open_drafter(drafter), TARGET), "context")
    assert "learned from is not recorded" in known  # the control: 512 here says nothing of it

    write_notes(drafter, DrafterNotes({2: 1.5}, trained_positions=64))

    findings = compare(open_drafter(drafter), TARGET)
    assert states(findings)["context"] == "warning"
    assert "learned from rows of 64 tokens, the target has 512" in sentence(findings, "context")
    report = examine(model, drafter)
    assert (report["max_position"], report["trained_positions"]) == (512, 64)
    assert report["tokens_per_round"] == "1.50 of chains of 2"
    write_notes(drafter, DrafterNotes(trained_positions=512))
    assert states(compare(open_drafter(drafter), TARGET))["context"] == "passed"


def test_given_a_bare_name_then_it_is_the_models_own_drafter(
    drafter: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(model, home)
    shutil.copytree(drafter, home / "drafters" / "dspark")
    assert forerun(["doctor", str(home), "dspark", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drafter"] == str(home / "drafters" / "dspark")
    assert forerun(["doctor", str(home), "dflash"]) == 2
    said = capsys.readouterr().err
    assert "drafters/dflash (dspark is there): write dflash:DIR" in said


def test_given_a_file_that_says_no_layers_then_a_warning() -> None:
    findings = compare(replace(DFLASH, num_target_layers=0), TARGET)
    assert states(findings)["layers"] == "warning"


def test_given_the_tokenizer_of_another_model_then_the_first_other_token_is_named(
    drafter: Path, model: Path
) -> None:
    opened = open_drafter(drafter)
    assert "byte for byte" in sentence(compare(opened, TARGET, model), "tokenizer")

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.save(str(drafter / "tokenizer.json"), pretty=False)
    assert "all ids stand for" in sentence(compare(opened, TARGET, model), "tokenizer")

    tokenizer.add_tokens(["<other>"])
    tokenizer.save(str(drafter / "tokenizer.json"))
    expected = r"1 ids differ, 257 is '<other>' there and 'unused' here: take the one"
    with pytest.raises(IncompatibleSpeculation, match=expected):
        refuse_mismatch(opened, TARGET, model)

    (drafter / "tokenizer.json").unlink()
    assert states(compare(opened, TARGET, model))["tokenizer"] == "passed"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("README.md", "non-thinking"),
        ("MODEL_CARD.md", "no-think"),
        ("name", "Thinking"),
        ("config", "thinking"),
    ],
)
def test_given_a_thinking_mode_then_a_hint_and_one_line_where_it_is_opened(
    drafter: Path, tmp_path: Path, place: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert "thinking" not in states(compare(open_drafter(drafter), TARGET))
    refuse_mismatch(open_drafter(drafter), TARGET)
    assert not caplog.messages
    if place.endswith(".md"):
        (drafter / place).write_text(f"Trained on {said} answers.")
    elif place == "name":
        drafter = drafter.rename(tmp_path / f"Draft-{said}")
    else:
        config = json.loads((drafter / "config.json").read_text())
        (drafter / "config.json").write_text(json.dumps(config | {"mode": said}))
    findings = compare(open_drafter(drafter), TARGET)
    assert states(findings)["thinking"] == "warning"
    assert f'says "{said}"' in sentence(findings, "thinking")
    refuse_mismatch(open_drafter(drafter), TARGET)
    assert len(caplog.messages) == 1
    assert f'says "{said}"' in caplog.messages[0]


def test_given_copies_of_the_targets_table_then_a_difference_is_a_warning(
    tmp_path: Path, model: Path
) -> None:
    target = open_checkpoint(model)
    table = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    for directory, own, state in (("same", table, "passed"), ("other", table + 1, "warning")):
        path = tmp_path / directory
        write_drafter(path, DFLASH, random_tensors(DFLASH), layout="speculators")
        add_copy(path, own)
        findings = compare_copies(open_drafter(path), target)
        assert states(findings) == {"own table": state, "own head": state}


def add_copy(directory: Path, table: np.ndarray) -> None:
    from forerun.models.drafter_files import drafter_tensors
    from forerun.models.shards import write_tensors

    opened = open_drafter(directory)
    tensors: dict[str, Any] = {
        name: opened.tensor(name).array.copy() for name in drafter_tensors(opened.spec)
    }
    copies = {"embed_tokens.weight": table, "lm_head.weight": table}
    write_tensors(directory / "model.safetensors", tensors | copies)


def test_given_the_command_then_a_list_and_an_exit_code(
    model: Path, drafter: Path, tiny_checkpoint_dir: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forerun(["doctor", str(model), str(drafter)]) == 0
    shown = capsys.readouterr().out
    for word in ("deepspec", "untested on published files", "shifted", "1, 2, 3", "dspark"):
        assert word in shown

    other = tiny_checkpoint_dir("qwen3", num_hidden_layers=3)
    assert forerun(["doctor", str(other), f"dspark:{drafter}"]) == 1
    assert "another model" in capsys.readouterr().out


def test_given_json_then_one_object(
    model: Path, drafter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forerun(["doctor", str(model), str(drafter), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layout"], report["kind"], report["belongs"]) == ("deepspec", "dspark", True)
    assert (report["block_len"], report["max_drafted"], report["markov_rank"]) == (6, 6, 8)
    assert {one["state"] for one in report["checks"]} == {"passed"}
    assert report["tested"] == "layout-compatible, untested on published files"


def test_given_what_is_no_drafter_then_a_sentence_and_exit_two(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert forerun(["doctor", str(model), str(tmp_path)]) == 2
    assert "BertModel" in capsys.readouterr().err
    assert forerun(["doctor", str(model)]) == 2
    assert "name the drafter too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (DFLASH, "none: a slot hears nothing of the draft"),
        (DSPARK, "vanilla: a slot hears the token before it"),
        (GATED, "gated: a slot hears the token before it, as far as its own state lets it"),
        (
            RECURRENT,
            "rnn: a slot hears every token drafted before it, through a recurrent state",
        ),
    ],
)
def test_given_a_block_drafter_then_what_its_slots_hear_is_said(
    model: Path, tmp_path: Path, spec: DrafterSpec, words: str
) -> None:
    write_drafter(tmp_path / "other", spec, random_tensors(spec), layout="speculators")
    assert examine(model, tmp_path / "other")["markov_head"] == words


@pytest.mark.parametrize(
    ("spec", "drafted", "is_mapped"),
    [(DSPARK, 272, False), (FEW_HEARD, 100, True), (EAGLE, 272, False), (MAPPED, 100, True)],
)
def test_given_any_drafter_then_both_vocabularies_are_said_and_whether_a_map_is_there(
    model: Path, tmp_path: Path, spec: DrafterSpec, drafted: int, is_mapped: bool
) -> None:
    write_drafter(tmp_path / "other", spec, random_tensors(spec), layout="speculators")
    report = examine(model, tmp_path / "other")
    said = [report[name] for name in ("target_vocabulary", "draft_vocabulary", "token_map")]
    assert said == [272, drafted, is_mapped]


@pytest.mark.parametrize(
    ("spec", "layout"),
    [(SLIDING, "z-lab"), (MAPPED, "eagle3"), (EAGLE, "speculators"), (RECURRENT, "deepspec")],
)
def test_given_every_kind_then_the_list_can_be_shown(
    model: Path, tmp_path: Path, spec: DrafterSpec, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_drafter(tmp_path / "other", spec, random_tensors(spec), layout=layout)
    assert forerun(["doctor", str(model), str(tmp_path / "other")]) == 0
    shown = capsys.readouterr().out
    assert ("16, 0" in shown) == (spec is SLIDING)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_given_a_recorded_mode_then_it_is_said_and_nothing_is_guessed(
    drafter: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_notes(drafter, DrafterNotes(thinking=mode))
    (drafter / "README.md").write_text("Trained on thinking answers.")
    said = sentence(compare(open_drafter(drafter), TARGET), "thinking")
    assert f"written with thinking {mode}" in said
    refuse_mismatch(open_drafter(drafter), TARGET)
    assert len(caplog.messages) == 1
    # Control: what is no mode is not believed; the card's word is left.
    write_notes(drafter, DrafterNotes(thinking="sometimes"))
    assert 'says "thinking"' in sentence(compare(open_drafter(drafter), TARGET), "thinking")
