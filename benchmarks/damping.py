"""What damped draws bring to a schedule that works ahead, and what they cost: counts, no clock.

    python benchmarks/damping.py --out damping.json         # the embedded pair, the suite

Under `ahead:B:C` a sampled rule's drafts are drawn from a law whose likeliest tokens have C times
their chance, so that the token after a refusal is more often one that was prepared for. Drafts are
kept less often in turn. A hit is a bonus among the B outcomes that the drafter would prepare with
all the time in the world: rounds run one after another without lanes, and in each the outcomes are
asked of a second drafter, so that nothing here depends on a clock. Intervals resample prompts,
those of differences the same prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forerun import SamplingParams
from forerun.backends import open_backend
from forerun.backends.slots import Slots
from forerun.composition import DrafterName, read_schedule, read_shape
from forerun.draft import Draft, Verdict
from forerun.drafters.asking import foresee_by_asking
from forerun.drafters.guard import Guard
from forerun.drafters.lm import LM
from forerun.engine.admission import Admission
from forerun.engine.drafting import drafter_directory
from forerun.engine.parts import Parts
from forerun.engine.queue import Queue
from forerun.engine.sequence import Sequence
from forerun.engine.shaping import RULES, damped_of, growth_of, live_shape, num_levels
from forerun.forecast import Forecast
from forerun.models.resolve import resolve_model
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.options import EngineOptions
from forerun.protocols import Backend, DraftRow, Outlook
from forerun.schedules.sequential import Sequential
from forerun.stats import RoundMeter, RoundStats, Span
from forerun.tools import machine
from forerun.tools.bench_decode import progress
from forerun.tools.prompt_files import read_suite, spread

FACTORS = (1.0, 0.75, 0.5, 0.25)
TEMPERATURES = (0.7, 1.0)
NUM_RESAMPLES = 2000

# [P, 7] of each prompt: rounds, drafted, accepted; hits and outcomes after a refusal, and the same
# after a draft that was kept down to a leaf.
Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One rule at one temperature, damped by one factor."""

    rule: str
    temperature: float
    factor: float
    num_rounds: int
    accepted_per_drafted: float
    tokens_per_round: float
    tokens_per_round_more_ci95: tuple[float, float]
    hit_rate: float
    hit_rate_more_ci95: tuple[float, float]
    hit_rate_after_refusal: float
    hit_rate_at_leaf: float


class Guesses:
    """A witness that asks a drafter of its own for outcomes, and sees which of them come."""

    def __init__(self, drafter: LM, num_branches: int) -> None:
        self._drafter = drafter
        self._num_branches = num_branches
        self._sequence: int | None = None
        self.counts = np.zeros((2, 2))  # [whether at a leaf, hits or outcomes]

    def saw(
        self,
        rows: Rows[Sequence],
        drafts: Rows[Draft],
        said: Any,
        starts: Rows[int],
        verdicts: Rows[Verdict],
    ) -> None:
        """Whether each verdict of a drafted row was guessed."""
        del said, starts
        for row, draft, verdict in zip(rows, drafts, verdicts, strict=True):
            if draft.law is None or len(draft.tree) < 2:
                continue
            tokens, end = draft.tree.tokens, verdict.path[-1]
            kept = [*tokens[list(verdict.path[1:])].tolist(), verdict.bonus]
            is_leaf = int(end not in draft.tree.parents)
            is_hit = self._forecast(row, draft).reached(kept) is not None
            self.counts[is_leaf] += (is_hit, 1)

    def settled(self, stats: RoundStats) -> None:
        """Nothing is timed."""

    def _forecast(self, row: Sequence, draft: Draft) -> Forecast:
        """Outcomes alone, with nothing below them."""
        if self._sequence != row.id:
            if self._sequence is not None:
                self._drafter.release(self._sequence)
            self._drafter.admit(row.id, row.tokens)
            self._sequence = row.id
        asked = DraftRow(row.id, row.tokens, row.prompt_len, row.sampler(), 0)
        none = np.zeros(1, np.int32)
        exits = [np.arange(len(draft.tree), dtype=np.int32)]
        outlook = Outlook(exits, self._num_branches, none, none, none)
        grown = foresee_by_asking(self._drafter, [asked], [draft], outlook)[0]
        return Forecast(len(row.tokens), len(draft.tree), grown)


def main() -> int:
    """Count, print the table, write the rows."""
    options = _arguments()
    prompts = [prompt.text for prompt in spread(read_suite(options.suite), options.limit)]
    rows: list[Row] = []
    for rule in options.rules:
        counts = {factor: _measured(options, rule, factor, prompts) for factor in FACTORS}
        for temperature in TEMPERATURES:
            undamped = counts[1.0][temperature]
            rows += [
                _row(rule, temperature, factor, counts[factor][temperature], undamped)
                for factor in FACTORS
            ]
    progress("")
    report = {
        "what": "damping",
        "machine": machine.machine_name(),
        **{key: getattr(options, key) for key in ("model", "shape", "branches", "seed")},
        "num_prompts": len(prompts),
        "max_tokens": options.max_tokens,
        "rows": [asdict(row) for row in rows],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _show(report, rows)
    return 0


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="forerun-code")
    parser.add_argument("--shape", default="chain:4")
    parser.add_argument("--branches", type=int, default=16, help="outcomes prepared a round")
    parser.add_argument("--rules", type=lambda text: text.split(","), default=["rejection"])
    parser.add_argument("--suite", default="all", help="categories, by commas")
    parser.add_argument("--limit", type=int, default=24, help="prompts; 0 is all of them")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measured(options: Any, rule: str, factor: float, prompts: Rows[str]) -> dict[float, Counts]:
    """Of each temperature, what became of every prompt's drafts and guesses."""
    schedule = read_schedule(f"ahead:{options.branches}:{factor:g}")
    shape = live_shape(read_shape(options.shape), "lm")
    directory = resolve_model(options.model)
    drafter = drafter_directory(DrafterName("lm"), directory)
    growth = growth_of(shape, rule, damped=damped_of(schedule, shape))

    def small_model() -> LM:
        return LM(_opened(drafter), num_levels(shape), Span(), growth)

    with closing(_opened(directory)) as target, closing(small_model()) as asked:
        guesses = Guesses(asked, options.branches)
        guard = Guard(small_model(), shape, target.spec.vocab)
        parts = Parts(
            target, Slots(target.num_blocks), guard, shape, RULES[rule], Sequential(),
            witness=guesses,
        )  # fmt: skip
        with closing(guard):
            admission = Admission(parts, load_tokenizer(directory, target.spec))
            made = {}
            for temperature in TEMPERATURES:
                progress(f"{rule} T={temperature} C={factor:g}")
                counts = _counts(parts, admission, guesses, options, temperature, prompts)
                made[temperature] = np.array(list(counts), np.float64)
    return made


def _opened(directory: Path) -> Backend:
    return open_backend(open_checkpoint(directory), EngineOptions(threads=1), None)


def _counts(
    parts: Parts,
    admission: Admission,
    guesses: Guesses,
    options: Any,
    temperature: float,
    prompts: Rows[str],
) -> Iterator[list[float]]:
    for at, prompt in enumerate(prompts):
        guesses.counts[:] = 0
        params = SamplingParams(
            temperature=temperature,
            seed=options.seed + at,
            max_tokens=options.max_tokens,
            ignore_eos=True,
        )
        row = admission.sequence(0, prompt, params)
        queue = Queue([row], parts, RoundMeter())
        while not queue.is_done:
            queue.step()
        if row.tally.num_failures:
            raise SystemExit(f"{row.tally.num_failures} drafts were thrown away")
        tally = row.tally
        yield [
            len(tally.rounds), tally.num_drafted, tally.num_accepted, *guesses.counts.ravel()
        ]  # fmt: skip


def _row(rule: str, temperature: float, factor: float, counts: Counts, undamped: Counts) -> Row:
    picked = np.random.default_rng(0).integers(len(counts), size=(NUM_RESAMPLES, len(counts)))
    more_tokens = _tokens(counts[picked]) - _tokens(undamped[picked])
    more_hits = _hits(counts[picked]) - _hits(undamped[picked])
    total = counts.sum(axis=0)
    return Row(
        rule,
        temperature,
        factor,
        int(total[0]),
        float(total[2] / max(1.0, total[1])),
        float(_tokens(counts)),
        _interval(more_tokens),
        float(_hits(counts)),
        _interval(more_hits),
        float(total[3] / max(1.0, total[4])),
        float(total[5] / max(1.0, total[6])),
    )


def _tokens(counts: Counts) -> Counts:
    """Tokens a round."""
    totals = counts.sum(axis=-2)
    ratio: Counts = 1.0 + totals[..., 2] / totals[..., 0]
    return ratio


def _hits(counts: Counts) -> Counts:
    """Outcomes that were prepared for, as a share."""
    totals = counts.sum(axis=-2)
    share: Counts = (totals[..., 3] + totals[..., 5]) / (totals[..., 4] + totals[..., 6])
    return share


def _interval(values: Counts) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return low, high


def _show(report: dict[str, Any], rows: Rows[Row]) -> None:
    table = Table(
        "rule", "T", "C", "kept / drafted", "tokens a round", "- C=1, 95 %", "hits", "- C=1, 95 %",
        "after a refusal", "at a leaf",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.rule,
            f"{row.temperature:g}",
            f"{row.factor:g}",
            f"{row.accepted_per_drafted:.3f}",
            f"{row.tokens_per_round:.2f}",
            "{:+.2f} to {:+.2f}".format(*row.tokens_per_round_more_ci95),
            f"{row.hit_rate:.3f}",
            "{:+.3f} to {:+.3f}".format(*row.hit_rate_more_ci95),
            f"{row.hit_rate_after_refusal:.3f}",
            f"{row.hit_rate_at_leaf:.3f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(
        f"{report['model']} drafted by its lm, {report['shape']},"
        f" {report['branches']} branches, {report['num_prompts']} prompts,"
        f" {report['max_tokens']} tokens each"
    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
