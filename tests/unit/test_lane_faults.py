"""Faults of a drafter's lane are what their names say: each is met by another check, or by none."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from forerun.draft import Draft, Draw
from forerun.drafters.lane_side import LaneSide
from forerun.errors import DrafterError
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Outlook, Sampler
from forerun.tree import TokenTree

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VOCAB = 100
TEXTS = {0: [1, 2, 3], 1: [7, 8, 9]}


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


class Counting:
    """A drafter of numbers: below a token is the next one."""

    def admit(self, sequence_id, prompt): ...

    def observe(self, sequence_id, commit): ...

    def release(self, sequence_id): ...

    def close(self): ...

    def propose(self, rows):
        return [chain(row.tokens[-1], 3) for row in rows]

    def foresee(self, rows, drafts, outlook):
        return [chain(int(draft.tree.tokens[0]), len(draft.tree) + 2) for draft in drafts]


def chain(first, num_nodes):
    return Draft(TokenTree.made_chain(list(range(first, first + num_nodes))), Draw.COUPLED)


def forecast_of(side, sequence_id, commits=None):
    """What the lane says of a draft of two nodes below such a text."""
    row = DraftRow(sequence_id, TEXTS[sequence_id], 3, Sampler(SamplingParams(), 0), 2)
    whole = np.full(1, 2, np.int32)
    outlook = Outlook([np.arange(2, dtype=np.int32)], 1, whole, whole, np.zeros(1, np.int32))
    draft = chain(TEXTS[sequence_id][-1], 2)
    return side.foresee([row], [draft], outlook, commits or {})[sequence_id]


def side_of(drafter):
    side = LaneSide(drafter, VOCAB)
    for sequence_id, text in TEXTS.items():
        side.admit(sequence_id, list(text))
    return side


def struck(name):
    """A lane whose drafter has worked well for another text, and then breaks so."""
    from lane_faults import SPOILS, Faulty

    faulty = Faulty(Counting(), SPOILS[name], VOCAB)
    side = side_of(faulty)
    forecast_of(side, 1)
    faulty.strikes = True
    for _ in range(2):  # answers before a fault strikes
        assert forecast_of(side, 0).grown.tree.tokens.tolist() == [3, 4, 5, 6]
    return side


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises", "a fault was asked for"),
        ("wrong vocabulary", r"token ids must be in \[0, 100\)"),
        ("another text's draft", "must begin with the tree"),
    ],
)
def test_given_a_fault_that_breaks_the_contract_then_it_is_refused_for_what_it_is(fault, says):
    with pytest.raises(DrafterError, match=says):
        forecast_of(struck(fault), 0)


def test_given_garbage_below_the_prefix_then_nothing_refuses_it():
    made = forecast_of(struck("garbage below the prefix"), 0)

    assert made.grown.tree.tokens[:2].tolist() == [3, 4]
    assert not set(made.grown.tree.tokens[2:].tolist()) & {3, 4, 5, 6}
    assert made.version == 3


def test_given_a_stale_forecast_then_it_has_the_version_it_had():
    from lane_faults import Stale

    from forerun.draft import Commit

    stale = Stale(side_of(Counting()))
    before = forecast_of(stale, 0)
    stale.strikes = True

    now = forecast_of(stale, 0, {0: [Commit((4, 5))]})

    assert now is before
    assert now.version == 3
    assert forecast_of(stale, 0).version == 5  # the control: one round later


def test_given_a_row_that_never_rested_then_the_page_names_it():
    from lane_faults_page import faults_section

    row = {
        "worst_ratio": 1.0, "num_hits": 0, "num_rounds": 9, "busy_share": 0.5, "identical": True,
        "logged": [], "num_rests": 0,
    }  # fmt: skip
    rows = [
        {**row, "fault": "none", "ratio": 2.0},
        {**row, "fault": "garbage", "ratio": 0.8},
        {**row, "fault": "raises", "ratio": 1.2, "num_rests": 2, "logged": ["it rests"]},
    ]
    report = {
        "model": "build/260M", "machine": "a machine", "date": "a day", "num_prompts": 1,
        "max_tokens": 9, "command": "python", "rows": rows,
    }  # fmt: skip

    page = "\n".join(faults_section([report], Path()))

    assert "Never rested: garbage." in page
    assert "| garbage | 0.80 | 1.00 | **missed** |" in page


def test_given_a_file_of_the_older_form_then_the_page_says_so_and_shows_nothing_of_it():
    from lane_faults_page import faults_section

    # By its path: engines of others are raced by another module of this name.
    spec = spec_from_file_location("report_of_benchmarks", BENCHMARKS / "report.py")
    of_benchmarks = module_from_spec(spec)
    spec.loader.exec_module(of_benchmarks)
    old = {"fault": "garbage", "ratio": 1.2, "worst_ratio": 1.0, "num_hits": 1, "num_rounds": 9}
    report = {
        "model": "build/260M", "machine": "a machine", "date": "a day", "num_prompts": 1,
        "max_tokens": 9, "command": "python", "rows": [{**old, "identical": True}],
    }  # fmt: skip

    page = "\n".join(faults_section([report], Path()))

    assert of_benchmarks.SECTIONS["faults"] is faults_section
    assert "run its command again" in page
    assert "garbage" not in page
