"""Two lanes, a verifier and a drafter, simulated round by round (SimPy); all figures are simulated.

    python benchmarks/lanes_simulator.py simulate run.json
    python benchmarks/lanes_simulator.py validate run.json other.json --out validated.json

Each file holds one measured run, or a list of them under `runs`. `validate` sets simulated figures
beside the measured ones, and exits with 1 if of any run tokens/s, or one of the two factors that
make it up, rounds/s and tokens a round, differ by more than 10 %: errors that cancel are errors.
A run that lacks what a judgement needs is simulated and named, and counts as failed: files of
before 2026-11-23 say nothing of requests' ends, nor of what was drafted anew. Keys of a run:

    schedule      sequential, parallel or ahead
    verify_s      list: seconds of verifications in that very run, with the other lane at work
    step_s        seconds of one pass of the drafter with one branch, beside a verification
    accepted      list: share of drafts whose 1st, 2nd, … token was kept, all before it being so;
                  of drafts that the drafter made for this very state (hits, sequential drafts)
    tokens_per_s  measured

and where they apply (in brackets what is taken without them)

    num_levels    planned depth (as many as `accepted` has)     num_rows      sequences (1)
    num_branches  guesses of a row (1; of parallel one at each of its exits, two at most)
    branch_s      each further branch in a pass (0)
    num_reads     passes before the first level below a guess (1)
    hit_rate      share of outcomes that were among the guesses (by `bonus`)
    bonus         list: chance that the bonus is the 1st, 2nd, … guess at its exit
    exponent      by which branches are spread over exits (1.4)
    nearest       as `accepted`, of drafts after a miss that was not drafted anew (nothing); with
                  `hit_rate` of all of them, else of those at an exit that had a guess; with
                  `redraft_rate` whatever such a round did have, be it nothing
    redrafts      whether a miss is drafted anew while the target waits (false)
    redraft_rate  or the share of misses that were
    redraft_s     seconds of drafting one anew (`num_levels` passes)
    redrafted     as `accepted`, of drafts made anew (`accepted`)
    requests      list: tokens of each request behind its first round (one without an end)
    pass_s        list: seconds of a pass of each forecast, for their spread
    handover_s    what a round of two lanes costs beside the models (0)
    engine_s      what any round costs beside the models (0)
    busy          factor on verify_s while the drafter works, if verify_s was measured alone (1)
    busy_draft    the same of step_s (1)
    patience_s, deadline_s   as `lanes_setup.Setup` says (learned from rounds, as an engine does)
    rounds_per_s, tokens_per_round, hidden   measured, set beside the simulated ones
    num_devices, name, machine, command      for the report
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simpy
from lanes_parts import MISSED, Counts, Forecast, Lane, Outcome, Row, Source, Steps
from lanes_setup import SEQUENTIAL, Figures, Setup, lacking, setup_of, shares_of

from forerun.control.patience import Patience
from forerun.errors import ForerunError

NUM_ROUNDS = 4000
TOLERANCE = 0.10
JUDGED = ("tokens_per_s", "rounds_per_s", "tokens_per_round")
COMPARED = (*JUDGED, "hidden")


def simulated(setup: Setup, num_rounds: int = NUM_ROUNDS, seed: int = 0) -> Figures:
    """What so many rounds give; the same for the same seed."""
    return _Run(setup, np.random.default_rng(seed)).of(num_rounds)


@dataclass(slots=True)
class _Run:
    setup: Setup
    random: np.random.Generator
    clock: simpy.Environment = field(default_factory=simpy.Environment)
    counts: Counts = field(default_factory=Counts)
    verifier: Lane = field(init=False)
    drafter: Lane = field(init=False)
    shares: dict[Row, list[int]] = field(default_factory=dict)
    waits: Patience | None = field(init=False)
    left: list[float] = field(init=False)  # tokens that each row's request still takes
    coming: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self.waits = self.setup.learning() if self.setup.learning is not None else None
        self.coming = itertools.cycle(self.setup.requests or (math.inf,))
        self.left = [next(self.coming) for _ in range(self.setup.way.num_rows)]

    def of(self, num_rounds: int) -> Figures:
        """Run, and count."""
        self.verifier, self.drafter = Lane(self.clock), Lane(self.clock)
        self.verifier.other, self.drafter.other = self.drafter, self.verifier
        self.clock.run(self.clock.process(self._rounds(num_rounds)))
        counts, now = self.counts, self.clock.now
        outcomes = max(1, counts.hit + counts.wrong + counts.late)
        rate = counts.tokens / now
        return Figures(
            tokens_per_s=rate,
            tokens_per_s_per_device=rate / self.setup.num_devices,
            rounds_per_s=num_rounds / now,
            tokens_per_round=counts.tokens / num_rounds / self.setup.way.num_rows,
            hit=counts.hit / outcomes,
            wrong=counts.wrong / outcomes,
            late=counts.late / outcomes,
            partial=counts.partial / max(1, counts.hit),
            hidden=self.drafter.beside_s / self.drafter.busy_s if self.drafter.busy_s else 0.0,
            thrown_away=1.0 - counts.hit / counts.branches if counts.branches else 0.0,
            verify_share=self.verifier.busy_s / now,
        )

    def _rounds(self, num_rounds: int) -> Steps:
        way, costs = self.setup.way, self.setup.costs
        is_endless = not self.setup.requests
        rows = [
            Row(self._fitting(row, way.num_levels)) if is_endless else self._made_good(row)
            for row in range(way.num_rows)
        ]
        is_sequential = way.schedule == SEQUENTIAL
        for _ in range(num_rounds):
            before_s, num_tokens = self.clock.now, self.counts.tokens
            if is_sequential:
                yield from self._sequential()
            else:
                rows = yield from self._overlapped(rows)
            yield self.clock.timeout(costs.engine_s + (0 if is_sequential else costs.handover_s))
            if self.waits is not None:
                self.waits.learn_round(self.counts.tokens - num_tokens, self.clock.now - before_s)

    def _sequential(self) -> Steps:
        way, costs = self.setup.way, self.setup.costs
        rows = [Row(self._fitting(row, way.num_levels)) for row in range(way.num_rows)]
        num_levels = max(row.length for row in rows)
        num_nodes = way.num_rows * (way.num_levels + 1)
        verify_s = costs.sequential_s(0, num_nodes) - costs.engine_s
        draft_s = costs.sequential_s(num_levels, num_nodes, way.num_rows) - costs.engine_s
        yield from self.drafter.work(draft_s - verify_s, 1.0)
        yield from self.verifier.work(verify_s * self._jitter(), 1.0)
        for at, row in enumerate(rows):
            self._take(at, 1 + self._kept(row))

    def _overlapped(self, rows: list[Row]) -> Generator[simpy.Event, Any, list[Row]]:
        """A verification with drafting beside it; what each row has next."""
        costs = self.setup.costs
        room = max(self._fitting(at, self.setup.way.num_levels) for at in range(len(rows)))
        forecast = Forecast(room)
        num_guesses = sum(sum(self._shares(row)) for row in rows)
        drafting = self.clock.process(self._draft_ahead(forecast, num_guesses))
        verify_s = costs.verify_s(sum(1 + row.length for row in rows)) * self._jitter()
        yield from self.verifier.work(verify_s, costs.busy)
        outcomes = [self._outcome(at, row) for at, row in enumerate(rows)]
        if self.waits is not None:
            yield from self._wait_as_learned(forecast, drafting, outcomes, self.waits)
        else:
            yield from self._wait_as_told(forecast, drafting, outcomes)
        num_levels = forecast.num_levels  # what comes later is of no use
        anew = [outcome in MISSED and self._redrafts() for outcome in outcomes]
        if any(anew):
            yield from self._redraft(sum(anew))
        made = zip(outcomes, anew, strict=True)
        return [
            self._next(at, outcome, num_levels, is_anew=is_anew)
            for at, (outcome, is_anew) in enumerate(made)
        ]

    def _wait_as_told(
        self, forecast: Forecast, drafting: simpy.Event, outcomes: list[Outcome]
    ) -> Steps:
        """As long as the setup says, where there is something to wait for."""
        forecast.stop_s = self.clock.now
        is_near = Outcome.NEAR in outcomes and not self.setup.way.redrafts
        if Outcome.GUESSED in outcomes or is_near:
            forecast.stop_s += self.setup.patience_s
            if self.setup.deadline_s < math.inf:
                yield drafting | self.clock.timeout(self.setup.deadline_s)
            else:
                yield drafting

    def _wait_as_learned(
        self,
        forecast: Forecast,
        drafting: simpy.Event,
        outcomes: list[Outcome],
        waits: Patience,
    ) -> Steps:
        """As long as may pay by earlier rounds; whether it was guessed is seen only afterwards."""
        if not drafting.triggered and any(one is not Outcome.NEW for one in outcomes):
            elapsed_s = self.clock.now - forecast.began_s
            wait = waits.wait_for(forecast.most, elapsed_s, len(outcomes))
            forecast.most = min(forecast.most, wait.num_levels or forecast.most)
            yield drafting | self.clock.timeout(wait.longest_s)
        if not drafting.triggered:
            forecast.most = forecast.num_levels = 0
            return
        waits.learn_forecast(
            self.setup.costs.num_reads + forecast.num_levels, forecast.ended_s - forecast.began_s
        )
        for one in outcomes:
            if one not in (Outcome.LAST, Outcome.NEW):
                waits.learn_outcome(is_hit=one is Outcome.GUESSED)

    def _draft_ahead(self, forecast: Forecast, num_guesses: int) -> Steps:
        costs = self.setup.costs
        factor = float(self.random.choice(self.setup.draft_jitter))
        level_s = costs.step_s + max(0, num_guesses - 1) * costs.branch_s
        forecast.began_s = self.clock.now
        read_s = factor * costs.num_reads * costs.step_s
        yield from self.drafter.work(read_s, self.setup.busy_draft)
        while forecast.num_levels < forecast.most and self.clock.now < forecast.stop_s:
            yield from self.drafter.work(factor * level_s, self.setup.busy_draft)
            forecast.num_levels += 1
        forecast.ended_s = self.clock.now

    def _redrafts(self) -> bool:
        rate = self.setup.redraft_rate
        return self.setup.way.redrafts if rate is None else bool(self.random.random() < rate)

    def _redraft(self, num_missing: int) -> Steps:
        costs, levels, whole_s = self.setup.costs, self.setup.way.num_levels, self.setup.redraft_s
        others_s = (num_missing - 1) * levels * costs.branch_s
        first_s = levels * costs.step_s if whole_s is None else whole_s
        yield from self.drafter.work(first_s + others_s, self.setup.busy_draft)

    def _fitting(self, at: int, length: int) -> int:
        """As much of a draft as a row's request has room for; its last token is a bonus."""
        return int(min(length, self.left[at] - 1))

    def _take(self, at: int, num_tokens: int) -> None:
        self.counts.tokens += num_tokens
        self.left[at] -= num_tokens
        if self.left[at] < 1:
            self.left[at] = next(self.coming)

    def _outcome(self, at: int, row: Row) -> Outcome:
        """Whether a row's outcome is among its guesses; its tokens are counted."""
        kept = self._kept(row)
        shares = self._shares(row)
        is_over = self.left[at] <= 1 + kept
        self._take(at, 1 + kept)
        if self.waits is not None:
            self.waits.learn_yield(row.source.value, kept)
        self.counts.branches += sum(shares)
        if is_over:
            return Outcome.NEW
        if self.left[at] == 1:
            return Outcome.LAST
        fixed = self.setup.hit
        chance = sum(self.setup.bonus[: shares[kept]]) if fixed is None else fixed
        if self.random.random() < chance:
            return Outcome.GUESSED
        is_near = self.setup.nearest and (shares[kept] or fixed is not None)
        return Outcome.NEAR if is_near else Outcome.FAR

    def _next(self, at: int, outcome: Outcome, num_levels: int, *, is_anew: bool) -> Row:
        counts = self.counts
        is_guessed = outcome is Outcome.GUESSED
        if outcome is Outcome.LAST:
            return Row(0)
        if is_guessed and num_levels:
            counts.hit += 1
            counts.partial += num_levels < self.setup.way.num_levels
            return Row(self._fitting(at, num_levels))
        counts.late += is_guessed
        counts.wrong += outcome in (Outcome.NEAR, Outcome.FAR)
        if is_anew:
            return Row(self._fitting(at, self.setup.way.num_levels), Source.ANEW)
        if self.setup.redraft_rate is not None:  # `nearest` is whatever was there without the lane
            return Row(self._fitting(at, len(self.setup.nearest)), Source.SPARE)
        length = min(num_levels, len(self.setup.nearest)) if outcome is Outcome.NEAR else 0
        return Row(self._fitting(at, length), Source.SPARE)

    def _made_good(self, at: int) -> Row:
        """What a request begins with that nothing is prepared for."""
        return self._next(at, Outcome.NEW, 0, is_anew=self._redrafts())

    def _chances(self, row: Row) -> tuple[float, ...]:
        setup = self.setup
        anew = setup.redrafted or setup.accepted
        chances = {Source.HIT: setup.accepted, Source.ANEW: anew, Source.SPARE: setup.nearest}
        return chances[row.source][: row.length]

    def _kept(self, row: Row) -> int:
        chances = self._chances(row)
        for kept, chance in enumerate(chances):
            if self.random.random() >= chance:
                return kept
        return len(chances)

    def _shares(self, row: Row) -> list[int]:
        """Guesses at each exit of such a draft."""
        if row not in self.shares:
            self.shares[row] = shares_of(self.setup, self._chances(row))
        return self.shares[row]

    def _jitter(self) -> float:
        return float(self.random.choice(self.setup.jitter))


def beside_measured(run: Mapping[str, Any], num_rounds: int, seed: int) -> dict[str, Any]:
    """Simulated figures of a measured run, their ratio to what was measured, which of these are
    too far from 1, and what the run lacks to be judged by them."""
    figures = simulated(setup_of(run), num_rounds, seed).as_json()
    measured = {key: float(run[key]) for key in COMPARED if key in run}
    ratios = {key: float(f"{figures[key] / measured[key]:.4g}") for key in measured}
    judged = [key for key in JUDGED if key in ratios]
    return {
        "name": run.get("name", run["schedule"]),
        "simulated": figures,
        "measured": measured,
        "ratios": ratios,
        "far": [key for key in judged if abs(ratios[key] - 1.0) > TOLERANCE],
        "lacks": lacking(run),
    }


def main() -> int:
    """Simulate what the files hold; compare, where asked."""
    arguments = _arguments()
    try:
        runs = [run for path in arguments.files for run in _runs(path)]
        rows = [beside_measured(run, arguments.num_rounds, arguments.seed) for run in runs]
    except ForerunError as error:
        print(error, file=sys.stderr)
        return 2
    text = json.dumps({"what": "lanes-validated", "rows": rows}, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    is_asked = arguments.mode == "validate"
    for row in rows:
        shown = row["ratios"] if is_asked else row["simulated"]
        verdict = _verdict(row) if is_asked else ""
        print(row["name"], *(f"{key}={value:g}" for key, value in shown.items()), verdict)
    return int(is_asked and any(row["far"] or row["lacks"] for row in rows))


def _verdict(row: Mapping[str, Any]) -> str:
    if row["lacks"]:
        return f"cannot be judged: the run does not say {', '.join(row['lacks'])}"
    return f"missed: {', '.join(row['far'])}" if row["far"] else "met"


def _runs(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return list(found["runs"]) if "runs" in found else [found]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("mode", choices=("simulate", "validate"))
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of measured runs")
    parser.add_argument("--num-rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write what is printed, and more, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
