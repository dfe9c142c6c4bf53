"""Traces: what is written can be read, what was changed is refused, what is cut is not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from traced_runs import PROMPTS, SAMPLED, header_of, run, traced

from forerun import OptionError, SamplingParams, cli
from forerun.draft import Draft, Draw, Verdict
from forerun.stats import RoundStats
from forerun.tools.replay import answer, ask
from forerun.tools.trace_reader import read_trace
from forerun.tools.trace_writer import TraceWriter
from forerun.tree import TokenTree


@pytest.fixture(scope="session")
def target(tiny_checkpoint_dir):
    return tiny_checkpoint_dir("qwen3", 0)


@pytest.fixture(scope="session")
def lm(tiny_checkpoint_dir, target):
    return f"lm:{tiny_checkpoint_dir('qwen3', 1, near=(target, 0.02))}"


@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("shape", ["chain:4", "tree:7"])
def test_given_a_trace_then_it_holds_the_run_and_changes_no_token(
    tmp_path, target, lm, shape, params
):
    completions, trace = traced(tmp_path / "t", target, lm, shape, PROMPTS, **params)

    plain = run(target, "none", "chain:1", PROMPTS, **params)
    assert [one.token_ids for one in completions] == [one.token_ids for one in plain]
    for request, completion in enumerate(completions):
        rounds = trace.rounds_of(request)
        assert trace.emitted(request) == list(completion.token_ids)
        assert list(trace.requests[request].prompt_ids) == PROMPTS[request]
        assert len(rounds) == completion.stats.num_rounds
        assert sum(one.num_accepted for one in rounds) == completion.stats.num_accepted
        assert sum(one.num_drafted for one in rounds) == completion.stats.num_drafted
        assert rounds[-1].finish_reason == "length"
        assert all(one.num_rows <= 3 and one.round_s >= one.verify_s > 0 for one in rounds)
    assert trace.summary.num_tokens == 120


# --- what was changed --------------------------------------------------------------------------


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def first_round(lines):
    """The first round of which a draft was refused."""
    return next(
        one for one in lines if one["kind"] == "round" and len(one["path"]) < len(one["tokens"])
    )


def test_given_a_changed_byte_then_the_trace_is_refused(tmp_path, target, lm):
    path = tmp_path / "t"
    traced(path, target, lm, "chain:4")
    path.write_text(path.read_text().replace('"draft_s":0.', '"draft_s":9.', 1))
    with pytest.raises(OptionError, match="was changed after it was written"):
        read_trace(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["choices"].__setitem__(0, one["choices"][0] ^ 1), "does not follow from"),
        (lambda one: one.update(known=one["known"] + 1), "pending token is not the last"),
        (lambda one: one.update(kept=9), "no path in its tree"),
        (lambda one: one["parents"].__setitem__(1, 3), "smaller index"),
        (lambda one: one["tokens"].__setitem__(1, 4000), "outside the vocabulary"),
        (lambda one: one.update(draw="luck"), "luck"),
        (lambda one: one.pop("choices"), "KeyError"),
        (lambda one: one.update(round_s="long"), "round_s must be float"),
        (lambda one: one.update(round=7), "does not follow on the round before"),
    ],
)
def test_given_a_round_that_contradicts_itself_then_it_is_named(
    tmp_path, target, lm, change, message
):
    path = tmp_path / "t"
    traced(path, target, lm, "chain:4")
    lines = lines_of(path)[:-1]  # without the summary nothing else protects it
    write_lines(path, lines)
    read_trace(path)

    change(first_round(lines))
    write_lines(path, lines)

    with pytest.raises(OptionError, match=message):
        read_trace(path)


def test_given_another_draft_that_contradicts_nothing_then_the_replay_disagrees(
    tmp_path, target, lm
):
    path = tmp_path / "t"
    traced(path, target, lm, "chain:4")
    lines = lines_of(path)[:-1]
    write_lines(path, lines)
    assert answer(ask(read_trace(path))).agrees is True

    one = first_round(lines)
    one["tokens"][-1] = next(
        token for token in range(97, 110) if token not in (one["tokens"][-1], *one["choices"])
    )
    write_lines(path, lines)

    assert answer(ask(read_trace(path))).agrees is False


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no trace"), ("{}\n", "no line of a trace"), ("[]\n", "no line"), ("x\n", ":1 is no")],
)
def test_given_no_trace_then_it_is_said(tmp_path, content, message):
    path = tmp_path / "t"
    path.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_trace(path)


def test_given_laws_then_the_path_s_are_written(tmp_path):
    """Three tokens of vocabulary 4: a draft with two expanded nodes, a law of which one is met."""

    class Row:
        id, prompt_len, limit, seed, finish_reason = 3, 2, 9, 1, None
        params = SamplingParams(temperature=1.0)

    row = Row()
    row.tokens = [1, 2]
    law = np.array([[0.1, 0.2, 0.3, 0.4], [0.25] * 4], np.float32)
    tree = TokenTree(np.array([2, 3, 0, 1], np.int32), np.array([-1, 0, 0, 1], np.int32))
    draft = Draft(tree, Draw.SAMPLED, np.array([0, 1], np.int32), law)
    said = np.tile(np.array([0.0, 0.5, 0.0, 0.5], np.float32), (4, 1))
    with TraceWriter(tmp_path / "t") as writer:
        writer.begin(header_of("m", "lm", "tree:3", "traversal"))
        writer.saw([row], [draft], said, [0, 4], [Verdict((0, 1), 1)])
        row.tokens = [1, 2, 3, 1]
        writer.settled(RoundStats(1, 3, 1, 0.3, 0.1, 0.1, 0.1))

    (one,) = read_trace(tmp_path / "t").rounds

    first, second = one.draft_laws
    assert first.top == ((3, 0.4), (2, 0.3), (1, 0.2), (0, 0.1))
    assert first.children == ((3, 0.4), (0, 0.1))
    assert (first.kept, second.kept) == ((3, 0.4), (1, 0.25))
    assert [law.node for law in one.target_laws] == [0, 1]
    assert one.target_laws[0].children == ((3, 0.5), (0, 0.0))
    assert one.emitted == (3, 1)


# --- as a user runs it ---------------------------------------------------------------------------


def forerun(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "forerun.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"COLUMNS": "100"},
        check=False,
    )


def found(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def command_trace(tmp_path_factory, target, lm):
    """A file of `generate --trace`, and the object of its `--json`."""
    path = tmp_path_factory.mktemp("command") / "run.jsonl"
    options = ["-m", target, "abcabcab", "-n", 30, "-d", lm, "--shape", "tree:6"]
    return path, found(forerun("generate", *options, "--json", "--trace", path))


def test_given_the_command_line_then_a_trace_is_shown(command_trace, capsys):
    path, one = command_trace

    shown = said(capsys, "trace", "show", path, "--json")

    assert len(shown["rounds"]) == one["stats"]["num_rounds"] == shown["totals"]["num_rounds"]
    assert shown["header"]["shape"] == "tree:6"
    assert said(capsys, "trace", "show", path, "--round", 1, "--json")["round"] == 1
    assert "30 tokens in" in said(capsys, "trace", "show", path)
    drawn = forerun("trace", "show", path, "--round", 1).stdout
    assert all(word in drawn for word in ("pending", "bonus", "margin", "rank 0", "verify"))


def test_given_the_command_line_then_a_trace_is_replayed(command_trace, capsys):
    path, one = command_trace

    again = said(capsys, "trace", "replay", path, "--json")

    assert (again["agrees"], again["method"], again["is_exact"]) == (True, "rerun", True)
    assert again["num_rounds"] == [one["stats"]["num_rounds"]] * 2
    assert "agrees with the trace" in forerun("trace", "replay", path).stdout
    other = said(capsys, "trace", "replay", path, "--shape", "chain:4", "--no-rerun")
    assert "(determined)" in other
    unknown = said(capsys, "trace", "replay", path, "--shape", "tree:9", "--no-rerun")
    assert "interval [" in unknown
    assert "(bounded)" in unknown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "FILE", "--round", "99"], "counted from 0"),
        (["show", "FILE", "--round", "0", "--request", "3"], "the trace has 1 requests"),
        (["show", "/nowhere"], "cannot be read"),
        (["replay", "FILE", "--shape", "chain:999"], "chain:N with N in"),
        (["replay", "FILE", "--drafter", "auto", "--shape", "auto"], "--drafter lookup"),
    ],
)
def test_given_what_cannot_be_then_it_is_a_sentence(command_trace, capsys, words, message):
    path, _ = command_trace
    code = cli.run(["trace", *[word.replace("FILE", str(path)) for word in words]])
    assert code == 2
    assert message in capsys.readouterr().err


def said(capsys, *words):
    """What a command prints, an object where `--json` asks for one."""
    capsys.readouterr()
    assert cli.run([*map(str, words)]) == 0
    text = capsys.readouterr().out
    return json.loads(text) if "--json" in words else text


def test_given_a_changed_draft_then_the_command_exits_1(tmp_path, target, lm, capsys):
    path = tmp_path / "t"
    traced(path, target, lm, "chain:4")
    lines = lines_of(path)[:-1]
    one = first_round(lines)
    one["tokens"][-1] = next(
        token for token in range(97, 110) if token not in (one["tokens"][-1], *one["choices"])
    )
    write_lines(path, lines)

    assert cli.run(["trace", "replay", str(path)]) == 1
    assert "DOES NOT agree" in capsys.readouterr().out


def test_given_a_killed_process_then_its_trace_can_be_read(tmp_path, tiny_checkpoint_dir, capsys):
    model = tiny_checkpoint_dir("qwen3", max_position_embeddings=8192)
    path = tmp_path / "cut.jsonl"
    options = ["generate", "-m", model, "abcab", "-n", 8000, "--ignore-eos", "-d", "lookup"]
    options += ["--shape", "chain:3", "-t", 1, "--trace", path]
    command = [sys.executable, "-m", "forerun.cli", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_lines(path, 10)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    path.write_bytes(path.read_bytes()[:-5])  # in the middle of a line, wherever it was

    shown = found(forerun("trace", "show", path, "--json"))

    assert shown["is_cut"] is True
    assert len(shown["rounds"]) >= 5
    assert "was cut before its end" in said(capsys, "trace", "show", path)
    again = said(capsys, "trace", "replay", path, "--json")
    assert (again["is_cut"], again["agrees"]) == (True, True)


def wait_for_lines(path: Path, num_lines: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= num_lines:
            return
        time.sleep(0.02)
    raise AssertionError("no rounds were written")
