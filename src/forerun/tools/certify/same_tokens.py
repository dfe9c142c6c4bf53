"""Are the tokens those of plain decoding? Prompts × ways of choosing × seeds, token by token.

Plain decoding runs all requests in one order of rows, speculation in the reverse order and the
first of them alone too, so that no row has the same company twice. Knows engines and tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
AT_ONCE = 14
_NUM_CONTROLS = 4


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how its tokens are chosen."""

    prompt: list[int]
    params: SamplingParams


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


def check_tokens(
    name: str,
    engine: Engine,
    asked: Sequence[Request],
    plain: Sequence[Completion],
    budget: Budget,
    findings: Findings,
) -> None:
    """Compare as many requests as the budget allows, fourteen at least; then compare what must
    differ."""
    found = compared(engine, asked, plain, budget)
    detail = f"{found.num} completions, {found.num_tokens:,} tokens"
    if found.num <= len(asked):
        detail += f" (of {len(asked)}: the time for it was spent)"
    detail += f": {found.num_different} differ{found.first}; {found.drafts}"
    findings.add(name, found.num_different == 0, detail)
    if not found.num_drafted:
        findings.skip(f"drafts of {name}", "nothing was drafted: only plain decoding was seen")
    elif engine.inside().parts.schedule.num_branches and not found.num_hits:
        findings.skip(f"schedule of {name}", "nothing that was prepared ahead was of use")
    _control(name, engine, asked, plain, findings)


def compared(
    engine: Engine, asked: Sequence[Request], plain: Sequence[Completion], budget: Budget
) -> Comparison:
    """Run requests, last first, and compare each with its plain completion."""
    order = list(range(len(asked)))[::-1]
    runs: list[tuple[int, Completion]] = []
    for start in range(0, len(order), AT_ONCE):
        if start and budget.left_s == 0.0:
            break
        part = order[start : start + AT_ONCE]
        runs += zip(part, run_all(engine, [asked[at] for at in part]), strict=True)
        if start == 0:
            runs += [(part[0], run_all(engine, [asked[part[0]]])[0])]
    # Rows that share a round share its figures.
    rounds = {id(round_): round_.lane for _, one in runs for round_ in one.stats.rounds}
    lanes = [lane for lane in rounds.values() if lane is not None]
    different = [(at, one) for at, one in runs if one.token_ids != plain[at].token_ids]
    return Comparison(
        num=len(runs),
        num_different=len(different),
        first=_first(asked, plain, different),
        num_tokens=sum(len(one.token_ids) for _, one in runs),
        num_drafted=sum(one.stats.num_drafted for _, one in runs),
        num_accepted=sum(one.stats.num_accepted for _, one in runs),
        num_prepared=sum(lane.num_prepared for lane in lanes),
        num_hits=sum(lane.num_hits for lane in lanes),
    )


def _control(
    name: str,
    engine: Engine,
    asked: Sequence[Request],
    plain: Sequence[Completion],
    findings: Findings,
) -> None:
    """The comparison must be able to fail: with another seed, or prompt where none is used."""
    chosen = [at for at, one in enumerate(asked) if one.params.temperature > 0][:_NUM_CONTROLS]
    if chosen:
        what, others = "seed", [_reseeded(asked[at]) for at in chosen]
    else:
        chosen = list(range(len(asked)))[:_NUM_CONTROLS]
        what, others = "prompt", [asked[at - 1] for at in chosen]
    found = compared(engine, others, [plain[at] for at in chosen], Budget(0.0))
    findings.add(
        f"control: {name}: another {what}",
        found.num_different > 0,
        f"{found.num_different} of {found.num} completions differ",
    )


def _reseeded(one: Request) -> Request:
    return replace(one, params=replace(one.params, seed=(one.params.seed or 0) + 1000))


def _first(
    asked: Sequence[Request],
    plain: Sequence[Completion],
    different: Sequence[tuple[int, Completion]],
) -> str:
    if not different:
        return ""
    at, one = different[0]
    pairs = enumerate(zip(one.token_ids, plain[at].token_ids, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), len(plain[at].token_ids))
    params = asked[at].params
    return f"; the first at token {place}, temperature {params.temperature:g}, seed {params.seed}"
