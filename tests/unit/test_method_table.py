"""The table of methods: which compositions it names, and what it says of trees and chains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from forerun.errors import ForerunError
from forerun.tools.pairs import Round, Run, tokens_per_s

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DRAFTERS = {"lm shipped": Path("small"), "lm matched": Path("large")}
LEARNED = {
    **DRAFTERS,
    "dspark shipped": Path("thin/dspark"),
    "dspark matched": Path("wide/dspark"),
    "eagle3 matched": Path("wide/eagle3"),
}


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
        assert {f"{drafter} {shape}" for shape in (*CHAINS, *TREES)} <= names
    assert len(methods) == 2 + len(DRAFTERS) * len((*CHAINS, *TREES))


def test_given_a_triple_then_its_parts_are_a_speculation():
    from compositions import methods_of

    _, wide, own = methods_of(["wide=matched;tree:3x2x1;rejection", "own=lm:dir;chain:2"], DRAFTERS)

    assert (wide.drafter, wide.shape, wide.rule) == ("lm:large", "tree:3x2x1", "rejection")
    assert (wide.kind, wide.keeps_tokens, wide.is_counted) == ("tree", False, True)
    assert (own.kind, own.keeps_tokens, own.is_counted) == ("chain", True, True)
    assert own.weights == Path("dir")


def test_given_learned_drafters_then_their_sets_name_chains_and_trees_of_each():
    from compositions import BLOCK_CHAINS, BLOCK_TREES, EAGLE_SHAPES, methods_of

    methods = {one.name: one for one in methods_of(["blocks", "eagles"], LEARNED)}

    names = {
        *(f"dspark {size} {shape}" for size in ("shipped", "matched")
          for shape in (*BLOCK_CHAINS, *BLOCK_TREES)),
        *(f"eagle3 matched {shape}" for shape in EAGLE_SHAPES),
    }  # fmt: skip
    assert set(methods) == {"plain", "lookup"} | names
    one = methods["dspark matched tree:8"]
    assert (one.drafter, one.size, one.kind) == ("dspark:wide/dspark", "matched", "tree")
    assert (one.drafter_kind, one.is_counted) == ("dspark", True)


def test_given_a_triple_that_names_a_learned_drafter_then_it_is_that_of_its_size():
    from compositions import methods_of

    _, a, b, c = methods_of(
        ["a=dspark matched;tree:9", "b=dspark;chain:2", "c=dspark:dir;chain:2"], LEARNED
    )

    assert [one.weights for one in (a, b, c)] == [
        Path("wide/dspark"),
        Path("thin/dspark"),
        Path("dir"),
    ]
    assert (a.size, b.size, c.size) == ("matched", "shipped", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shrubs"], "neither a set"),
        (["a=lookup"], "write 'name=drafter;shape'"),
        (["a=lookup;auto;match;more"], "write 'name=drafter;shape'"),
        (["a=lookup;auto", "a=lookup;chain:2"], "two methods named 'a'"),
        (["a=lookup;bush:3"], "unknown shape"),
        (["a=matched;tree:8;block"], "traversal"),
        (["a=dflash matched;tree:8"], "no dflash matched drafter"),
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
    from method_rows import Turn

    runs = [Run(tuple(range(11)), (Round(10, one, 0.0, 0.0),)) for one in seconds]
    return [[Turn(run, ()) for run in runs] for _ in range(2)]


def table_of(speeds):
    """A table's `best` for methods that take these seconds turn by turn."""
    from compositions import methods_of
    from method_rows import best_of

    words = [f"{name}=matched;{shape};{rule}" for name, shape, rule in speeds]
    methods = methods_of(words, DRAFTERS)[1:]
    turns = {one: turns_of(*speeds[one.name, one.shape, one.rule]) for one in methods}
    rows = {one: row_for(own) for one, own in turns.items()}
    return best_of(rows, turns)


def row_for(own):
    speed = tokens_per_s([[turn.run for turn in group] for group in own])
    return {"tokens_per_s": speed, "ratio_without_loops": speed}


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
    from method_bars import tree_bars
    from methods_page import best_table

    best = {"drafter": "large", "chain": "lm matched chain:4", "tree": "lm matched tree:8"}
    figures = {"ratio": 1.2, "ratio_ci95": [1.1, 1.3], "ratio_without_loops": None}
    report = {"tables": [{"temperature": 0.7, "best": [best | figures]}]}

    page = "\n".join(best_table(report))

    assert "| 0.7 | lm matched chain:4 | lm matched tree:8 | 1.20 | 1.10 to 1.30 | — |" in page
    assert "| met |" in "\n".join(tree_bars(report))
    report["tables"][0]["best"] = [best | figures | {"ratio": 1.1}]
    assert "| **missed** |" in "\n".join(tree_bars(report))


def test_given_block_drafters_and_small_models_then_their_best_chains_are_rivals():
    from compositions import methods_of
    from method_rows import rivals_of

    words = {
        "short=dspark matched;chain:2": (1.0, 4.0),
        "long=dspark matched;chain:7": (0.5, 2.0),
        "small=lm matched;chain:3": (1.0, 4.0),
        "slow=lm matched;chain:5": (1.5, 9.0),
        "tree=lm matched;tree:8": (0.1, 0.1),  # no chain
        "thin=dspark shipped;chain:7": (0.1, 0.1),  # alone in its size
    }
    methods = methods_of(list(words), LEARNED)[1:]
    turns = {one: turns_of(*own) for one, own in zip(methods, words.values(), strict=True)}

    (rivals,) = rivals_of({one: row_for(own) for one, own in turns.items()}, turns)

    assert (rivals["size"], rivals["block"], rivals["lm"]) == ("matched", "long", "small")
    assert rivals["ratio"] == pytest.approx(2.0)


def learned_report(**figures):
    """A hand-made file: every row at every temperature has these ratios without loops."""

    def row(name, ratio):
        kind = "tree" if "tree" in name else "chain"
        cell = {"ratio": ratio, "ratio_without_loops": ratio, "ratio_ci95": [ratio, ratio]}
        return {"name": name, "kind": kind, **cell, "categories": {"novel_code": cell}}

    rows = [row(name, ratio) for name, ratio in figures.items()]
    rivals = [{"size": "matched", "block": "b", "lm": "l", "ratio_without_loops": 1.3}]
    tables = [
        {"temperature": heat, "rows": rows, "rivals": rivals, "best": []} for heat in (0, 0.7, 1)
    ]
    return {"topic": "learned", "tables": tables}


def test_given_learned_drafters_then_every_bar_of_theirs_is_a_line():
    from method_bars import bar_table

    figures = {
        "dspark matched chain:7": 2.5,
        "dspark matched tree:16": 2.6,
        "dspark shipped tree:16": 5.5,
        "lm matched tree:8": 9.0,  # no block drafter
        "eagle3 matched tree:8": 1.7,
    }

    page = "\n".join(bar_table(learned_report(**figures)))

    assert "chain, matched, greedy, without loops | ≥ 2.4 | 2.50 | met |" in page
    assert "tree, matched, greedy, without loops | ≥ 3 | 2.60 | **missed** |" in page
    assert "T=0.7, without loops | ≥ 2.4 | 2.60 | met |" in page
    assert "T=1, without loops | ≥ 1.5 | 2.60 | met |" in page
    assert "novel_code`, greedy, without loops | ≥ 5 | 5.50 | met |" in page
    assert "matched, greedy, without loops | ≥ 1.2 | 1.30 | met |" in page
    assert "| in the table | 1.70 | measured; steps are on the cards |" in page


def test_given_no_eagle_in_the_table_then_its_bar_is_missed():
    from method_bars import bar_table

    page = "\n".join(bar_table(learned_report(**{"dspark matched chain:7": 2.5})))

    assert "EAGLE-3 tree, matched, greedy, without loops | in the table | not measured" in page
    assert "not measured | **missed** |" in page


def test_given_files_of_two_topics_then_neither_repeats_the_other():
    from methods_page import table_key

    keys = {
        table_key({"model": "build/260M"}),
        table_key({"model": "elsewhere/260M"}),
        table_key({"model": "build/260M", "topic": "learned"}),
    }
    assert keys == {("", "260M"), ("learned", "260M")}
