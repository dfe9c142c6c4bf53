"""Do sampled tokens follow the target's own law? Counts of two tokens against exact probabilities.

The law of the first two tokens, p(a)·p(b | a), comes from the backend's `law` at the end of a
prompt and below each likely first token. The counts come from an engine that speculates, one run a
seed, long enough that a draft may be as deep as it likes. Knows both; the arithmetic is elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import prefill
from forerun.engine.engine import Engine
from forerun.errors import OptionError
from forerun.options import SamplingParams
from forerun.protocols import Backend, ForwardBatch, Sampler, Selection
from forerun.tools.certify.checks import Budget, Findings
from forerun.tools.certify.chi_square import (
    FALSE_ALARM,
    LEAST_EXPECTED,
    POWER,
    Fit,
    distance_seen,
    fit,
)
from forerun.tools.certify.subject import Subject

CHOOSING = SamplingParams(temperature=1.0, top_p=0.95)
NUM_RUNS = 2048
LEAST_RUNS = 256  # fewer say too little to be worth a line
_AT_FIRST, _AT_ONCE = 16, 32
_NUM_FIRST, _NUM_BINS = 12, 16
_BEGIN, _AGAIN = 5, 3  # the prompt: five tokens and the first three of them again

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TwoTokens:
    """The exact law of two tokens behind a prompt: `first [V]`, and `second [A V]` after each of
    the likeliest first tokens `likely [A]`."""

    prompt: list[int]
    first: Floats
    likely: NDArray[np.int32]
    second: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Pairs of tokens with bins of their own, first tokens with a bin for their other pairs, and
    one bin for the rest; `law [K]` in that order."""

    pairs: dict[tuple[int, int], int]
    others: dict[int, int]
    law: Floats

    def counts(self, drawn: Sequence[tuple[int, int]]) -> Floats:
        """`[K]` how often each bin was hit."""
        rest = len(self.law) - 1
        bins = [self.pairs.get(pair, self.others.get(pair[0], rest)) for pair in drawn]
        return np.bincount(bins, minlength=len(self.law)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Runs:
    """One run a seed, so many tokens long: a draft goes no deeper than its run is long."""

    seeds: list[int]
    num_tokens: int = 4


@dataclass(frozen=True, slots=True)
class Draws:
    """First two tokens of many runs, and what became of their drafts."""

    pairs: list[tuple[int, int]]
    num_drafted: int
    num_accepted: int


def exact_law(subject: Subject) -> TwoTokens:
    """The law behind whichever prompt leaves the first token most open.

    A prompt ends in the beginning of itself, so that drafters which look back find something.

    Raises:
        OptionError: all prompts are too short to begin again.
    """
    prompts = [ids[:_BEGIN] + ids[:_AGAIN] for ids in subject.token_ids() if len(ids) >= _BEGIN]
    if not prompts:
        raise OptionError(
            f"none of the {len(subject.prompts)} prompts has {_BEGIN} tokens, what a drafter needs"
            " to look back at: give a longer one"
        )
    with subject.backend() as backend:
        firsts = [_laws(backend, prompt, [])[0] for prompt in prompts]
        best = max(range(len(prompts)), key=lambda at: _entropy(firsts[at]))
        likely = np.argsort(-firsts[best], kind="stable")[:_NUM_FIRST].astype(np.int32)
        likely = likely[firsts[best][likely] > 0]
        second = _laws(backend, prompts[best], likely.tolist())[1:]
    return TwoTokens(prompts[best], firsts[best], likely, second)


def binned(law: TwoTokens, num_runs: int) -> Bins:
    """Bins that expect five runs or more, the likeliest pairs first; the rest is one bin."""
    least = LEAST_EXPECTED / num_runs
    joint = law.first[law.likely][:, None] * law.second
    pairs: dict[tuple[int, int], int] = {}
    probabilities: list[float] = []
    order = np.argsort(-joint, axis=None, kind="stable")[:_NUM_BINS]
    for row, token in zip(*np.unravel_index(order, joint.shape), strict=True):
        if joint[row, token] >= least:
            pairs[int(law.likely[row]), int(token)] = len(probabilities)
            probabilities.append(float(joint[row, token]))
    others: dict[int, int] = {}
    for token in law.likely.tolist():
        own = sum(probabilities[at] for pair, at in pairs.items() if pair[0] == token)
        other = float(law.first[token]) - own
        if other >= least:
            others[token] = len(probabilities)
            probabilities.append(other)
    rest = max(0.0, 1.0 - sum(probabilities))
    return _closed(pairs, others, [*probabilities, rest], least)


def _closed(
    pairs: dict[tuple[int, int], int], others: dict[int, int], law: list[float], least: float
) -> Bins:
    """With a last bin that is expected often enough: the one before it joins while it is not."""
    while law[-1] < least and len(law) > 2:
        last = len(law) - 2
        pairs = {pair: at for pair, at in pairs.items() if at != last}
        others = {token: at for token, at in others.items() if at != last}
        law = [*law[:-2], law[-2] + law[-1]]
    return Bins(pairs, others, np.array(law))


def drawn(engine: Engine, prompt: list[int], runs: Runs, budget: Budget) -> Draws:
    """The first two tokens of every run, as far as the budget goes; of few where even the fewest
    that say anything would not fit."""
    pairs: list[tuple[int, int]] = []
    num_drafted = num_accepted = 0
    began_s, each_s = budget.spent_s, 0.0
    num = len(runs.seeds)
    for start, end in pairwise([0, *range(min(_AT_FIRST, num), num, _AT_ONCE), num]):
        least = max(end, min(LEAST_RUNS, num)) - start
        if budget.left_s == 0.0 or budget.num_fitting(each_s, least) < least:
            break
        settings = [_run_params(seed, runs.num_tokens) for seed in runs.seeds[start:end]]
        for one in engine.generate([prompt] * len(settings), settings):
            pairs.append((one.token_ids[0], one.token_ids[1]))
            num_drafted += one.stats.num_drafted
            num_accepted += one.stats.num_accepted
        each_s = (budget.spent_s - began_s) / len(pairs)
    return Draws(pairs, num_drafted, num_accepted)


def check_law(
    name: str,
    engine: Engine,
    law: TwoTokens,
    runs: Runs,
    budget: Budget,
    findings: Findings,
) -> None:
    """Chi-square of the first two tokens, with what it could have seen, and a law that is off by
    a little more than that, which it must refuse."""
    found = drawn(engine, law.prompt, runs, budget)
    num = len(found.pairs)
    if num < min(LEAST_RUNS, len(runs.seeds)):
        findings.skip(name, f"only {num} runs fitted the time for it: give a larger --budget-s")
        return
    bins = binned(law, num)
    counts = bins.counts(found.pairs)
    result = fit(counts, bins.law)
    seen = distance_seen(num, result.num_free)
    findings.add(name, not result.is_refused, _sentence(num, result, seen, found))
    tampered, distance = tampered_law(bins.law, 1.5 * seen)
    control = fit(counts, tampered)
    findings.add(
        f"control: {name}: a law off by {distance:.3f}",
        control.is_refused,
        f"chi-square {control.statistic:.1f}, p = {control.p:.1g}:"
        f" {'refused' if control.is_refused else 'NOT refused'}",
    )


def tampered_law(law: Floats, distance: float) -> tuple[Floats, float]:
    """The law with so much total variation moved out of about half of it, and how much that was."""
    order = np.argsort(-law, kind="stable")
    half = order[np.cumsum(law[order]) <= max(0.5, float(law[order[0]]))]
    inside = np.isin(np.arange(len(law)), half)
    mass = float(law[inside].sum())
    moved = min(distance, 0.9 * mass, 0.9 * (1.0 - mass))
    return np.where(inside, law * (1 - moved / mass), law * (1 + moved / (1 - mass))), moved


def _sentence(num: int, result: Fit, seen: float, found: Draws) -> str:
    return (
        f"{num:,} runs, {result.num_free + 1} bins: chi-square {result.statistic:.1f},"
        f" p = {result.p:.3g} (refused below {FALSE_ALARM:g}); a law off by {seen:.3f} in total"
        f" variation would be refused in {POWER:.0%} of cases;"
        f" {found.num_drafted:,} drafted, {found.num_accepted:,} kept"
    )


def _run_params(seed: int, num_tokens: int) -> SamplingParams:
    return replace(CHOOSING, seed=seed, max_tokens=num_tokens, ignore_eos=True)


def _entropy(law: Floats) -> float:
    return float(-np.sum(law[law > 0] * np.log(law[law > 0])))


def _laws(backend: Backend, prompt: list[int], below: list[int]) -> Floats:
    """`[1 + len(below), V]`: the law behind the prompt, and behind it and each of `below`."""
    table = np.array([[0]], np.int32)
    known = len(prompt) - 1
    prefill(backend, table, prompt[:-1], 0)
    tokens = np.array([prompt[-1], *below], np.int32)
    parents = np.array([-1, *[0] * len(below)], np.int32)
    nodes = np.arange(len(tokens), dtype=np.int32)
    as_array = partial(np.array, dtype=np.int32)
    batch = ForwardBatch(
        tokens, parents, as_array([0, len(tokens)]), as_array([known]), table, nodes
    )
    positions = known + 1 + (nodes > 0).astype(np.int64)
    nobody = np.zeros(len(tokens) + 1, np.int32)
    selection = Selection(
        positions, nobody[1:], [Sampler(CHOOSING, 0)], nobody, np.zeros(0, np.int32)
    )
    laws = backend.law(backend.forward(batch).logits, selection).astype(np.float64)
    normalised: Floats = laws / laws.sum(axis=1, keepdims=True)
    return normalised
