"""`forerun certify` and its time: what it runs fits `--budget-s`, by a clock that counts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from forerun import cli
from forerun.engine.engine import Engine
from forerun.tools.arguments import EngineArguments
from forerun.tools.certify import bits, exact
from forerun.tools.certify.checks import Budget, Turns
from forerun.tools.certify.same_tokens import SETTINGS, Reference, requests, spread_out, within
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


@pytest.fixture
def dear(clock, monkeypatch) -> Clock:
    """A model whose forward passes take a quarter of a second, rules that take ten to enumerate."""
    logits, enumerate_one = bits._logits, exact.check_exact

    def logits_slowly(backend, batch):
        clock.now_s += 0.25
        return logits(backend, batch)

    def enumerate_slowly(*words):
        clock.now_s += 10.0
        return enumerate_one(*words)

    monkeypatch.setattr(bits, "_logits", logits_slowly)
    monkeypatch.setattr(exact, "check_exact", enumerate_slowly)
    rules = tuple(("lm", "chain:2", rule) for rule in ("rejection", "block", "traversal"))
    monkeypatch.setattr("forerun.tools.certify.compositions.REPRESENTATIVE", (*MANY, *rules))
    return clock


def certify(model, capsys, *words):
    """The command as it runs; the object it printed."""
    assert cli.run(["certify", model, "--threads", "1", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def subject_of(model) -> Subject:
    """Four prompts, as a certificate has."""
    prompts = tuple(Prompt(str(at), "xyz" * at) for at in range(2, 6))
    return Subject(EngineArguments(model=model), prompts, seed=0)


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


FIXED = ("bits: ", "exact: ", "tokens of ")  # what comes before any composition


def test_given_dear_passes_and_rules_then_what_comes_first_fits_too_and_the_rest_of_it_is_said(
    model, capsys, dear
):
    found = certify(model, capsys, "--schedule", "ahead:4", "--budget-s", "90")

    assert dear.now_s <= 90
    for kind in FIXED:
        assert any(name.startswith(kind) for name in left_out(found)), kind
    # And: of each there is something, with its control.
    names = {one["name"] for one in found["checks"]}
    assert {"bits: a tree of 32 nodes", "control: one node below the wrong parent"} <= names
    assert sum("exact: " in name for name in names) == 4
    assert any(name.startswith("tokens: ") for name in names)


def test_given_time_enough_for_dear_passes_and_rules_then_nothing_of_them_is_left_out(
    model, capsys, dear
):
    found = certify(model, capsys, "--schedule", "ahead:4", "--budget-s", "900")

    assert [name for name in left_out(found) if name.startswith(FIXED)] == []


def test_given_no_look_ahead_at_what_comes_first_then_it_overruns(model, capsys, dear, monkeypatch):
    # The control: of all that is asked about, what is fixed is said to fit.
    monkeypatch.setattr(Turns, "take", lambda self, name, work: work())
    monkeypatch.setattr("forerun.tools.certify.command.within", _all_of)

    found = certify(model, capsys, "--schedule", "ahead:4", "--budget-s", "90")

    assert dear.now_s > 90
    assert [name for name in left_out(found) if name.startswith(FIXED)] == []


def _all_of(reference, budget):
    del budget
    reference.of(range(len(reference.asked)))
    return reference


def test_given_little_time_then_the_reference_has_every_way_of_choosing_and_two_greedy_prompts(
    model,
):
    asked, ran = requests(subject_of(model)), []

    def run(few):
        ran.extend(few)
        return few

    known = within(Reference(asked, run), Budget(1e-9))

    temperatures = [one.params.temperature for one in known.asked]
    assert set(temperatures) == {one.temperature for one in SETTINGS}
    assert temperatures.count(0.0) == 2
    assert known.of(range(len(known.asked))) == known.asked  # each is held against its own
    assert len(ran) == len(known.asked) < len(asked)


def test_given_a_certificate_that_does_not_look_ahead_then_it_overruns(
    model, capsys, clock, monkeypatch
):
    # The control: whatever is asked about is said to fit.
    monkeypatch.setattr(Budget, "num_fitting", lambda self, each_s, most: most)

    found = certify(model, capsys, "--schedule", "ahead:4", "--budget-s", "90")

    assert clock.now_s > 2 * 90
    assert not set(found["speculations"]) & set(left_out(found))


def test_given_little_time_then_every_way_of_choosing_is_among_the_first_four(model):
    asked = requests(subject_of(model))

    first = [asked[at].params for at in spread_out(len(asked))[:4]]

    assert {one.temperature for one in first} == {one.temperature for one in SETTINGS}
    assert [sorted(spread_out(num)) for num in range(29)] == [list(range(num)) for num in range(29)]
