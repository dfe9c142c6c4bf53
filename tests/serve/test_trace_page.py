"""A trace as one HTML file: complete, with texts, and unable to run what a model wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from forerun.cli import run as run_command
from forerun.tools.trace_page import page_of, page_sources

RECORDED = Path(__file__).parent / "data" / "recorded.jsonl"
MOST_BYTES = 60_000  # beside the trace
HOSTILE = "</script><script>document.title='owned'</script><!--"


def generated(directory: Path, *options: str) -> Path:
    path = directory / "run.jsonl"
    asked = ["generate", "def f(", "--max-tokens", "12", "--threads", "1", "--trace", str(path)]
    assert run_command([*asked, *options]) == 0
    return path


def page_for(path: Path) -> str:
    target = path.with_suffix(".html")
    assert run_command(["trace", "page", str(path), "-o", str(target)]) == 0
    return target.read_text(encoding="utf-8")


def block_of(page: str, kind: str) -> str:
    [found] = re.findall(rf"<{kind}>(.*?)</{kind.split()[0]}>", page, re.DOTALL)
    assert isinstance(found, str)
    return found


def lines_in(page: str) -> list[dict[str, Any]]:
    [block] = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return [json.loads(line) for line in block.splitlines()]


def test_given_a_trace_of_the_command_line_then_its_page_has_texts_and_the_trace_s_rounds(
    tmp_path: Path,
) -> None:
    path = generated(tmp_path, "--drafter", "lm", "--shape", "tree:4")
    page = page_for(path)

    told = [one for one in lines_in(page) if one["kind"] == "round"]
    traced = [json.loads(line) for line in path.read_text().splitlines()]
    rounds = [one for one in traced if one["kind"] == "round"]
    for name in ("tokens", "parents", "path", "bonus", "margins", "scores", "kept"):
        assert [one[name] for one in told] == [one[name] for one in rounds]
    assert all(len(one["texts"]) == len(one["tokens"]) for one in told)
    assert told[0]["texts"][0] == "("
    assert all(isinstance(one["bonus_text"], str) for one in told)
    assert len(page.encode()) - len(path.read_bytes()) < MOST_BYTES


def test_given_a_sampled_rule_then_the_laws_of_the_trace_are_the_page_s_p_and_q(
    tmp_path: Path,
) -> None:
    options = ["--drafter", "lm", "--shape", "tree:4", "--rule", "rejection", "-t", "0.8"]
    page = page_for(generated(tmp_path, *options))

    rounds = [one for one in lines_in(page) if one["kind"] == "round" and len(one["tokens"]) > 1]
    assert rounds
    for one in rounds:
        first = one["parents"].index(0)
        assert 0 <= one["p"][first] <= 1
        assert 0 < one["q"][first] <= 1
        assert one["p"][0] is one["q"][0] is None


def test_given_a_page_then_its_policy_names_what_runs_and_nothing_is_fetched() -> None:
    page = page_of("recorded.jsonl", RECORDED.read_text(), page_sources())

    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(one.strip().partition(" ")[::2] for one in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    for name, kind in (("script-src", 'script type="module"'), ("style-src", "style")):
        digest = hashlib.sha256(block_of(page, kind).encode()).digest()
        assert rules[name] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not re.search(r"(?:src|href)=\"(?!data:image)", page)
    assert not re.search(r"^(import|export) ", page, re.MULTILINE)


def test_given_a_trace_with_markup_then_its_block_does_not_end_early() -> None:
    trace = json.dumps({"kind": "round", "texts": [HOSTILE]}) + "\n"
    page = page_of('a"><b>.jsonl', trace, page_sources())

    [line] = lines_in(page)
    assert line["texts"] == [HOSTILE]
    assert page.count("</script>") == 2
    assert "<b>" not in page
    assert HOSTILE in page.replace("\\u003c", "<")  # the control: it is there, written otherwise


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here: apt install nodejs")
def test_given_the_modules_as_one_then_the_page_s_functions_are_those_of_the_files(
    tmp_path: Path,
) -> None:
    page = page_of("recorded.jsonl", RECORDED.read_text(), page_sources())
    script = block_of(page, 'script type="module"')
    own = script[: script.index("const module_page = ")]
    ask = (
        "import { readFileSync } from 'node:fs';\n"
        "const { runs } = module_traces.runsOf(readFileSync(process.argv[2], 'utf8'));\n"
        "const [first] = module_traces.tokensOf(runs[0]);\n"
        "const detail = module_drawing.detailOf(first, runs[0].rounds[0]);\n"
        "console.log(JSON.stringify([runs.length, detail]))"
    )
    (tmp_path / "ask.mjs").write_text(own + ask)
    done = subprocess.run(
        ["node", str(tmp_path / "ask.mjs"), str(RECORDED)], capture_output=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    num_runs, detail = json.loads(done.stdout)
    assert num_runs == 2
    assert "round 1" in detail


@pytest.mark.parametrize("text", ["", "no json\n", '{"kind": "header"}\n', "[1]\n"])
def test_given_a_file_that_is_no_trace_then_no_page_is_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(text)

    assert run_command(["trace", "page", str(path)]) != 0
    assert not path.with_suffix(".html").exists()


def test_given_the_trace_s_own_name_then_it_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_bytes(RECORDED.read_bytes())

    assert run_command(["trace", "page", str(path)]) != 0
    assert path.read_bytes() == RECORDED.read_bytes()
