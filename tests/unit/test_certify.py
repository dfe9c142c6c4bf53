"""`forerun certify`: it passes what is right, and every tampering turns it red."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from forerun import cli
from forerun.backends.native import NativeBackend
from forerun.draft import Verdict
from forerun.forecast import Forecast
from forerun.options import Speculation
from forerun.protocols import ForwardOutput
from forerun.rules.match import Match
from forerun.rules.rejection import Rejection
from forerun.tools.arguments import EngineArguments
from forerun.tools.certify import exact, laws
from forerun.tools.certify.bits import check_bits
from forerun.tools.certify.checks import Budget, Findings
from forerun.tools.certify.chi_square import POWER, distance_seen, exceeded, fit
from forerun.tools.certify.compositions import REPRESENTATIVE, candidates
from forerun.tools.certify.exact import check_exact
from forerun.tools.certify.laws import Runs, binned, check_law, exact_law, tampered_law
from forerun.tools.certify.subject import PLAIN, Subject
from forerun.tools.prompt_files import Prompt

PROMPTS = tuple(
    Prompt(str(at), text)
    for at, text in enumerate(("def f(x):\n    f(x)\n", "aabbaabb", "xyz" * 6))
)


@pytest.fixture(scope="module")
def model(tiny_checkpoint_dir) -> str:
    return str(tiny_checkpoint_dir("qwen3", 0))


@pytest.fixture(scope="module")
def drafter(tiny_checkpoint_dir, model) -> str:
    from pathlib import Path

    return f"lm:{tiny_checkpoint_dir('qwen3', 1, near=(Path(model), 0.04))}"


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    """Enough to count with, few enough for a test."""
    monkeypatch.setattr("forerun.tools.certify.command.NUM_RUNS", 320)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch):
    """None of a budget is spent, however slow the machine is."""
    monkeypatch.setattr("forerun.tools.certify.checks.monotonic", lambda: 0.0)


@pytest.fixture
def subject(model) -> Subject:
    return Subject(EngineArguments(model=model, threads=1), PROMPTS, seed=0)


def findings() -> Findings:
    return Findings(lambda _: None)


def failed(found: Findings) -> list[str]:
    return [one.name for one in found.checks if not one.passed]


def certify(model, capsys, *words, code=0):
    """The command as it runs; the object it printed."""
    assert cli.run(["certify", model, "--threads", "1", "--json", *words]) == code
    return json.loads(capsys.readouterr().out)


# --- the command -------------------------------------------------------------------------------


def test_given_a_right_model_then_it_passes_with_the_promised_keys(
    model, drafter, capsys, tmp_path
):
    report = tmp_path / "certificate.md"

    found = certify(
        model, capsys, "--drafter", drafter, "--shape", "chain:3", "--report", str(report)
    )

    assert found["passed"] is True
    assert all(set(one) == {"name", "passed", "detail"} for one in found["checks"])
    names = [one["name"] for one in found["checks"]]
    for kind in ("bits: ", "tokens: ", "law: ", "control: "):
        assert any(name.startswith(kind) for name in names), kind
    assert found["numerics"] == "canonical-bf16"
    assert found["seed"] == 0
    assert found["skipped"] == []
    text = report.read_text()
    assert f"tokens: {drafter} chain:3 match" in text
    assert "95%" in text


@pytest.mark.parametrize(
    ("prompts", "says"),
    [(["def f(a, b, c):"], "has 1 prompt, a control needs another"), (["a", "b"], "none of the 2")],
)
def test_given_prompts_that_prove_nothing_then_they_are_refused_in_a_sentence(
    model, capsys, tmp_path, prompts, says
):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))

    assert cli.run(["certify", model, "--threads", "1", "--prompts", str(path)]) == 2
    assert says in capsys.readouterr().err


def test_given_lanes_that_share_a_core_then_ahead_is_refused_before_anything_is_certified(
    model, capsys, monkeypatch
):
    monkeypatch.setattr("forerun.tools.certify.bits.decoded", None)  # whoever calls it fails
    words = ("--schedule", "ahead", "--lanes", "target=0,draft=0")

    assert cli.run(["certify", model, *words]) == 2
    assert "both lanes have core 0" in capsys.readouterr().err


def test_given_lanes_that_share_a_core_then_a_schedule_that_overlaps_nothing_takes_them(model):
    core = min(os.sched_getaffinity(0))
    lanes = f"target={core},draft={core}"
    asked = EngineArguments(model=model, lanes=lanes, schedule="sequential")
    with Subject(asked, PROMPTS, seed=0).backend() as backend:
        assert backend.spec.vocab


def test_given_a_rule_whose_bonus_is_the_draft_then_it_fails(model, drafter, capsys, monkeypatch):
    # given a rule that emits the drafted token where the target wanted another
    honest = Match.judge

    def judge(self, draft, target, noise):
        verdict = honest(self, draft, target, noise)
        below = draft.tree.parents == verdict.path[-1]
        bonus = int(draft.tree.tokens[below][0]) if below.any() else verdict.bonus
        return Verdict(verdict.path, bonus)

    monkeypatch.setattr(Match, "judge", judge)

    # when the model is certified, then tokens differ and nothing else does
    found = certify(model, capsys, "--drafter", drafter, "--shape", "chain:3", code=1)

    assert found["passed"] is False
    wrong = [one["name"] for one in found["checks"] if not one["passed"]]
    assert wrong == [f"tokens: {drafter} chain:3 match"]


def test_given_the_same_seed_then_the_same_certificate(model, capsys):
    words = ("--drafter", "lookup", "--shape", "chain:4", "--seed", "5")

    first, second = certify(model, capsys, *words), certify(model, capsys, *words)

    assert first["checks"] == second["checks"]
    assert first["token_seeds"] != certify(model, capsys, *words[:-1], "6")["token_seeds"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--drafter", "guess"), "unknown drafter"),
        (("--rule", "block", "--shape", "tree:8", "--drafter", "lm"), "use traversal"),
        (("--budget-s", "0"), "--budget-s 0"),
        (("--seed", "-1"), "--seed -1"),
        (("--model", "elsewhere"), "two models"),
        (("--report", "no/such/folder/a.md"), "there is no folder"),
        (("--prompts", "no-such-file"), "cannot be read"),
    ],
)
def test_given_a_wrong_option_then_one_sentence_and_2(model, capsys, words, sentence):
    assert cli.run(["certify", model, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_given_no_names_then_what_cannot_be_opened_is_skipped_with_its_reason(
    model, capsys, monkeypatch
):
    # given a set of two compositions, of which a model without a drafter of its own has one
    few = (("lookup", "chain:4", "match"), ("lm", "chain:4", "match"))
    monkeypatch.setattr("forerun.tools.certify.compositions.REPRESENTATIVE", few)

    found = certify(model, capsys)

    assert found["speculations"] == ["lookup chain:4 match", "lm chain:4 match"]
    assert [one["name"] for one in found["skipped"]] == ["lm chain:4 match"]
    assert "no drafter of its own" in found["skipped"][0]["reason"]


def test_given_no_time_then_what_was_left_out_is_said(model, capsys, monkeypatch):
    looks = itertools.count()
    monkeypatch.setattr("forerun.tools.certify.checks.monotonic", lambda: float(next(looks)))

    found = certify(model, capsys, "--drafter", "lookup", "--budget-s", "0.001")

    assert all("--budget-s" in one["reason"] for one in found["skipped"])
    assert any(one["name"].startswith("law:") for one in found["skipped"])
    assert any(one["name"].startswith("tokens:") for one in found["checks"])


def test_given_names_then_only_they_are_tried():
    named = candidates(EngineArguments(drafter="lookup", shape="chain:2"))

    assert [one.speculation for one in named] == [Speculation("lookup", "chain:2")]
    assert len(candidates(EngineArguments())) == len(REPRESENTATIVE)


# --- schedules ---------------------------------------------------------------------------------


def named(model, drafter, rule="match", schedule="ahead:4"):
    words = ("--drafter", drafter, "--shape", "chain:3", "--rule", rule)
    return (*words, "--schedule", schedule, "--budget-s", "20")


def test_given_only_a_schedule_then_the_whole_set_is_on_it_where_it_can_be():
    found = candidates(EngineArguments(schedule="ahead:4"))

    assert len(found) == len(REPRESENTATIVE)
    assert all(one.name.endswith(" ahead:4") for one in found)
    assert [one.name for one in found if one.speculation is None] == [
        "exit:1 chain:3 match ahead:4"
    ]
    assert {one.speculation.schedule for one in found if one.speculation} == {"ahead:4"}


def test_given_damped_draws_then_they_are_not_held_against_draws_that_are_not():
    sampled = {"drafter": "lm", "rule": "rejection"}

    (damped,) = candidates(EngineArguments(**sampled, schedule="ahead:4:0.5"))
    (other,) = candidates(EngineArguments(**sampled, schedule="ahead:4"))

    assert damped.sequential is None
    assert other.sequential == Speculation("lm", "auto", "rejection", "sequential")


@pytest.mark.parametrize("schedule", ["ahead:4", "parallel"])
def test_given_a_schedule_then_drafts_are_prepared_on_it_and_tokens_are_those_of_plain_decoding(
    model, drafter, capsys, schedule
):
    found = certify(model, capsys, *named(model, drafter, schedule=schedule))

    assert found["speculations"] == [f"{drafter} chain:3 match {schedule}"]
    details = {one["name"]: one["detail"] for one in found["checks"]}
    assert "prepared ahead" in details[f"tokens: {drafter} chain:3 match {schedule}"]
    sequential = certify(model, capsys, *named(model, drafter, schedule="sequential"))
    assert not any("prepared ahead" in one["detail"] for one in sequential["checks"])


def test_given_a_sampled_rule_on_a_schedule_then_it_is_held_against_the_sequential_one(
    model, drafter, capsys, monkeypatch
):
    words, name = named(model, drafter, "rejection"), f"{drafter} chain:3 rejection ahead:4"

    right = certify(model, capsys, *words)
    # when whatever was prepared is taken for what came
    monkeypatch.setattr(Forecast, "reached", Forecast.nearest)
    wrong = certify(model, capsys, *words, code=1)

    verdicts = {one["name"]: one for one in right["checks"]}
    assert "prepared ahead" in verdicts[f"tokens as sequential: {name}"]["detail"]
    assert f"control: tokens as sequential: {name}: another seed" in verdicts
    failures = [one["name"] for one in wrong["checks"] if not one["passed"]]
    assert f"tokens as sequential: {name}" in failures


def test_given_nothing_of_use_prepared_then_nothing_is_claimed_of_the_schedule(
    model, drafter, capsys, monkeypatch
):
    monkeypatch.setattr(Forecast, "reached", lambda *_: None)

    found = certify(model, capsys, *named(model, drafter))

    reasons = {one["name"]: one["reason"] for one in found["skipped"]}
    name = f"schedule of tokens: {drafter} chain:3 match ahead:4"
    assert reasons[name] == "nothing that was prepared ahead was of use"


# --- bits --------------------------------------------------------------------------------------


def test_given_a_backend_whose_siblings_see_each_other_then_the_tree_is_named(subject, monkeypatch):
    # given logits that are one unit in the last place off wherever a tree has a fork
    honest = NativeBackend.forward

    def forward(self, batch):
        found = honest(self, batch)
        chain = np.array_equal(batch.parents, np.arange(-1, len(batch.parents) - 1))
        logits = np.array(found.logits)
        return found if chain else ForwardOutput(np.nextafter(logits, np.float32(np.inf)))

    monkeypatch.setattr(NativeBackend, "forward", forward)
    found = findings()

    check_bits(subject, Budget(10.0), found)

    assert "bits: a tree of 32 nodes" in failed(found)
    assert "bits: prompt in one pass" not in failed(found)


# --- laws --------------------------------------------------------------------------------------


def test_given_published_quantiles_then_the_chi_square_law_has_them():
    for x, num_free, p in ((3.841459, 1, 0.05), (18.307038, 10, 0.05), (52.385973, 20, 1e-4)):
        assert exceeded(x, num_free) == pytest.approx(p, rel=1e-5)


def test_given_the_hardest_deviation_at_the_stated_distance_then_it_is_seen_as_often_as_stated():
    # given a law of 20 bins, and another with half of its mass raised
    rng = np.random.default_rng(0)
    law = np.full(20, 0.05)
    distance = distance_seen(4000, 19)
    off, moved = tampered_law(law, distance)
    assert moved == pytest.approx(distance)
    assert np.abs(off - law).sum() / 2 == pytest.approx(distance)

    # when it is sampled many times
    seen = [fit(rng.multinomial(4000, off).astype(float), law).is_refused for _ in range(1000)]

    # then it is refused in 95 % of cases, and the right law is not
    assert np.mean(seen) == pytest.approx(POWER, abs=0.02)
    right = [fit(rng.multinomial(4000, law).astype(float), law).is_refused for _ in range(1000)]
    assert np.mean(right) < 0.005


def test_given_runs_then_bins_are_a_law_with_enough_expected_in_each(subject):
    law = exact_law(subject)

    bins = binned(law, 1000)

    assert bins.law.sum() == pytest.approx(1.0)
    assert (1000 * bins.law >= 5.0).all()
    assert set(bins.pairs.values()) | set(bins.others.values()) == set(range(len(bins.law) - 1))


def test_given_plain_decoding_then_its_law_passes_and_a_hotter_one_is_refused(subject, monkeypatch):
    # given the law of the runs, and the law at another temperature behind the same prompt
    right = exact_law(subject)
    monkeypatch.setattr(laws, "CHOOSING", replace(laws.CHOOSING, temperature=1.5))
    hotter = exact_law(subject)
    monkeypatch.undo()
    assert hotter.prompt == right.prompt
    found, runs = findings(), Runs(list(range(600)), 2)

    # when both are held against the same runs
    with subject.open(PLAIN) as engine:
        check_law("right", engine, right, runs, Budget(60.0), found)
        check_law("hotter", engine, hotter, runs, Budget(60.0), found)

    # then only the wrong one is refused, and the control of the right one was noticed
    verdicts = {one.name: one.passed for one in found.checks}
    assert verdicts["right"]
    assert not verdicts["hotter"]
    assert all(passed for name, passed in verdicts.items() if name.startswith("control: right"))


# --- every outcome -----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [one for one in REPRESENTATIVE if one[2] != "match"])
def test_given_a_sampled_rule_then_it_is_proved_and_its_spoilt_twin_is_not(words):
    found = findings()

    check_exact(Speculation(*words).composition(), 0, found)

    assert [one.name.startswith("control: ") for one in found.checks] == [False, True]
    assert failed(found) == []


def test_given_a_rule_that_is_wrong_then_enumeration_refuses_it(monkeypatch):
    monkeypatch.setitem(exact.RULES, "rejection", exact.Believer(Rejection()))
    found = findings()

    check_exact(Speculation("lm", "chain:4", "rejection").composition(), 0, found)

    assert failed(found) == ["exact: rejection on a chain, draws: sampled"]


def test_given_a_sampled_rule_that_is_wrong_then_the_certificate_fails(
    model, drafter, capsys, monkeypatch
):
    # given a rejection that never takes the draft's law off
    monkeypatch.setattr("forerun.rules.rejection.residual", lambda p, q: (p, 1.0))

    words = ("--drafter", drafter, "--shape", "chain:2", "--rule", "rejection")
    found = certify(model, capsys, *words, code=1)

    wrong = [one["name"] for one in found["checks"] if not one["passed"]]
    assert wrong[0] == "exact: rejection on a chain, draws: sampled"
