"""The table of methods: which compositions it names, and what it says of trees and chains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from forerun.errors import ForerunError
from forerun.tools.pairs import Round, Run, tokens_per_s

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DRAFTERS = {"shipped": Path("small"), "matched": Path("large")}


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_given_the_default_sets_then_chains_and_trees_of_each_small_model_are_named():
    from compositions import CHAINS, DEFAULT_SETS, PLAIN, TREES, methods_of

    methods = methods_of(DEFAULT_SETS, DRAFTERS)

    assert methods[0] == PLAIN
    names = {one.name for one in methods}
    for drafter in DRAFTERS:
        assert {f"lm {drafter} {shape}" for shape in (*CHAINS, *TREES)} <= names
    assert len(methods) == 2 + len(DRAFTERS) * len((*CHAINS, *TREES))


def test_given_a_triple_then_its_parts_are_a_speculation():
    from compositions import methods_of

    _, wide, own = methods_of(["wide=matched;tree:3x2x1;rejection", "own=lm:dir;chain:2"], DRAFTERS)

    assert (wide.drafter, wide.shape, wide.rule) == ("lm:large", "tree:3x2x1", "rejection")
    assert (wide.kind, wide.keeps_tokens, wide.is_counted) == ("tree", False, True)
    assert (own.kind, own.keeps_tokens, own.is_counted) == ("chain", True, True)
    assert own.weights == Path("dir")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shrubs"], "neither a set"),
        (["a=lookup"], "write 'name=drafter;shape'"),
        (["a=lookup;auto;match;more"], "write 'name=drafter;shape'"),
        (["a=lookup;auto", "a=lookup;chain:2"], "two methods named 'a'"),
        (["a=lookup;bush:3"], "unknown shape"),
        (["a=matched;tree:8;block"], "traversal"),
    ],
)
def test_given_words_that_name_nothing_then_the_sentence_says_what_to_write(words, message):
    from compositions import methods_of

    with pytest.raises(ForerunError, match=message):
        methods_of(words, DRAFTERS)


def test_given_patterns_then_those_methods_are_left_and_plain_with_them():
    from compositions import methods_of, only

    methods = methods_of(["chains", "rules"], DRAFTERS)

    kept = [one.name for one in only(methods, "lookup, lm matched chain:[23]")]
    assert kept == ["plain", "lookup", "lm matched chain:2", "lm matched chain:3"]
    with pytest.raises(ForerunError, match="is like no method"):
        only(methods, "trees*")


def turns_of(*seconds):
    """Two prompts, each with turns of these seconds for ten tokens."""
    from methods import Turn

    runs = [Run(tuple(range(11)), (Round(10, one, 0.0, 0.0),)) for one in seconds]
    return [[Turn(run, ()) for run in runs] for _ in range(2)]


def table_of(speeds):
    """A table's `best` for methods that take these seconds turn by turn."""
    from compositions import methods_of
    from methods import _best

    words = [f"{name}=matched;{shape};{rule}" for name, shape, rule in speeds]
    methods = methods_of(words, DRAFTERS)[1:]
    turns = {one: turns_of(*speeds[one.name, one.shape, one.rule]) for one in methods}
    rows = {
        one: {"tokens_per_s": tokens_per_s([[turn.run for turn in group] for group in own])}
        for one, own in turns.items()
    }
    return _best(rows, turns)


def test_given_trees_and_chains_then_the_fastest_of_each_are_paired_turn_by_turn():
    speeds = {
        ("short", "chain:2", "match"): (2.0, 8.0),
        ("long", "chain:4", "match"): (1.5, 6.0),
        ("bush", "tree:8", "match"): (1.0, 4.0),
        ("shrub", "tree:4", "match"): (1.9, 7.0),
        ("lucky", "tree:6", "rejection"): (0.1, 0.1),  # other tokens: no rival
    }

    (best,) = table_of(speeds)

    assert (best["chain"], best["tree"]) == ("long", "bush")
    # each turn says 1.5, however slow the machine was in it
    assert best["ratio"] == pytest.approx(1.5)
    assert best["ratio_ci95"] == pytest.approx([1.5, 1.5])


def test_given_turns_that_are_not_paired_then_the_interval_says_so():
    """The control: the same seconds in another order are no steady ratio."""
    speeds = {
        ("long", "chain:4", "match"): (6.0, 1.5),
        ("bush", "tree:8", "match"): (1.0, 4.0),
    }

    (best,) = table_of(speeds)

    low, high = best["ratio_ci95"]
    assert high > 2 * low


def test_given_chains_only_then_there_is_no_ratio():
    (best,) = table_of({("long", "chain:4", "match"): (1.0,)})

    assert best == {"drafter": "large", "chain": "long", "tree": None}


def test_given_a_page_then_it_names_the_best_and_what_was_left_out():
    from methods_page import best_table, tree_bars

    best = {"drafter": "large", "chain": "lm matched chain:4", "tree": "lm matched tree:8"}
    figures = {"ratio": 1.2, "ratio_ci95": [1.1, 1.3], "ratio_without_loops": None}
    report = {"tables": [{"temperature": 0.7, "best": [best | figures]}]}

    page = "\n".join(best_table(report))

    assert "| 0.7 | lm matched chain:4 | lm matched tree:8 | 1.20 | 1.10 to 1.30 | — |" in page
    assert "| met |" in "\n".join(tree_bars(report))
    report["tables"][0]["best"] = [best | figures | {"ratio": 1.1}]
    assert "| **missed** |" in "\n".join(tree_bars(report))
