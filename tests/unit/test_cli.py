"""The command line, run as the process a user runs: output, exit codes, sentences."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from forerun.models.shards import SINGLE_NAME

Write = Callable[..., Path]
PROMPT = "def add(a, b):\n    return a + b\n\ndef add(a, b):\n"
RESULT_KEYS = {
    "text", "token_ids", "finish_reason", "seed", "numerics", "exactness", "stats", "schedule",
}  # fmt: skip
STATS_KEYS = {
    "num_rounds", "num_drafted", "num_accepted", "prefill_s", "decode_s", "tokens_per_s",
}  # fmt: skip


@pytest.fixture(scope="session")
def model(tiny_checkpoint_dir: Write) -> str:
    return str(tiny_checkpoint_dir("qwen3", max_position_embeddings=8192))


@pytest.fixture
def broken(model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "forerun.cli", *arguments]


def forerun(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": ""}
    return subprocess.run(
        command(*arguments),
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )


def one_object(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The object of `--json`; nothing else may be on stdout."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a usage or model error: exit 2, one line, nothing on stdout."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("forerun: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_help_teaches() -> None:
    for arguments in ([], ["generate"], ["chat"], ["bench"], ["bench", "forward"], ["doctor"]):
        done = forerun(*arguments, "--help")
        assert done.returncode == 0
        assert "Usage: forerun" in done.stdout
    assert "Examples" in forerun("generate", "--help").stdout
    assert forerun("--version").stdout.startswith("forerun ")
    assert forerun().returncode == 2


def test_json_has_its_keys_and_is_alone(model: str) -> None:
    found = one_object(forerun("generate", "-m", model, PROMPT, "-n", "20", "--json"))
    assert found.keys() >= RESULT_KEYS
    assert found["stats"].keys() >= STATS_KEYS
    assert len(found["token_ids"]) == 20
    assert found["finish_reason"] == "length"
    assert (found["numerics"], found["exactness"]) == ("canonical-bf16", "bits")
    assert found["schedule"].keys() == {"kind", "num_branches", "reason"}
    assert (found["schedule"]["kind"], found["schedule"]["num_branches"]) == ("sequential", 0)
    assert found["schedule"]["reason"].startswith("sequential: ")


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_the_drafter_changes_no_token(model: str, temperature: str) -> None:
    options = ["-m", model, PROMPT, "-n", "60", "-t", temperature, "--seed", "3", "--json"]
    plain = one_object(forerun("generate", *options, "--drafter", "none"))
    speculative = one_object(forerun("generate", *options, "--drafter", "lookup"))
    assert speculative["token_ids"] == plain["token_ids"]
    assert speculative["seed"] == plain["seed"] == 3


def test_a_seed_is_drawn_and_gives_the_text_again(model: str) -> None:
    options = ["generate", "-m", model, PROMPT, "-n", "8", "-t", "1", "--json"]
    first = one_object(forerun(*options))
    again = one_object(forerun(*options, "--seed", str(first["seed"])))
    assert again["token_ids"] == first["token_ids"]


def test_plain_text_is_only_the_text(model: str) -> None:
    arguments = ["generate", "-m", model, "-", "-n", "16"]
    done = forerun(*arguments, given=PROMPT)
    as_json = one_object(forerun(*arguments, "--json", given=PROMPT))
    assert done.stdout == as_json["text"] + "\n"
    assert "tokens/s" in done.stderr


def test_bytes_that_are_no_text_are_replaced(model: str) -> None:
    done = subprocess.run(
        command("generate", "-m", model, "-", "-n", "30", "-t", "2"),
        input=b"caf\xc3\xa9 \xff",
        capture_output=True,
        timeout=600,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_file_of_prompts_is_one_batch(model: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "import os"}\n\n{"prompt": "def f(", "name": "f"}\n')
    options = ["-m", model, "-n", "5", "--json"]
    batch = one_object(forerun("generate", "--prompts", str(path), *options))
    alone = one_object(forerun("generate", "import os", *options))
    assert [len(one["token_ids"]) for one in batch["completions"]] == [5, 5]
    assert batch["completions"][0]["token_ids"] == alone["token_ids"]
    assert batch["schedule"] == alone["schedule"]


def test_stop_strings_are_cut(model: str) -> None:
    options = ["generate", "-m", model, PROMPT, "-n", "30", "--json"]
    whole = one_object(forerun(*options))["text"]
    stop = whole[5:7]
    assert one_object(forerun(*options, "--stop", stop))["text"] == whole[: whole.index(stop)]


def test_generating_loads_nothing_heavy(model: str) -> None:
    arguments = ["generate", "-m", model, "x", "-n", "2"]
    watched = ("torch", "transformers", "matplotlib", "rich.table", "huggingface_hub", "jinja2")
    script = (
        "import sys\nfrom forerun.cli import run\n"
        f"code = run({arguments!r})\n"
        f"sys.exit(code or ' '.join(set({watched!r}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def test_wrong_options_are_sentences(model: str) -> None:
    assert "No such option: --speed" in refusal(forerun("generate", "x", "--speed"))
    assert "give either a PROMPT" in refusal(forerun("generate"))
    assert "'--max-tokens'" in refusal(forerun("generate", "x", "-n", "abc"))
    assert "top_p must be a number in (0.0, 1.0], found 2.0" in refusal(
        forerun("generate", "-m", model, "x", "--top-p", "2")
    )
    assert "schedule 'ahead:0': write ahead" in refusal(
        forerun("generate", "-m", model, "x", "--schedule", "ahead:0")
    )
    assert "--lanes 'gpu=1' must be like" in refusal(
        forerun("generate", "-m", model, "x", "--lanes", "gpu=1")
    )
    shared = ("--lanes", "target=0,draft=0", "--schedule", "ahead:2")
    assert "both lanes have core 0" in refusal(forerun("generate", "-m", model, "x", *shared))
    assert "cannot be read" in refusal(forerun("generate", "--prompts", "/nowhere.jsonl"))


def test_a_prompt_beyond_the_limit_is_refused_with_both_numbers(model: str) -> None:
    sentence = refusal(forerun("generate", "-m", model, "-", given="x" * 9000))
    assert "9000" in sentence.replace(",", "")
    assert "8192" in sentence.replace(",", "")


def test_unusable_models_are_sentences(broken: Path) -> None:
    weights = broken / SINGLE_NAME
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    sentence = refusal(forerun("generate", "-m", str(broken), "x", "--json"))
    assert f"{len(content)} bytes, the file has {len(content) - 100}" in sentence
    weights.rename(broken / "pytorch_model.bin")
    assert "safetensors only" in refusal(forerun("generate", "-m", str(broken), "x"))
    (broken / "pytorch_model.bin").rename(weights)
    weights.write_bytes(content)
    (broken / "tokenizer.json").unlink()
    assert "tokenizer.json does not exist" in refusal(forerun("chat", "-m", str(broken)))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["Odd"]}))
    assert "'Odd' is not supported; known are" in refusal(
        forerun("bench", "forward", "-m", str(broken))
    )
    assert "HF_HUB_OFFLINE" in refusal(forerun("generate", "-m", "org/name", "x"))


def test_chat_without_a_template_continues(model: str) -> None:
    done = forerun("chat", "-m", model, "-n", "4", "--json", given="one\n\ntwo\n")
    messages = one_object(done)["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert [one["content"] for one in messages[::2]] == ["one", "two"]


def test_chat_uses_the_models_template(broken: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    (broken / "chat_template.jinja").write_text(template)
    chat = forerun("chat", "-m", str(broken), "-n", "6", "--system", "s", "--json", given="hi\n")
    same = forerun(
        "generate", "-m", str(broken), "[system]s[user]hi[assistant]", "-n", "6", "--json"
    )
    assert one_object(chat)["messages"][-1]["content"] == one_object(same)["text"]


def test_bench_decode_reports_pairs(model: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": PROMPT}) + "\n" + json.dumps({"prompt": "x = 1"}))
    options = ["-m", model, "-n", "24", "--repeat", "2", "--prompts", str(path), "--json"]
    found = one_object(forerun("bench", "decode", *options))
    assert found["identical"] is True
    assert found["baseline"]["tokens_per_s"] > 0
    keys = {"tokens_per_s", "tokens_per_round", "draft_share", "engine_s_per_round", "loop_share"}
    assert found["speculative"].keys() >= keys
    assert found["ratio_ci95"][0] <= found["ratio"] <= found["ratio_ci95"][1]
    assert len(found["prompts"]) == 2
    assert found["speculative"]["tokens_per_round"] >= 1


def test_bench_forward_reports_floors() -> None:
    options = ["--random", "1M", "--num-tokens", "1,4", "--context", "0,33", "--repeat", "2"]
    found = one_object(forerun("bench", "forward", *options, "--threads", "1", "--json"))
    shapes = [(row["num_tokens"], row["context"]) for row in found["rows"]]
    assert shapes == [(1, 0), (4, 0), (1, 33), (4, 33)]
    for row in found["rows"]:
        assert row["floor_s"] == pytest.approx(row["bytes"] / row["bandwidth_bytes_per_s"])
        assert row["median_s"] > 0
    # K and V of 33 positions: 1 layer, 1 head of 64, two bytes each.
    assert found["rows"][2]["bytes"] - found["rows"][0]["bytes"] == 2 * 33 * 64 * 2
    steps = one_object(forerun("bench", "forward", "--random", "1M", "--propose", "3", "--json"))
    assert steps["propose"] == 3
    assert "must be whole numbers" in refusal(forerun("bench", "forward", "--num-tokens", "1,x"))


def test_doctor_names_the_paths() -> None:
    found = one_object(forerun("doctor", "--json"))
    assert found["native"]["available"] is True
    assert "portable" in found["native"]["paths"]


def test_training_without_torch_names_the_extra(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None\nfrom forerun.cli import main\nmain()"
    arguments = ["train", "lm", "--corpus", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", hidden, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "forerun[" in refusal(done)
