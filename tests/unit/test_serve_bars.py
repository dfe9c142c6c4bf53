"""How benchmarks/serve.py judges: medians of turns, ratios against each bar, what was drafted."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def opened(name: str) -> ModuleType:
    """A script as a module, under a name that no package of the tests has."""
    spec = spec_from_file_location(f"benchmark_of_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look there
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bars() -> ModuleType:
    """What judges."""
    return opened("serve_bars")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """What measures."""
    return opened("serve")


def run(composition: str, tokens_per_s: float, concurrency: float = 1.0) -> dict[str, object]:
    return {"composition": composition, "concurrency": concurrency, "tokens_per_s": tokens_per_s}


def test_given_turns_then_a_rate_is_their_median(bars: ModuleType) -> None:
    runs = [run("auto", 5.0), run("auto", 90.0), run("auto", 7.0), run("auto", 1.0, 4.0)]
    assert bars.rates_of(runs) == {1: {"auto": 7.0}, 4: {"auto": 1.0}}


@pytest.mark.parametrize(("auto", "is_met"), [(97.0, True), (96.9, False)])
def test_given_rates_then_auto_is_judged_by_the_better_one(
    bars: ModuleType, auto: float, is_met: bool
) -> None:
    for others in ({"off": 100.0, "fixed": 50.0}, {"off": 50.0, "fixed": 100.0}):
        (row,) = bars.judged({8: {**others, "auto": auto}}, {})
        assert row["best_is_met"] is is_met
        assert row["peer_is_met"] is None


@pytest.mark.parametrize(
    ("load", "least", "is_met"), [(1, 4.0, True), (1, 3.9, False), (4, 3.5, True), (32, 1.9, False)]
)
def test_given_a_peer_then_each_load_has_its_bar(
    bars: ModuleType, load: int, least: float, is_met: bool
) -> None:
    rates = {load: {"off": 1.0, "fixed": 1.0, "auto": least * 10.0}}
    (row,) = bars.judged(rates, {load: 10.0})
    assert row["peer_is_met"] is is_met


def test_given_a_peer_that_was_measured_beside_then_it_is_the_one_that_counts(
    bars: ModuleType,
) -> None:
    rates = {1: {"off": 1.0, "fixed": 1.0, "auto": 30.0, "peer": 10.0}}
    (row,) = bars.judged(rates, {1: 1.0})
    assert (row["of_peer"], row["peer_is_met"]) == (3.0, False)


def test_given_a_command_then_its_words_are_filled_in(script: ModuleType, tmp_path: Path) -> None:
    words = script.command_of("env A=1 serve {model}\n  --port {port} --name 'a b'", tmp_path, 81)
    assert words == ["env", "A=1", "serve", str(tmp_path), "--port", "81", "--name", "a b"]


def test_given_a_load_without_bar_or_peer_then_it_is_not_judged(bars: ModuleType) -> None:
    rates = {load: {"off": 1.0, "fixed": 1.0, "auto": 1.0} for load in (8, 32)}
    eight, most = bars.judged(rates, {8: 10.0})
    assert (eight["of_peer"], eight["peer_is_met"]) == (0.1, None)
    assert (most["of_peer"], most["peer_is_met"]) == (None, None)


def turn(composition: str, *counts: int, concurrency: float = 1.0) -> dict[str, Any]:
    names = ("num_steps", "num_draft_tokens", "num_accepted_tokens")
    told = dict(zip(names, counts, strict=True)) if counts else None
    return {**run(composition, 1.0, concurrency), "acceptance": told}


def test_given_turns_then_drafts_are_counted_by_the_round_over_all_of_them(
    bars: ModuleType,
) -> None:
    alone = [turn("auto", 10, 60, 30), turn("auto", 30, 60, 30)]
    rest = [turn("auto", 40, 0, 0, concurrency=16.0), turn("off", 0, 0, 0), turn("peer")]

    found = bars.drafts_of([*alone, *rest])

    assert [tuple(one.values()) for one in found] == [
        ("auto", 1, 3.0, 0.5), ("auto", 16, 0.0, None), ("off", 1, None, None),
    ]  # fmt: skip


def test_given_a_report_then_the_table_says_what_was_served_and_whether_it_drafted(
    bars: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {load: {"off": 1.0, "fixed": 1.0, "auto": 2.0} for load in (1, 16)}
    runs = [turn("auto", 10, 45, 30), turn("auto", 40, 0, 0, concurrency=16.0)]
    bars.show(
        {
            "machine": "one", "parameters": 1e6, "errors": {}, "bars": bars.judged(rates, {}),
            "served": {"auto": {"drafter": "dspark", "shape": "auto"}, "fixed": None},
            "drafts": bars.drafts_of(runs), "runs": [{"others": {"cores": 0.0}}],
            "check": {"identical": True, "num_compared": 1, "num_everywhere": 1},
        }
    )  # fmt: skip

    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["auto: drafter dspark, shape auto", "fixed: not told"]
    assert [line.split()[-2:] for line in lines[3:6]] == [
        ["drafts", "kept"], ["4.50", "0.67"], ["0.00", "-"],
    ]  # fmt: skip


@pytest.mark.parametrize(("drafter", "options"), [(None, []), ("lm", ["--drafter", "lm"])])
def test_given_a_drafter_for_auto_or_none_then_nothing_else_of_it_is_said(
    script: ModuleType, drafter: str | None, options: list[str]
) -> None:
    asked = SimpleNamespace(drafter="lookup", chain=4, auto_drafter=drafter)
    assert script.compositions(asked)["auto"] == options


def test_given_nothing_that_was_answered_then_the_bar_is_missed(bars: ModuleType) -> None:
    (row,) = bars.judged({1: {"off": 0.0, "fixed": 0.0, "auto": 0.0}}, {})
    assert (row["of_best"], row["best_is_met"]) == (None, False)


def test_given_a_report_of_the_load_tool_then_it_is_the_peer_else_what_was_noted_at_its_size(
    bars: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "peer.json"
    file.write_text(json.dumps({"rows": [run("", 12.0, 4.0)]}))
    assert bars.peer_of(file, 1) == {4: 12.0}
    assert bars.peer_of(None, 262_000_000) == bars.NOTED_PEER
    assert bars.peer_of(None, 10_000_000) == {}
