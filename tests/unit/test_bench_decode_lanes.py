"""`bench decode` of a schedule that works ahead, and what `generate` says of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from rich.console import Console

from forerun.tools.arguments import EngineArguments
from forerun.tools.bench_lanes import lanes_of, models_of
from forerun.tools.lane_show import LANE_HEADS, lane_table

Write = Callable[..., Path]
PROMPT = "def add(a, b):\n    return a + b\n\ndef add(a, b):\n"
SPECULATION = ["--shape", "chain:4", "--schedule", "ahead:4"]
ROW_KEYS = {
    "tokens_per_s", "tokens_per_s_per_core", "tokens_per_round", "target_flops_per_token",
    "draft_flops_per_token", "bytes_per_token", "ratio", "ahead_ratio", "num_cores",
}  # fmt: skip
OVERLAP_KEYS = {
    "hit_rate", "steady_hit_rate", "hidden_share", "branches_wasted", "nodes_wasted", "causes",
    "published", "pays", "verdict",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_checkpoint_dir: Write) -> Path:
    return tiny_checkpoint_dir("qwen3", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def drafter(tiny_checkpoint_dir: Write, model: Path) -> str:
    near = tiny_checkpoint_dir(
        "qwen3", seed=5, scale=0.02, near=(model, 1.0), max_position_embeddings=8192
    )
    return f"lm:{near}"


def forerun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forerun.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "100"},
        check=False,
    )


@pytest.mark.alone
def test_given_ahead_then_json_has_the_old_keys_and_the_new(
    model: Path, drafter: str, tmp_path: Path
) -> None:
    # Given
    prompts, picture = tmp_path / "prompts.jsonl", tmp_path / "lanes.svg"
    prompts.write_text(json.dumps({"prompt": PROMPT}))
    options = ["-m", str(model), "-d", drafter, *SPECULATION, "-n", "24", "--ignore-eos"]
    # When
    done = forerun(
        "bench", "decode", *options, "--prompts", str(prompts), "--repeat", "1", "--json",
        "--timeline", str(picture),
    )  # fmt: skip
    # Then: everything that scripts build on is as without lanes.
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"] is True
    assert found["baseline"]["tokens_per_s"] > 0
    assert found["speculative"]["tokens_per_round"] >= 1
    assert found["ratio_ci95"][0] <= found["ratio"] <= found["ratio_ci95"][1]
    assert len(found["prompts"]) == 1
    # And: who is compared, where, at what cost, and what working ahead brought.
    for name in ("plain", "sequential", "sequential_lanes", "ahead"):
        assert found[name].keys() >= ROW_KEYS
    assert found["lanes"].keys() == {"target", "draft"}
    assert found["overlap"].keys() >= OVERLAP_KEYS
    assert sum(found["overlap"]["causes"].values()) == pytest.approx(1.0)
    assert found["overlap"]["verdict"].startswith("ahead:4 ")
    # And: what the lane delivered has a price. How much that is hangs on how often a busy machine
    # made it late, and is proved where rounds are made up (test_lane_report.py).
    causes = found["overlap"]["causes"]
    has_delivered = causes["hit"] + causes["wrong"] + causes["short"] > 0
    assert (found["ahead"]["draft_flops_per_token"] > 0) >= has_delivered
    assert found["plain"]["draft_flops_per_token"] == 0
    spans = [one for one in ET.parse(picture).iter() if "span" in one.get("class", "")]
    assert spans


def test_given_ahead_then_people_see_a_table_the_lanes_and_a_verdict(
    model: Path, drafter: str, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}))
    options = ["-m", str(model), "-d", drafter, *SPECULATION, "-n", "24", "--ignore-eos"]
    done = forerun("bench", "decode", *options, "--prompts", str(prompts), "--repeat", "1")
    assert done.returncode == 0, done.stderr
    said = ("sequential, lanes", "drafter", "plain decoding", "on this machine", "because")
    for words in (*said, "a number of branches was asked for"):
        assert words in done.stdout
    assert "identical: yes" in done.stdout


@pytest.mark.parametrize("has_lanes", [True, False])
def test_given_lanes_then_why_nothing_overlaps_on_them_is_said(
    model: Path, drafter: str, tmp_path: Path, *, has_lanes: bool
) -> None:
    prompts, core = tmp_path / "prompts.jsonl", min(os.sched_getaffinity(0))
    prompts.write_text(json.dumps({"prompt": PROMPT}))
    lanes = ["--lanes", f"target={core},draft={core}"] if has_lanes else []
    options = ["-m", str(model), "-d", drafter, "--schedule", "sequential", *lanes, "-n", "8"]
    done = forerun("bench", "decode", *options, "--prompts", str(prompts), "--repeat", "1")
    assert done.returncode == 0, done.stderr
    assert ("schedule: sequential was asked for" in done.stdout) is has_lanes


def test_given_a_timeline_without_lanes_then_it_is_refused_in_a_sentence(model: Path) -> None:
    options = ["bench", "decode", "-m", str(model), "--timeline"]
    done = forerun(*options, "a.svg")
    assert done.returncode == 2
    assert "--schedule ahead" in done.stderr
    done = forerun(*options, "a.pdf", "--schedule", "ahead")
    assert done.returncode == 2
    assert "must end in .svg or .png" in done.stderr


def test_given_ahead_then_generate_counts_what_it_brought(model: Path, drafter: str) -> None:
    options = ["-m", str(model), "-d", drafter, "-n", "24", "--ignore-eos", PROMPT]
    ahead = forerun("generate", *options, *SPECULATION, "--json")
    assert ahead.returncode == 0, ahead.stderr
    found = json.loads(ahead.stdout)
    assert found["stats"]["lane"].keys() >= {"hit_rate", "causes", "num_hit", "busy_s"}
    # And: without lanes there is nothing to count, and the same text.
    alone = json.loads(forerun("generate", *options, "--json").stdout)
    reason = "a number of branches was asked for"
    assert found["schedule"] == {"kind": "ahead", "num_branches": 4, "reason": reason}
    assert alone["schedule"]["kind"] == "sequential"
    assert "lane" not in alone["stats"]
    assert alone["text"] == found["text"]
    # And: people read it in the closing line.
    assert "hit rate" in forerun("generate", *options, *SPECULATION).stderr
    assert "hit rate" not in forerun("generate", *options).stderr


def test_given_lanes_or_none_then_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert lanes_of(EngineArguments()) == {"target": (0, 1, 2), "draft": (3,)}
    assert lanes_of(EngineArguments(threads=2)) == {"target": (0,), "draft": (1,)}
    given = EngineArguments(lanes="target=0-1,draft=2")
    assert lanes_of(given) == {"target": (0, 1), "draft": (2,)}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7})
    assert lanes_of(EngineArguments()) == {"target": (7,), "draft": (7,)}


def test_given_a_drafters_name_then_its_passes_can_be_counted_or_not(
    model: Path, drafter: str
) -> None:
    known = models_of(EngineArguments(model=str(model), drafter=drafter))
    assert known.is_known
    assert known.drafter is not None
    free = models_of(EngineArguments(model=str(model), drafter="lookup"))
    assert free.is_known
    assert free.drafter is None
    assert not models_of(EngineArguments(model=str(model), drafter="auto")).is_known


def lane_row(name: str, cores: list[int]) -> dict[str, object]:
    """A row with figures as wide as they come."""
    return {
        "name": name, "lanes": {"target": cores, "draft": [2]}, "tokens_per_s": 1234.56,
        "tokens_per_s_per_core": 617.28, "ratio": 12.34, "ahead_ratio": 10.98,
        "ahead_ratio_ci95": (0.95, 12.34), "tokens_per_round": 12.34,
        "target_flops_per_token": 0.052e9, "draft_flops_per_token": 0.031e9,
    }  # fmt: skip


def shown(width: int) -> str:
    names = ("plain", "sequential", "sequential_lanes", "ahead")
    rows = {name: lane_row(name.replace("_", ", "), [0, 1]) for name in names}
    out = io.StringIO()
    Console(file=out, width=width).print(lane_table({**rows, "schedule": "ahead:24"}))
    return out.getvalue()


def test_given_80_columns_then_every_heading_and_figure_is_whole() -> None:
    text = shown(80)
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        *LANE_HEADS,
        "sequential,",
        "0-1|2",
        "1234.6",
        "0.95\N{EN DASH}12.34",
        "0.052+0.031",
    ):
        assert word in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_control_given_fewer_columns_than_figures_take_then_some_are_cut() -> None:
    assert "\N{HORIZONTAL ELLIPSIS}" in shown(50)
