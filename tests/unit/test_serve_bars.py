"""How benchmarks/serve.py judges: medians of turns, and ratios against each bar."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "serve.py"


@pytest.fixture(scope="module")
def bars() -> ModuleType:
    """The script as a module, under a name that no package of the tests has."""
    spec = spec_from_file_location("benchmark_of_serve", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look there
        spec.loader.exec_module(module)
    return module


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


def test_given_a_command_then_its_words_are_filled_in(bars: ModuleType, tmp_path: Path) -> None:
    words = bars.command_of("env A=1 serve {model}\n  --port {port} --name 'a b'", tmp_path, 81)
    assert words == ["env", "A=1", "serve", str(tmp_path), "--port", "81", "--name", "a b"]


def test_given_a_load_without_bar_or_peer_then_it_is_not_judged(bars: ModuleType) -> None:
    rates = {load: {"off": 1.0, "fixed": 1.0, "auto": 1.0} for load in (8, 32)}
    eight, most = bars.judged(rates, {8: 10.0})
    assert (eight["of_peer"], eight["peer_is_met"]) == (0.1, None)
    assert (most["of_peer"], most["peer_is_met"]) == (None, None)


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
