"""`forerun certify`: evidence that a model's output does not depend on how it was computed.

    bits      logits of a position in every company                              bits.py
    tokens    with and without speculation, over temperatures and seeds          same_tokens.py
    exact     every outcome of the sampled rules on tiny laws                    exact.py
    law       counts of sampled tokens against exact probabilities               laws.py
    controls  each of them has one that must fail, and is reported as a check

This file says in which order, and how the time is shared; nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from forerun.engine.engine import Engine
from forerun.engine.results import Completion
from forerun.errors import ForerunError, OptionError
from forerun.tools.arguments import EngineArguments
from forerun.tools.certify.bits import check_bits
from forerun.tools.certify.checks import Budget, Findings
from forerun.tools.certify.compositions import Candidate, candidates
from forerun.tools.certify.exact import check_exact
from forerun.tools.certify.laws import NUM_RUNS, Runs, TwoTokens, check_law, exact_law
from forerun.tools.certify.report import Head, progress, show, write_markdown
from forerun.tools.certify.same_tokens import (
    AT_ONCE,
    Request,
    check_tokens,
    requests,
    run_all,
)
from forerun.tools.certify.subject import PLAIN, Subject
from forerun.tools.prompt_files import BUILT_IN, read_prompts, spread
from forerun.tools.terminal import write_json

_NUM_PROMPTS = 4
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
        return Plan(Subject(engine, tuple(chosen), seed), budget_s, report)


@dataclass(slots=True, eq=False)
class _Run:
    """One certificate in the making: what every composition is held against is made once."""

    subject: Subject
    budget: Budget
    findings: Findings
    asked: list[Request] = field(default_factory=list)
    plain: list[Completion] = field(default_factory=list)
    law: TwoTokens | None = None
    exactness: str = "law"  # of the backend; an engine with a sampled rule promises less


def run(plan: Plan, *, as_json: bool) -> int:
    """Certify and report; 1 if any check failed."""
    chosen = candidates(plan.subject.engine)
    budget = Budget(plan.budget_s)
    with progress(len(chosen) + 2) as step:
        findings = Findings(lambda text: step(text, 0))
        certified = _Run(plan.subject, budget, findings)
        step("bits", 0)
        check_bits(plan.subject, budget.share(0.25), findings)
        step("plain decoding", 1)
        head = _plain(certified, chosen)
        for index, one in enumerate(chosen):
            step(one.name, 1)
            parts = [_weight(other) for other in chosen[index:]]
            _composition(certified, one, budget.share(parts[0] / max(1, sum(parts))))
    report = head.report(findings, budget.spent_s)
    if plan.report is not None:
        write_markdown(plan.report, report)
    if as_json:
        write_json(report)
    else:
        show(report)
    return 0 if findings.passed else 1


def _weight(candidate: Candidate) -> int:
    """Its part of the time: counting a law takes more runs than comparing tokens."""
    if candidate.speculation is None:
        return 0
    return 1 if candidate.keeps_tokens else 3


def _plain(certified: _Run, chosen: Sequence[Candidate]) -> Head:
    """What plain decoding says: the tokens and the law that speculation is held against."""
    subject = certified.subject
    certified.asked = requests(subject)
    certified.law = exact_law(subject)
    with closing(subject.open(PLAIN)) as engine:
        certified.exactness = engine.exactness
        certified.plain = run_all(engine, certified.asked)
        share = certified.budget.share(0.15)
        runs = Runs(subject.seeds(NUM_RUNS, _LAW_SEEDS), num_tokens=2)
        check_law("law: plain decoding", engine, certified.law, runs, share, certified.findings)
        return Head.of(subject, engine, [one.name for one in chosen])


def _composition(certified: _Run, candidate: Candidate, budget: Budget) -> None:
    """Tokens under `match`; under a sampled rule tokens at temperature 0, and the law above."""
    findings, subject = certified.findings, certified.subject
    if candidate.speculation is None:
        findings.skip(candidate.name, candidate.reason)
        return
    if not candidate.keeps_tokens:
        check_exact(candidate.speculation.composition(), subject.seed, findings)
    try:
        engine = subject.open(candidate.speculation)
    except ForerunError as error:
        if candidate.is_asked_for:
            raise
        findings.skip(candidate.name, error)
        return
    with closing(engine):
        if certified.exactness == "law":
            findings.skip(f"tokens: {candidate.name}", "this backend promises only the law here")
        else:
            _tokens(certified, candidate, engine, budget)
            _schedule(certified, candidate, engine, budget)
        if not candidate.keeps_tokens and certified.law is not None:
            runs = Runs(subject.seeds(NUM_RUNS, _LAW_SEEDS))
            check_law(f"law: {candidate.name}", engine, certified.law, runs, budget, findings)


def _tokens(certified: _Run, candidate: Candidate, engine: Engine, budget: Budget) -> None:
    every = list(zip(certified.asked, certified.plain, strict=True))
    if not candidate.keeps_tokens:  # a sampled rule chooses otherwise, but for one-hot laws
        every = [(one, plain) for one, plain in every if one.params.temperature == 0.0]
    asked, plain = [one for one, _ in every], [plain for _, plain in every]
    part = 0.9 if candidate.keeps_tokens else 0.3
    name = "tokens" if candidate.keeps_tokens else "greedy tokens"
    findings = certified.findings
    check_tokens(f"{name}: {candidate.name}", engine, asked, plain, budget.share(part), findings)


def _schedule(certified: _Run, candidate: Candidate, engine: Engine, budget: Budget) -> None:
    """What a sampled rule draws is the same on every schedule, whatever was prepared."""
    if candidate.sequential is None:
        return
    asked = [one for one in certified.asked if one.params.temperature > 0][-AT_ONCE:]
    with closing(certified.subject.open(candidate.sequential)) as other:
        expected = run_all(other, asked)
    name = f"tokens as sequential: {candidate.name}"
    check_tokens(name, engine, asked, expected, budget.share(0.3), certified.findings)
