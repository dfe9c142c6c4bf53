"""What is kept of a draft: counted from rounds, and as a page from a hand-made file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forerun.stats import RoundStats
from forerun.tools.prompt_files import Prompt

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def completion(token_ids, *accepted):
    rounds = tuple(RoundStats(1, 7, kept, 0.1, 0.0, 0.1, 0.0) for kept in accepted)
    return SimpleNamespace(token_ids=tuple(token_ids), stats=SimpleNamespace(rounds=rounds))


def test_given_rounds_then_the_first_and_the_last_are_left_out():
    from accepted import kept_of

    counts = kept_of(completion(range(12), 0, 2, 3, 2, 0))

    assert counts[:5].tolist() == [0, 0, 2, 1, 0]


def test_given_rounds_in_a_loop_then_they_count_by_what_is_outside():
    from accepted import kept_of

    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 7, 8]  # the second 1, 2, 3, 4 loops

    counts = kept_of(completion(text, 0, 4, 3, 1))

    # of the round that made tokens 6 to 9 nothing counts
    assert counts[4] == pytest.approx(1.0)
    assert counts[3] == pytest.approx(0.0)


def test_given_counts_then_positions_are_reached_by_a_share_of_rounds():
    from accepted import MOST, figures_of

    kept = np.zeros((2, MOST + 1))
    kept[0, 0], kept[0, 1], kept[1, 3] = 1, 1, 2

    row = figures_of(kept)

    assert row["reached"] == pytest.approx([0.75, 0.5, 0.5])
    assert row["tokens_per_round"] == pytest.approx(1 + 0.75 + 0.5 + 0.5)
    low, high = row["tokens_per_round_ci95"]
    assert low <= row["tokens_per_round"] <= high


def test_given_labels_then_each_group_has_its_own_figures():
    from accepted import MOST, Asked, row_of

    kept = np.zeros((2, MOST + 1))
    kept[0, 2], kept[1, 0] = 1, 1
    prompts = [Prompt("a", "", "edit", "64"), Prompt("b", "", "prose", "4k")]

    row = row_of(Asked("dspark", "chain:7", 0.0), prompts, kept)

    assert {name: one["tokens_per_round"] for name, one in row["domains"].items()} == {
        "in domain": 3.0,
        "out of domain": 1.0,
    }
    assert row["contexts"]["4k"]["num_prompts"] == 1


def test_given_a_file_then_the_page_has_every_position_kind_and_context(tmp_path):
    pytest.importorskip("matplotlib")
    from accepted import MOST, Asked, row_of
    from accepted_page import accepted_section

    kept = np.zeros((2, MOST + 1))
    kept[0, 2], kept[1, 0] = 1, 1
    prompts = [Prompt("a", "", "edit", "1k"), Prompt("b", "", "prose", "64")]
    rows = [
        row_of(Asked("dspark", shape, heat), prompts, kept)
        for shape in ("chain:7", "tree:16")
        for heat in (0.0, 0.7)
    ]
    rows.append(row_of(Asked("lm", "chain:7", 0.0), prompts, kept * 0))  # nothing outside loops
    report = {
        "model": "forerun-code", "machine": "a machine", "date": "2026-01-01", "command": "c",
        "num_prompts": 2, "max_tokens": 8, "in_domain": ["edit"], "rows": rows,
    }  # fmt: skip

    page = "\n".join(accepted_section([report], tmp_path))

    assert "| dspark chain:7 | 0.7 | 2.00 | 1.00 to 3.00 | 0.50 | 0.50 |" in page
    assert "| drafter | T | in domain | out of domain | edit | prose | 64 | 1k |" in page
    assert "| dspark tree:16 | 0 | 3.00 | 1.00 | 3.00 | 1.00 | 1.00 | 3.00 |" in page
    assert "lm chain:7" not in page
    assert (tmp_path / "accepted-forerun-code.png").stat().st_size > 1000


def test_given_a_chain_at_the_usual_temperature_then_its_yield_is_written_where_auto_reads_it(
    tmp_path,
):
    from accepted import record

    from forerun.engine.discovery import record_of

    for name in ("lm", "dspark"):
        (tmp_path / "drafters" / name).mkdir(parents=True)
        (tmp_path / "drafters" / name / "config.json").write_text(
            '{"forerun": {"kept": 1}, "a": 2}'
        )
    (tmp_path / "config.json").write_text("{}")
    row = {"drafter": "dspark", "temperature": 0.7, "reached": [0.75, 0.5, 0.25]}

    record(
        str(tmp_path), [{**row, "shape": "chain:7"}, {**row, "shape": "tree:8", "drafter": "lm"}]
    )

    assert record_of(tmp_path / "drafters" / "dspark") == {2: 2.25, 4: 2.5, 7: 2.5}
    assert record_of(tmp_path / "drafters" / "lm") == {}
    config = (tmp_path / "drafters" / "dspark" / "config.json").read_text()
    assert '"kept": 1' in config
    assert '"a": 2' in config
