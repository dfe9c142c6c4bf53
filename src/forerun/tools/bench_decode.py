"""`forerun bench decode`: speculation against plain decoding, in interleaved pairs.

Both engines live in one process on the same cores and take turns, the first of a pair alternating,
so that a slow minute of the machine hits both. A pair uses one prompt, one seed, one set of
parameters; its tokens must be the same. The first round of a run also reads the prompt, so that
round and its tokens are left out of every figure, on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from forerun.errors import OptionError
from forerun.options import SamplingParams, Speculation
from forerun.tools import machine
from forerun.tools.costs import RoundCount
from forerun.tools.loops import loop_share
from forerun.tools.pairs import (
    Pair,
    Round,
    Run,
    num_without_loops,
    ratio_without_loops,
    speedup,
    tokens_per_s,
)
from forerun.tools.prompt_files import (
    BUILT_IN,
    CONTEXT_LENS,
    TIERS,
    Prompt,
    read_prompts,
    read_suite,
    spread,
)
from forerun.tools.terminal import say, write_json

if TYPE_CHECKING:
    from forerun.engine.engine import Completion, Engine
    from forerun.tools.arguments import EngineArguments, SamplingArguments

PLAIN = Speculation(drafter="none")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which prompts are measured, and how often each."""

    prompts: tuple[Prompt, ...]
    repeat: int

    @staticmethod
    def parse(prompts: Path | None, suite: str | None, *, limit: int, repeat: int) -> Plan:
        """The plan of the options: a file's first prompts, or a spread over the suite's.

        Raises:
            OptionError: a number outside its range, a file and the suite at once, or a file or
                category that is not there.
        """
        if repeat < 1 or limit < 0:
            raise OptionError(f"--repeat {repeat} must be at least 1, --limit {limit} at least 0")
        if prompts is not None and suite is not None:
            raise OptionError(
                "--prompts and --suite were both given, and one run measures one set: leave one"
                " out, or run twice"
            )
        if suite is not None:
            return Plan(tuple(spread(read_suite(suite), limit)), repeat)
        return Plan(tuple(read_prompts(prompts or BUILT_IN)[: limit or None]), repeat)


def run(
    plan: Plan,
    engine: EngineArguments,
    sampling: SamplingArguments,
    *,
    timeline: Path | None = None,
    as_json: bool,
) -> int:
    """Measure and report; 1 if any token differed. A `timeline` is drawn of what works ahead.

    Raises:
        OptionError: a timeline of a schedule that has no lanes, or of an unknown kind of picture.
    """
    if works_ahead(engine):
        from forerun.tools.bench_lanes import run as run_lanes

        return run_lanes(plan, engine, sampling, timeline=timeline, as_json=as_json)
    if timeline is not None:
        raise OptionError(
            f"--timeline draws two lanes, and schedule {engine.schedule} has none: add --schedule"
            " ahead, or leave --timeline out"
        )
    report = _measured(plan, engine, sampling)
    _show(report, as_json=as_json)
    return 0 if report["identical"] else 1


def works_ahead(engine: EngineArguments) -> bool:
    """Whether these arguments ask for a schedule with two lanes."""
    return engine.speculation().composition().schedule.kind in ("parallel", "ahead")


def _measured(plan: Plan, engine: EngineArguments, sampling: SamplingArguments) -> dict[str, Any]:
    """All pairs, one prompt after another, as the report."""
    chosen = plan.prompts
    params = replace(sampling.params(), seed=sampling.seed or 0)
    with ExitStack() as stack:
        plain = stack.enter_context(engine.open(PLAIN))
        speculative = stack.enter_context(engine.open())
        groups = []
        for number, prompt in enumerate(chosen):
            progress(f"{number + 1}/{len(chosen)} {prompt.name}")
            own = replace(params, choice=number % 2**16)
            groups.append(measure_pairs(plain, speculative, prompt.text, own, plan.repeat))
        progress("")
        return {
            "machine": machine.machine_name(),
            "model": engine.model,
            "drafter": engine.drafter,
            "shape": engine.shape,
            "schedule": why_scheduled(speculative) or _on_lanes(speculative, engine),
            "numerics": speculative.numerics,
            "exactness": speculative.exactness,
            "temperature": params.temperature,
            "seed": params.seed,
            **figures(groups),
            **tables(chosen, groups),
        }


def why_scheduled(engine: Engine) -> str:
    """Why both models share all cores, in a line, where that was ours to choose; else nothing."""
    figures = engine.schedule_figures()
    return f"{engine.schedule_reason}; {figures}" if figures else ""


def _on_lanes(engine: Engine, arguments: EngineArguments) -> str:
    """Why rounds are scheduled as they are where somebody gave lanes; else nothing."""
    return "" if arguments.lanes is None else engine.schedule_reason


def measure_pairs(
    plain: Engine, speculative: Engine, text: str, params: SamplingParams, repeat: int
) -> list[Pair]:
    """Pairs of one prompt, after an unmeasured one that warms both engines."""
    pairs = []
    for number in range(repeat + 1):
        if number % 2 == 0:
            one = _timed(plain, text, params)
            other = _timed(speculative, text, params)
        else:
            other = _timed(speculative, text, params)
            one = _timed(plain, text, params)
        pairs.append(Pair(one, other))
    return pairs[1:]


def figures(groups: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """Everything that can be said of pairs, grouped by prompt, with the keys scripts build on."""
    runs = [[pair.speculative for pair in group] for group in groups]
    flat = [run for group in runs for run in group]
    rounds = [one for run in flat for one in run.rounds]
    decode_s = sum(run.decode_s for run in flat)
    speed = speedup(groups)
    return {
        "baseline": {"tokens_per_s": tokens_per_s([[pair.plain for pair in g] for g in groups])},
        "speculative": {
            "tokens_per_s": tokens_per_s(runs),
            "tokens_per_round": sum(one.num_tokens for one in rounds) / max(len(rounds), 1),
            "draft_share": sum(one.draft_s for one in rounds) / decode_s if decode_s else 0.0,
            "engine_s_per_round": median(one.engine_s for one in rounds) if rounds else 0.0,
            "loop_share": loop_share(group[0].token_ids for group in runs),
        },
        "ratio": speed.ratio,
        "ratio_ci95": [speed.low, speed.high],
        "ratio_without_loops": ratio_without_loops(groups),
        "num_without_loops": num_without_loops(groups),
        "identical": all(pair.is_identical for group in groups for pair in group),
    }


def by_label(
    label: str,
    names: Iterable[str],
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Pair]],
) -> list[dict[str, Any]]:
    """A row of figures for each of `names` that some prompt has as its `label`.

    `num_tokens` is all that was generated; a ratio is None where its row has no such token.
    """
    rows = []
    for name in names:
        own = [
            group
            for prompt, group in zip(prompts, groups, strict=True)
            if getattr(prompt, label) == name
        ]
        if own:
            rows.append({label: name, "num_prompts": len(own), **_row(own)})
    return rows


def tables(prompts: Sequence[Prompt], groups: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """The same figures by category, context, entropy and prompt, with the keys of each."""
    categories = sorted({prompt.category for prompt in prompts} - {""})
    return {
        "categories": by_label("category", categories, prompts, groups),
        "contexts": by_label("context", CONTEXT_LENS, prompts, groups),
        "entropies": by_label("entropy", TIERS, prompts, groups),
        "prompts": [_figures_of(*one) for one in zip(prompts, groups, strict=True)],
    }


def _row(groups: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    every = figures(groups)
    return {
        "num_tokens": sum(len(group[0].speculative.token_ids) for group in groups),
        "plain_tokens_per_s": every["baseline"]["tokens_per_s"],
        "tokens_per_s": every["speculative"]["tokens_per_s"],
        "ratio": every["ratio"],
        "ratio_ci95": every["ratio_ci95"],
        "ratio_without_loops": every["ratio_without_loops"],
        "num_without_loops": every["num_without_loops"],
        "tokens_per_round": every["speculative"]["tokens_per_round"],
        "loop_share": every["speculative"]["loop_share"],
        "identical": every["identical"],
    }


def _figures_of(prompt: Prompt, group: Sequence[Pair]) -> dict[str, Any]:
    labels = {key: getattr(prompt, key) for key in ("category", "context", "entropy")}
    return {"name": prompt.name, **{k: v for k, v in labels.items() if v}, **_row([group])}


def _timed(engine: Engine, text: str, params: SamplingParams) -> Run:
    return run_of(engine.generate(text, params)[0])


def run_of(completion: Completion) -> Run:
    """A completion's rounds as measured, without the first; the last may have been cut short."""
    first, *others = completion.stats.rounds
    left = len(completion.token_ids) - first.num_accepted - 1
    rounds = []
    for one in others:
        num_tokens = min(one.num_accepted + 1, left)
        left -= num_tokens
        rounds.append(Round(num_tokens, one.round_s, one.draft_s, one.engine_s))
    return Run(completion.token_ids, tuple(rounds))


def counts_of(completion: Completion, run: Run, prompt_len: int) -> tuple[RoundCount, ...]:
    """What the rounds of `run_of` counted, each with the tokens known before it."""
    counts, context = [], prompt_len + len(completion.token_ids) - run.num_decoded
    for one, stats in zip(run.rounds, completion.stats.rounds[1:], strict=True):
        counts.append(
            RoundCount(stats.num_drafted, one.num_tokens, context, stats.num_draft_passes)
        )
        context += one.num_tokens
    return tuple(counts)


def progress(text: str) -> None:
    """Show where a long measurement stands, on a terminal's last line; empty clears it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(report)
    else:
        from forerun.tools.tables import show_decode

        show_decode(report)
    if not report["identical"]:
        say("forerun: speculation changed the tokens of at least one prompt")
