"""`forerun certify` and its time: what it runs fits `--budget-s`, by a clock that counts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from forerun import cli
from forerun.engine.engine import Engine
from forerun.tools.arguments import EngineArguments
from forerun.tools.certify.checks import Budget
from forerun.tools.certify.same_tokens import SETTINGS, requests, spread_out
from forerun.tools.certify.subject import Subject
from forerun.tools.prompt_files import Prompt

MANY = tuple(
    ("lookup", f"chain:{num}", rule) for num in range(2, 6) for rule in ("match", "rejection")
)


@dataclass
class Clock:
    """Time in which a completion takes one second and opening an engine two; nothing else any."""

    now_s: float = 0.0


@pytest.fixture(scope="module")
def model(tiny_checkpoint_dir) -> str:
    return str(tiny_checkpoint_dir("qwen3", 0))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    counted, generate, opened = Clock(), Engine.generate, Subject.open

    def generate_slowly(self, prompts, *words, **options):
        counted.now_s += len(prompts)
        return generate(self, prompts, *words, **options)

    def open_slowly(self, speculation):
        counted.now_s += 2.0
        return opened(self, speculation)

    monkeypatch.setattr(Engine, "generate", generate_slowly)
    monkeypatch.setattr(Subject, "open", open_slowly)
    monkeypatch.setattr("forerun.tools.certify.checks.monotonic", lambda: counted.now_s)
    monkeypatch.setattr("forerun.tools.certify.compositions.REPRESENTATIVE", MANY)
    monkeypatch.setattr("forerun.tools.certify.command.NUM_RUNS", 320)
    return counted


def certify(model, capsys, *words):
    """The command as it runs; the object it printed."""
    assert cli.run(["certify", model, "--threads", "1", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def left_out(found):
    return [one["name"] for one in found["skipped"] if "--budget-s" in one["reason"]]


@pytest.mark.parametrize(
    ("budget_s", "schedule"), [(90, "auto"), (90, "ahead:4"), (400, "ahead:4")]
)
def test_given_a_schedule_or_none_then_what_is_run_fits_the_budget(
    model, capsys, clock, budget_s, schedule
):
    words = ("--schedule", schedule, "--budget-s", str(budget_s))

    found = certify(model, capsys, *words)

    assert clock.now_s <= budget_s
    # And: most of it is used, and what does not fit is said, the last ones where it is little.
    assert clock.now_s > 0.6 * budget_s
    missing = [name for name in found["speculations"] if name in left_out(found)]
    assert bool(missing) == (budget_s == 90)
    assert any(one["name"].startswith("tokens: ") for one in found["checks"])


def test_given_a_certificate_that_does_not_look_ahead_then_it_overruns(
    model, capsys, clock, monkeypatch
):
    # The control: whatever is asked about is said to fit.
    monkeypatch.setattr(Budget, "num_fitting", lambda self, each_s, most: most)

    found = certify(model, capsys, "--schedule", "ahead:4", "--budget-s", "90")

    assert clock.now_s > 2 * 90
    assert not set(found["speculations"]) & set(left_out(found))


def test_given_little_time_then_every_way_of_choosing_is_among_the_first_four(model):
    prompts = tuple(Prompt(str(at), "xyz" * at) for at in range(2, 6))
    asked = requests(Subject(EngineArguments(model=model), prompts, seed=0))

    first = [asked[at].params for at in spread_out(len(asked))[:4]]

    assert {one.temperature for one in first} == {one.temperature for one in SETTINGS}
    assert [sorted(spread_out(num)) for num in range(29)] == [list(range(num)) for num in range(29)]
