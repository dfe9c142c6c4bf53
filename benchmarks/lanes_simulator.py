"""Two lanes, a verifier and a drafter, simulated round by round (SimPy); all figures are simulated.

    python benchmarks/lanes_simulator.py simulate run.json
    python benchmarks/lanes_simulator.py validate run.json other.json --out validated.json

Each file holds one measured run, or a list of them under `runs`. `validate` sets simulated figures
beside the measured ones, and exits with 1 if tokens/s differ by more than 10 %. Keys of a run:

    schedule      sequential, parallel or ahead
    verify_s      list: seconds of verifications in that very run, with the other lane at work
    step_s        seconds of one pass of the drafter with one branch, beside a verification
    accepted      list: share of drafts whose 1st, 2nd, … token was kept, all before it being so;
                  of drafts that the drafter made for this very state (hits, sequential drafts)
    tokens_per_s  measured

and where they apply (in brackets what is taken without them)

    num_levels    planned depth (as many as `accepted` has)     num_rows      sequences (1)
    num_branches  guesses of a row (1)          branch_s    each further branch in a pass (0)
    num_reads     passes before the first level below a guess (1)
    hit_rate      share of outcomes that were among the guesses (by `bonus`)
    bonus         list: chance that the bonus is the 1st, 2nd, … guess at its exit
    exponent      by which branches are spread over exits (1.4)
    nearest       as `accepted`, of drafts after a miss that was not drafted anew (nothing); with
                  `hit_rate` of all of them, else of those at an exit that had a guess
    redrafts      whether a miss is drafted anew while the target waits (false)
    handover_s    what a round of two lanes costs beside the models (0)
    engine_s      what any round costs beside the models (0)
    busy          factor on verify_s while the drafter works, if verify_s was measured alone (1)
    busy_draft    the same of step_s (1)
    patience_s, deadline_s   as `lanes_setup.Setup` says (0, none)
    rounds_per_s, tokens_per_round, hidden   measured, set beside the simulated ones
    num_devices, name, machine, command      for the report
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import simpy
from lanes_setup import PARALLEL, SEQUENTIAL, Figures, Setup, setup_of

from forerun.control.outcomes import exits_of, spread
from forerun.errors import ForerunError

NUM_ROUNDS = 4000
TOLERANCE = 0.10
COMPARED = ("tokens_per_s", "rounds_per_s", "tokens_per_round", "hidden")
Steps = Generator[simpy.Event, Any, None]


def simulated(setup: Setup, num_rounds: int = NUM_ROUNDS, seed: int = 0) -> Figures:
    """What so many rounds give; the same for the same seed."""
    return _Run(setup, np.random.default_rng(seed)).of(num_rounds)


class _Lane:
    """A place where one thing runs at a time, slower while the other lane works too."""

    def __init__(self, environment: simpy.Environment) -> None:
        self.free = simpy.Resource(environment)
        self.other: _Lane = self
        self.busy_s = self.beside_s = 0.0
        self._environment = environment
        self._works = False
        self._changed = environment.event()

    def work(self, seconds: float, busy: float) -> Steps:
        """Work that takes so long alone and `busy` times as long beside the other lane's."""
        with self.free.request() as turn:
            yield turn
            self._turn(works=True)
            while seconds > 0:
                is_beside = self.other._works
                speed = 1.0 / busy if is_beside else 1.0
                start = self._environment.now
                done = self._environment.timeout(seconds / speed)
                yield done | self.other._changed
                passed = self._environment.now - start
                self.busy_s += passed
                self.beside_s += passed * is_beside
                seconds = 0.0 if done.processed else seconds - passed * speed
            self._turn(works=False)

    def _turn(self, *, works: bool) -> None:
        self._works = works
        changed, self._changed = self._changed, self._environment.event()
        changed.succeed()


@dataclass(slots=True)
class _Forecast:
    """A drafting under way: levels done, and when no further one may begin."""

    num_levels: int = 0
    stop_s: float = math.inf


@dataclass(frozen=True, slots=True)
class _Row:
    """The draft that a row has now: how long, and whether it was made for this very state."""

    length: int
    is_own: bool = True


class _Outcome(Enum):
    """What is prepared for what came: it, another bonus at its exit, or nothing."""

    GUESSED, NEAR, FAR = range(3)


@dataclass(slots=True)
class _Counts:
    tokens: int = 0
    hit: int = 0
    wrong: int = 0
    late: int = 0
    partial: int = 0
    branches: int = 0


@dataclass(slots=True)
class _Run:
    setup: Setup
    random: np.random.Generator
    clock: simpy.Environment = field(default_factory=simpy.Environment)
    counts: _Counts = field(default_factory=_Counts)
    verifier: _Lane = field(init=False)
    drafter: _Lane = field(init=False)
    shares: dict[_Row, list[int]] = field(default_factory=dict)

    def of(self, num_rounds: int) -> Figures:
        """Run, and count."""
        self.verifier, self.drafter = _Lane(self.clock), _Lane(self.clock)
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
        rows = [_Row(way.num_levels)] * way.num_rows
        is_sequential = way.schedule == SEQUENTIAL
        for _ in range(num_rounds):
            if is_sequential:
                yield from self._sequential()
            else:
                rows = yield from self._overlapped(rows)
            yield self.clock.timeout(costs.engine_s + (0 if is_sequential else costs.handover_s))

    def _sequential(self) -> Steps:
        way, costs = self.setup.way, self.setup.costs
        num_nodes = way.num_rows * (way.num_levels + 1)
        verify_s = costs.sequential_s(0, num_nodes) - costs.engine_s
        draft_s = costs.sequential_s(way.num_levels, num_nodes, way.num_rows) - costs.engine_s
        yield from self.drafter.work(draft_s - verify_s, 1.0)
        yield from self.verifier.work(verify_s * self._jitter(), 1.0)
        for _ in range(way.num_rows):
            self.counts.tokens += 1 + self._kept(_Row(way.num_levels))

    def _overlapped(self, rows: list[_Row]) -> Generator[simpy.Event, Any, list[_Row]]:
        """A verification with drafting beside it; what each row has next."""
        costs = self.setup.costs
        forecast = _Forecast()
        drafting = self.clock.process(self._draft_ahead(forecast))
        verify_s = costs.verify_s(sum(1 + row.length for row in rows)) * self._jitter()
        yield from self.verifier.work(verify_s, costs.busy)
        outcomes = [self._outcome(row) for row in rows]
        num_guessed = outcomes.count(_Outcome.GUESSED)
        forecast.stop_s = self.clock.now
        if num_guessed or (_Outcome.NEAR in outcomes and not self.setup.way.redrafts):
            forecast.stop_s += self.setup.patience_s
            if self.setup.deadline_s < math.inf:
                yield drafting | self.clock.timeout(self.setup.deadline_s)
            else:
                yield drafting
        if self.setup.way.redrafts and num_guessed < len(rows):
            yield from self._redraft(len(rows) - num_guessed)
        return [self._next(outcome, forecast.num_levels) for outcome in outcomes]

    def _draft_ahead(self, forecast: _Forecast) -> Steps:
        way, costs = self.setup.way, self.setup.costs
        level_s = costs.step_s + max(0, way.num_rows * way.num_branches - 1) * costs.branch_s
        yield from self.drafter.work(costs.num_reads * costs.step_s, self.setup.busy_draft)
        for _ in range(way.num_levels):
            if self.clock.now >= forecast.stop_s:
                return
            yield from self.drafter.work(level_s, self.setup.busy_draft)
            forecast.num_levels += 1

    def _redraft(self, num_missing: int) -> Steps:
        costs = self.setup.costs
        step_s = costs.step_s + (num_missing - 1) * costs.branch_s
        seconds = self.setup.way.num_levels * step_s
        yield from self.drafter.work(seconds, self.setup.busy_draft)

    def _outcome(self, row: _Row) -> _Outcome:
        """Whether a row's outcome is among its guesses; its tokens are counted."""
        kept = self._kept(row)
        shares = self._shares(row)
        self.counts.tokens += 1 + kept
        self.counts.branches += sum(shares)
        fixed = self.setup.hit
        chance = sum(self.setup.bonus[: shares[kept]]) if fixed is None else fixed
        if self.random.random() < chance:
            return _Outcome.GUESSED
        is_near = self.setup.nearest and (shares[kept] or fixed is not None)
        return _Outcome.NEAR if is_near else _Outcome.FAR

    def _next(self, outcome: _Outcome, num_levels: int) -> _Row:
        setup, counts = self.setup, self.counts
        is_guessed = outcome is _Outcome.GUESSED
        if is_guessed and num_levels:
            counts.hit += 1
            counts.partial += num_levels < setup.way.num_levels
            return _Row(num_levels)
        counts.late += is_guessed
        counts.wrong += not is_guessed
        if not is_guessed and setup.way.redrafts:
            return _Row(setup.way.num_levels)
        is_near = outcome is _Outcome.NEAR
        return _Row(min(num_levels, len(setup.nearest)) * is_near, is_own=False)

    def _kept(self, row: _Row) -> int:
        chances = (self.setup.accepted if row.is_own else self.setup.nearest)[: row.length]
        for kept, chance in enumerate(chances):
            if self.random.random() >= chance:
                return kept
        return len(chances)

    def _shares(self, row: _Row) -> list[int]:
        """Guesses at each exit of such a draft."""
        if row not in self.shares:
            chances = (self.setup.accepted if row.is_own else self.setup.nearest)[: row.length]
            if self.setup.way.schedule == PARALLEL:
                self.shares[row] = [0] * len(chances) + [1]
            else:
                exits, branches = exits_of(chances), self.setup.way.num_branches
                self.shares[row] = spread(exits, branches, self.setup.exponent).tolist()
        return self.shares[row]

    def _jitter(self) -> float:
        return float(self.random.choice(self.setup.jitter))


def beside_measured(run: Mapping[str, Any], num_rounds: int, seed: int) -> dict[str, Any]:
    """Simulated figures of a measured run, and their ratio to what was measured."""
    figures = simulated(setup_of(run), num_rounds, seed).as_json()
    measured = {key: float(run[key]) for key in COMPARED if key in run}
    return {
        "name": run.get("name", run["schedule"]),
        "simulated": figures,
        "measured": measured,
        "ratios": {key: float(f"{figures[key] / measured[key]:.4g}") for key in measured},
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
    for row in rows:
        shown = row["simulated"] if arguments.mode == "simulate" else row["ratios"]
        print(row["name"], *(f"{key}={value:g}" for key, value in shown.items()))
    far = [abs(row["ratios"]["tokens_per_s"] - 1.0) > TOLERANCE for row in rows]
    return int(arguments.mode == "validate" and any(far))


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
