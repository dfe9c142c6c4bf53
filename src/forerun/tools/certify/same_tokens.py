"""Are the tokens those of plain decoding? Prompts × ways of choosing × seeds, token by token.

Plain decoding runs requests in one order of rows, speculation in another, others at a time, and
the first of them alone too, so that no row has the same company twice. Knows engines and tokens
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

from forerun.engine.engine import Engine
from forerun.engine.results import Completion
from forerun.options import SamplingParams
from forerun.tools.certify.checks import Budget, Findings
from forerun.tools.certify.subject import Subject

MAX_TOKENS, LONGEST_PROMPT = 32, 48
SEEDS = 2
SETTINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.0),
    SamplingParams(
        temperature=0.8,
        top_p=0.9,
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=0.2,
    ),
)
_AT_ONCE, _FEWEST, _NUM_CONTROLS = 14, 4, 4
_APART = 0.618  # of all requests, how far one is from the next that runs


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how its tokens are chosen."""

    prompt: list[int]
    params: SamplingParams


@dataclass(slots=True, eq=False)
class Reference:
    """What completions are held against, by request: known, or run when they are needed first."""

    asked: Sequence[Request]
    run: Callable[[Sequence[Request]], Iterable[Completion]]
    known: dict[int, Completion] = field(default_factory=dict)

    def of(self, requests: Sequence[int]) -> list[Completion]:
        """The completions of requests that are named by their places in `asked`."""
        missing = [at for at in requests if at not in self.known]
        if missing:
            made = self.run([self.asked[at] for at in missing])
            self.known.update(zip(missing, made, strict=True))
        return [self.known[at] for at in requests]

    def where(self, is_wanted: Callable[[SamplingParams], bool]) -> Reference:
        """The same of some requests only; what is known of them already is known there too."""
        places = [at for at, one in enumerate(self.asked) if is_wanted(one.params)]
        known = {new: self.known[at] for new, at in enumerate(places) if at in self.known}
        return Reference([self.asked[at] for at in places], self.run, known)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many completions were compared, how many differ, and what became of the drafts; of nodes
    prepared while a verdict was pending, and of drafts that began with them."""

    num: int
    num_different: int
    first: str
    num_tokens: int
    num_drafted: int
    num_accepted: int
    num_prepared: int
    num_hits: int

    @property
    def drafts(self) -> str:
        """What became of the drafts, in words."""
        refused = self.num_drafted - self.num_accepted
        told = f"{self.num_drafted:,} drafted, {self.num_accepted:,} kept, {refused:,} refused"
        if self.num_prepared:
            told += f"; {self.num_prepared:,} prepared ahead, of use in {self.num_hits:,} drafts"
        return told


def requests(subject: Subject) -> list[Request]:
    """Every prompt with every setting and seed; temperature 0 has nothing to seed."""
    seeds = subject.seeds(SEEDS)
    made = []
    for setting in SETTINGS:
        for seed in seeds if setting.temperature > 0 else seeds[:1]:
            params = replace(setting, seed=seed, max_tokens=MAX_TOKENS, ignore_eos=True)
            made += [Request(ids[:LONGEST_PROMPT], params) for ids in subject.token_ids()]
    return made


def run_all(engine: Engine, asked: Sequence[Request]) -> list[Completion]:
    """The completions, several rows a round."""
    return engine.generate([one.prompt for one in asked], [one.params for one in asked])


def within(reference: Reference, budget: Budget) -> Reference:
    """The reference of as many requests as there is time for, all of them run: one of each way of
    choosing and two greedy ones at least, then in one go those that fit."""
    order, began_s = spread_out(len(reference.asked)), budget.spent_s
    greedy = [at for at, one in enumerate(reference.asked) if one.params.temperature == 0]
    first = sorted({*order[:_FEWEST], *greedy[:2]})
    reference.of(first)
    each_s = (budget.spent_s - began_s) / len(first)
    others = [at for at in order if at not in first]
    reference.of(sorted(others[: budget.num_fitting(each_s, len(others))]))
    places = sorted(reference.known)
    known = {new: reference.known[at] for new, at in enumerate(places)}
    return Reference([reference.asked[at] for at in places], reference.run, known)


def check_tokens(
    name: str, engine: Engine, reference: Reference, budget: Budget, findings: Findings
) -> None:
    """Compare as many requests as the budget allows, four in company and one alone at least; then
    compare what must differ."""
    found, num = compared(engine, reference, budget), len(reference.asked)
    detail = f"{found.num} completions, {found.num_tokens:,} tokens"
    if found.num <= num:
        detail += f" (of {num}: the time for it was spent)"
    detail += f": {found.num_different} differ{found.first}; {found.drafts}"
    findings.add(name, found.num_different == 0, detail)
    if not found.num_drafted:
        findings.skip(f"drafts of {name}", "nothing was drafted: only plain decoding was seen")
    elif engine.inside().parts.schedule.num_branches and not found.num_hits:
        findings.skip(f"schedule of {name}", "nothing that was prepared ahead was of use")
    _control(name, engine, reference, findings)


def compared(engine: Engine, reference: Reference, budget: Budget) -> Comparison:
    """Run requests and compare each with its reference: one alone, then it and others together.

    What the last ones took says how many more fit, with the control that comes after them.
    """
    order = spread_out(len(reference.asked))
    runs: list[tuple[int, Completion]] = []
    part = order[:1]
    while part:
        began_s = budget.spent_s
        reference.of(part)
        runs += zip(part, run_all(engine, [reference.asked[at] for at in part]), strict=True)
        each_s = (budget.spent_s - began_s) / len(part)
        num_done = len(runs) - 1  # the one that ran alone runs again
        num = budget.num_fitting(each_s, _AT_ONCE + _NUM_CONTROLS) - _NUM_CONTROLS
        num = max(num, 0 if num_done else _FEWEST)
        part = order[num_done : num_done + num]
    return _comparison(reference, runs)


def spread_out(num: int) -> list[int]:
    """The numbers below `num`, neighbours far apart: the first few are of every kind there is."""
    steps = range(max(1, round(_APART * num)), num + 1)
    step = next((one for one in steps if gcd(one, num) == 1), 1)
    return [at * step % num for at in range(num)]


def _comparison(reference: Reference, runs: Sequence[tuple[int, Completion]]) -> Comparison:
    # Rows that share a round share its figures.
    rounds = {id(round_): round_.lane for _, one in runs for round_ in one.stats.rounds}
    lanes = [lane for lane in rounds.values() if lane is not None]
    different = _different(reference, runs)
    return Comparison(
        num=len(runs),
        num_different=len(different),
        first=_first(reference, different),
        num_tokens=sum(len(one.token_ids) for _, one in runs),
        num_drafted=sum(one.stats.num_drafted for _, one in runs),
        num_accepted=sum(one.stats.num_accepted for _, one in runs),
        num_prepared=sum(lane.num_prepared for lane in lanes),
        num_hits=sum(lane.num_hits for lane in lanes),
    )


def _different(
    reference: Reference, runs: Iterable[tuple[int, Completion]]
) -> list[tuple[int, Completion]]:
    return [(at, one) for at, one in runs if one.token_ids != reference.of([at])[0].token_ids]


def _control(name: str, engine: Engine, reference: Reference, findings: Findings) -> None:
    """The comparison must be able to fail: with another seed, or prompt where none is used."""
    asked, order = reference.asked, spread_out(len(reference.asked))
    chosen = [at for at in order if asked[at].params.temperature > 0][:_NUM_CONTROLS]
    if chosen:
        what, others = "seed", [_reseeded(asked[at]) for at in chosen]
    else:
        chosen = order[:_NUM_CONTROLS]
        what, others = "prompt", [asked[at - 1] for at in chosen]
    found = _different(reference, zip(chosen, run_all(engine, others), strict=True))
    findings.add(
        f"control: {name}: another {what}",
        bool(found),
        f"{len(found)} of {len(chosen)} completions differ",
    )


def _reseeded(one: Request) -> Request:
    return replace(one, params=replace(one.params, seed=(one.params.seed or 0) + 1000))


def _first(reference: Reference, different: Sequence[tuple[int, Completion]]) -> str:
    if not different:
        return ""
    at, one = different[0]
    expected, params = reference.of([at])[0].token_ids, reference.asked[at].params
    pairs = enumerate(zip(one.token_ids, expected, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), len(expected))
    return f"; the first at token {place}, temperature {params.temperature:g}, seed {params.seed}"
