"""`forerun certify`: evidence that a model's output does not depend on how it was computed.

    bits      logits of a position in every company                              bits.py
    exact     every outcome of the sampled rules on tiny laws                    exact.py
    tokens    with and without speculation, over temperatures and seeds          same_tokens.py
    law       counts of sampled tokens against exact probabilities               laws.py
    controls  each of them has one that must fail, and is reported as a check

This file says in which order, and how the time is shared; nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from forerun.engine.engine import Engine
from forerun.errors import ForerunError, OptionError
from forerun.tools.arguments import EngineArguments
from forerun.tools.certify.bits import check_bits
from forerun.tools.certify.checks import TIME_WAS_SPENT, Budget, Findings
from forerun.tools.certify.compositions import Candidate, candidates
from forerun.tools.certify.exact import check_rules
from forerun.tools.certify.laws import NUM_RUNS, Runs, TwoTokens, check_law, exact_law
from forerun.tools.certify.report import Head, progress, show, write_markdown
from forerun.tools.certify.same_tokens import Reference, check_tokens, requests, run_all, within
from forerun.tools.certify.subject import PLAIN, Subject
from forerun.tools.prompt_files import BUILT_IN, read_prompts, spread
from forerun.tools.terminal import write_json

_NUM_PROMPTS, _FEWEST_PROMPTS = 4, 2
_LAW_SEEDS = 1  # which series of seeds


@dataclass(frozen=True, slots=True)
class Plan:
    """What the options of `certify` say."""

    subject: Subject
    budget_s: float
    report: Path | None

    @staticmethod
    def parse(
        model: str | None,
        prompts: Path | None,
        engine: EngineArguments,
        numbers: tuple[int, float],
        report: Path | None,
    ) -> Plan:
        """The plan of the options; `numbers` are the seed and the budget in seconds.

        Raises:
            OptionError: a number outside its range, a model named twice, or no such prompts.
        """
        seed, budget_s = numbers
        if not 0 <= seed < 2**24 or not budget_s > 0:
            raise OptionError(
                f"--seed {seed} must be in [0, {2**24 - 1}], --budget-s {budget_s:g} above 0"
            )
        if model is not None:
            if engine.model not in (EngineArguments().model, model):
                raise OptionError(
                    f"two models were named, {model!r} and --model {engine.model!r}: name one"
                )
            engine = replace(engine, model=model)
        if report is not None and not report.absolute().parent.is_dir():
            raise OptionError(f"--report {report}: there is no folder {report.parent}; make it")
        chosen = spread(read_prompts(prompts or BUILT_IN), _NUM_PROMPTS)
        if len(chosen) < _FEWEST_PROMPTS:
            raise OptionError(
                f"--prompts {prompts} has {len(chosen)} prompt, a control needs another one to mix"
                " it up with: add a line, or leave --prompts out"
            )
        return Plan(Subject(engine, tuple(chosen), seed), budget_s, report)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One certificate in the making: what every composition is held against is made once."""

    subject: Subject
    budget: Budget
    findings: Findings
    plain: Reference
    law: TwoTokens
    exactness: str  # of the backend; an engine with a sampled rule promises less


def run(plan: Plan, *, as_json: bool) -> int:
    """Certify and report; 1 if any check failed."""
    subject, budget = plan.subject, Budget(plan.budget_s)
    chosen = candidates(subject.engine)
    with progress(len(chosen) + 3) as step:
        findings = Findings(lambda text: step(text, 0))
        step("bits", 0)
        check_bits(subject, budget.share(0.25), findings)
        step("sampled rules", 1)
        sampled = [one.speculation for one in chosen if not one.keeps_tokens]
        rules = [one.composition() for one in sampled if one is not None]
        check_rules(rules, subject.seed, budget.share(0.3), findings)
        step("plain decoding", 1)
        with closing(subject.open(PLAIN)) as engine:
            certified = _plain(engine, subject, budget, findings)
            head = Head.of(subject, engine, [one.name for one in chosen])
        _compositions(certified, chosen, lambda name: step(name, 1))
    report = head.report(findings, budget.spent_s)
    if plan.report is not None:
        write_markdown(plan.report, report)
    if as_json:
        write_json(report)
    else:
        show(report)
    return 0 if findings.passed else 1


def _compositions(
    certified: _Run, chosen: Sequence[Candidate], show: Callable[[str], None]
) -> None:
    """Each in its part of the time; none is begun in less than the least that its like took."""
    budget = certified.budget
    least_s: dict[int, float] = {}  # by weight
    for index, one in enumerate(chosen):
        show(one.name)
        parts, began_s = [_weight(other) for other in chosen[index:]], budget.spent_s
        if not budget.num_fitting(_needed_s(parts[0], least_s), 1):
            certified.findings.skip(one.name, TIME_WAS_SPENT)
        elif _composition(certified, one, budget.share(parts[0] / max(1, sum(parts)))):
            took_s = budget.spent_s - began_s
            least_s[parts[0]] = min(took_s, least_s.get(parts[0], took_s))


def _needed_s(weight: int, least_s: Mapping[int, float]) -> float:
    """What one of a weight takes at least, judged by others where none has run; 0 before any."""
    others = [each_s * weight / other for other, each_s in least_s.items()]
    return least_s.get(weight, max(others, default=0.0))


def _weight(candidate: Candidate) -> int:
    """Its part of the time: counting a law takes more runs than comparing tokens, and what must
    equal another schedule is drawn on both."""
    if candidate.speculation is None:
        return 0
    if candidate.keeps_tokens:
        return 1
    return 3 if candidate.sequential is None else 4


def _plain(engine: Engine, subject: Subject, budget: Budget, findings: Findings) -> _Run:
    """What plain decoding says: the tokens and the law that speculation is held against."""
    asked, law = requests(subject), exact_law(subject)
    plain = within(Reference(asked, partial(run_all, engine)), budget.share(0.15))
    if num := len(asked) - len(plain.asked):
        findings.skip(f"tokens of {num} of {len(asked)} requests", TIME_WAS_SPENT)
    runs = Runs(subject.seeds(NUM_RUNS, _LAW_SEEDS), num_tokens=2)
    check_law("law: plain decoding", engine, law, runs, budget.share(0.15), findings)
    return _Run(subject, budget, findings, plain, law, engine.exactness)


def _composition(certified: _Run, candidate: Candidate, budget: Budget) -> bool:
    """Tokens under `match`; under a sampled rule tokens at temperature 0, and the law above.

    Returns whether it could be opened.
    """
    findings, subject = certified.findings, certified.subject
    if candidate.speculation is None:
        findings.skip(candidate.name, candidate.reason)
        return False
    try:
        engine = subject.open(candidate.speculation)
    except ForerunError as error:
        if candidate.is_asked_for:
            raise
        findings.skip(candidate.name, error)
        return False
    with closing(engine):
        if certified.exactness == "law":
            findings.skip(f"tokens: {candidate.name}", "this backend promises only the law here")
        else:
            _tokens(certified.plain, candidate, engine, budget, findings)
            _schedule(certified, candidate, engine, budget)
        if not candidate.keeps_tokens:
            runs = Runs(subject.seeds(NUM_RUNS, _LAW_SEEDS))
            check_law(f"law: {candidate.name}", engine, certified.law, runs, budget, findings)
    return True


def _tokens(
    plain: Reference, candidate: Candidate, engine: Engine, budget: Budget, findings: Findings
) -> None:
    if candidate.keeps_tokens:
        check_tokens(f"tokens: {candidate.name}", engine, plain, budget, findings)
        return
    # A sampled rule chooses otherwise, but for one-hot laws.
    greedy = plain.where(lambda params: params.temperature == 0.0)
    name = f"greedy tokens: {candidate.name}"
    check_tokens(name, engine, greedy, budget.share(0.3), findings)


def _schedule(certified: _Run, candidate: Candidate, engine: Engine, budget: Budget) -> None:
    """What a sampled rule draws is the same on every schedule, whatever was prepared."""
    if candidate.sequential is None:
        return
    sampled = [one for one in certified.plain.asked if one.params.temperature > 0]
    share = budget.share(0.3)
    with closing(certified.subject.open(candidate.sequential)) as other:
        expected = Reference(sampled, partial(run_all, other))
        name = f"tokens as sequential: {candidate.name}"
        check_tokens(name, engine, expected, share, certified.findings)
