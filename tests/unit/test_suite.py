"""The prompt suite: what its files promise, and what `bench decode --suite` makes of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from forerun.errors import OptionError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import ModelSpec
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.tools.arguments import EngineArguments, SamplingArguments
from forerun.tools.bench_decode import Plan, by_label, figures, run
from forerun.tools.pairs import Pair, Round, Run
from forerun.tools.prompt_files import (
    CONTEXT_LENS,
    SUITE,
    TIERS,
    Prompt,
    read_suite,
    spread,
    suite_categories,
)
from forerun.tools.tables import show_decode

KEYS = {"name", "prompt", "category", "context", "entropy", "source", "license"}
CATEGORIES = ["docstrings", "edit", "novel_code", "out_of_domain", "prose", "structured"]
LICENSES = {"Apache-2.0", "MIT", "BSD-3-Clause", "MIT OR Apache-2.0"}
OWN = {"written for forerun", "drawn at random", "forerun"}
MAX_SUITE_BYTES = 520_000


def lines_of(category: str) -> list[dict[str, str]]:
    text = (SUITE / f"{category}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [row for category in suite_categories() for row in lines_of(category)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    directory = resolve_model(EMBEDDED_NAME)
    spec: ModelSpec = open_checkpoint(directory).spec
    return load_tokenizer(directory, spec)


# --- the files ---------------------------------------------------------------------------------


def test_every_line_has_every_key_and_a_licence_that_is_known(rows: list[dict[str, str]]) -> None:
    assert suite_categories() == CATEGORIES
    assert all(row.keys() == KEYS and all(row.values()) for row in rows)
    assert {row["license"] for row in rows} <= LICENSES
    notices = (SUITE / "LICENSES.md").read_text(encoding="utf-8")
    held_out = {row["source"].split(",")[0] for row in rows} - OWN
    assert held_out
    assert all(f"**{package}**" in notices for package in held_out)


def test_names_are_unique_and_categories_are_those_of_the_files(rows: list[dict[str, str]]) -> None:
    names = Counter(row["name"] for row in rows)
    assert [name for name, times in names.items() if times > 1] == []
    assert all(row["category"] == name for name in CATEGORIES for row in lines_of(name))


def test_there_are_about_200_and_most_are_short(rows: list[dict[str, str]]) -> None:
    contexts = Counter(row["context"] for row in rows)
    assert 180 <= len(rows) <= 220
    assert contexts["64"] > contexts["1k"] > contexts["4k"] >= 18
    assert sum(path.stat().st_size for path in SUITE.iterdir()) <= MAX_SUITE_BYTES


def test_a_third_of_the_prompts_is_in_each_tier(rows: list[dict[str, str]]) -> None:
    tiers = Counter(row["entropy"] for row in rows)
    assert set(tiers) == set(TIERS)
    assert max(tiers.values()) - min(tiers.values()) <= 1


def test_prompts_are_as_long_as_their_context_says(
    rows: list[dict[str, str]], tokenizer: Tokenizer
) -> None:
    wrong = {
        row["name"]: num_tokens
        for row in rows
        for low, high in [CONTEXT_LENS[row["context"]]]
        if not low <= (num_tokens := len(tokenizer.encode(row["prompt"]))) <= high
    }
    assert wrong == {}


def contained(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Prompts that stand within one of another category."""
    texts = {name: [r for r in rows if r["category"] == name] for name in CATEGORIES}
    return [
        (one["name"], other["name"])
        for one in rows
        for name in CATEGORIES
        if name != one["category"]
        for other in texts[name]
        if one["prompt"].strip() in other["prompt"]
    ]


def test_no_prompt_is_part_of_another_category(rows: list[dict[str, str]]) -> None:
    assert contained(rows) == []

    # The control: a copy under another category is noticed.
    copy = {**rows[0], "name": "copy", "category": "prose"}
    assert ("copy", rows[0]["name"]) in contained([*rows, copy])


# --- which prompts are measured ----------------------------------------------------------------


def test_categories_are_read_by_name_and_all_by_all() -> None:
    assert {one.category for one in read_suite("prose, edit")} == {"prose", "edit"}
    assert len(read_suite("all")) == sum(len(lines_of(name)) for name in CATEGORIES)


@pytest.mark.parametrize("asked", ["novel", "prose,poems", ","])
def test_an_unknown_category_is_refused_with_those_there_are(asked: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_suite(asked)
    assert all(name in str(caught.value) for name in CATEGORIES)


def test_a_limit_spreads_over_the_categories() -> None:
    chosen = Plan.parse(None, "all", limit=24, repeat=1).prompts
    assert len(chosen) == 24
    assert {one.category for one in chosen} == set(CATEGORIES)
    assert {one.context for one in chosen} == set(CONTEXT_LENS)

    # The control: the first 24 are of one category.
    assert len({one.category for one in read_suite("all")[:24]}) == 1


def test_a_spread_has_each_prompt_once() -> None:
    prompts = [Prompt(str(number), "x") for number in range(7)]
    for limit in range(9):
        names = [one.name for one in spread(prompts, limit)]
        assert len(set(names)) == len(names) == (min(limit, 7) or 7)


def test_a_file_and_the_suite_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--prompts and --suite"):
        Plan.parse(tmp_path / "x.jsonl", "all", limit=0, repeat=1)


# --- what the report says ----------------------------------------------------------------------


def run_of(token_ids: list[int], *rounds: tuple[int, float]) -> Run:
    return Run(tuple(token_ids), tuple(Round(count, s, s / 10, s / 100) for count, s in rounds))


def pair_of(token_ids: list[int], plain_s: float, speculative_s: float) -> Pair:
    num_rounds = len(token_ids) // 2
    plain = run_of(token_ids, *[(1, plain_s / len(token_ids))] * len(token_ids))
    return Pair(plain, run_of(token_ids, *[(2, speculative_s / num_rounds)] * num_rounds))


PROMPTS = [
    Prompt("a", "", "edit", "64", "low"),
    Prompt("b", "", "edit", "1k", "high"),
    Prompt("c", "", "prose", "64", "high"),
]
GROUPS = [
    [pair_of(list(range(12)), 3.0, 1.0)],
    [pair_of([1, 2, 3, 4] * 2, 2.0, 2.0)],
    [pair_of([7] * 6, 1.0, 0.5)],
]


def test_category_figures_combine_to_the_total() -> None:
    total = figures(GROUPS)
    rows = by_label("category", ["edit", "prose"], PROMPTS, GROUPS)
    num_tokens = [row["num_tokens"] for row in rows]
    assert [row["num_prompts"] for row in rows] == [2, 1]
    for side, key in (("baseline", "plain_tokens_per_s"), ("speculative", "tokens_per_s")):
        seconds = sum(n / row[key] for n, row in zip(num_tokens, rows, strict=True))
        assert sum(num_tokens) / seconds == pytest.approx(total[side]["tokens_per_s"])
    looping = sum(n * row["loop_share"] for n, row in zip(num_tokens, rows, strict=True))
    assert looping / sum(num_tokens) == pytest.approx(total["speculative"]["loop_share"])
    assert sum(row["num_without_loops"] for row in rows) == total["num_without_loops"]


def test_the_suite_is_measured_and_reported_by_category(
    tiny_checkpoint_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_checkpoint_dir("qwen3", max_position_embeddings=8192))
    plan = Plan.parse(None, "edit,prose", limit=2, repeat=1)
    engine, sampling = (
        EngineArguments(model=model, drafter="lookup"),
        SamplingArguments(max_tokens=8),
    )
    assert run(plan, engine, sampling, as_json=True) == 0

    found = json.loads(capsys.readouterr().out)
    assert [row["category"] for row in found["categories"]] == ["edit", "prose"]
    for rows in (found["categories"], found["contexts"], found["entropies"]):
        assert sum(row["num_prompts"] for row in rows) == len(found["prompts"]) == 2
        assert sum(row["num_tokens"] for row in rows) == 16
    speeds = [row["plain_tokens_per_s"] for row in found["categories"]]
    assert min(speeds) <= found["baseline"]["tokens_per_s"] <= max(speeds)


def test_a_label_nobody_has_makes_no_row() -> None:
    assert [row["context"] for row in by_label("context", CONTEXT_LENS, PROMPTS, GROUPS)] == [
        "64",
        "1k",
    ]


# The first four tokens were the first round's, which is not timed.
LOOPED = run_of([1, 2, 3, 4] * 3, (4, 1.0), (4, 1.0))


def test_a_cell_without_tokens_outside_loops_says_none_and_not_a_number() -> None:
    (row,) = by_label("category", ["prose"], PROMPTS[2:], [[Pair(LOOPED, LOOPED)]])
    assert row["loop_share"] == pytest.approx(8 / 12)
    assert row["ratio_without_loops"] is None
    assert row["num_without_loops"] == 0


def test_the_table_fits_80_columns_and_names_every_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    groups = [*GROUPS[:2], [Pair(LOOPED, LOOPED)]]
    report = {
        "model": "m",
        "drafter": "lookup",
        "shape": "auto",
        "temperature": 0.0,
        "machine": "x",
        **figures(groups),
        "prompts": [SimpleNamespace()] * 3,
        "categories": by_label("category", ["edit", "prose"], PROMPTS, groups),
        "contexts": by_label("context", CONTEXT_LENS, PROMPTS, groups),
        "entropies": by_label("entropy", TIERS, PROMPTS, groups),
    }
    show_decode(report)
    lines = capsys.readouterr().out.splitlines()
    table = lines[1:-1]
    firsts = [line.split()[0] for line in table if line.strip()]
    assert firsts[0] == "category"
    assert {"edit", "prose", "total", "context", "low", "high"} <= set(firsts)
    assert max(map(len, table)) <= 80
    assert "none" in next(line for line in table if line.split()[:1] == ["prose"])
