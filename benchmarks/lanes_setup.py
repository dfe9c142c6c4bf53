"""What a simulation of two lanes is given, and what it answers. Plain values; knows no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from forerun.control.outcomes import PowerLaw, exits_of, spread
from forerun.control.overlap import AHEAD, PARALLEL, SEQUENTIAL, LaneCosts, Way
from forerun.control.patience import Patience
from forerun.draft import Draft, Draw
from forerun.errors import OptionError
from forerun.schedules.parallel import Parallel
from forerun.tree import TokenTree

SCHEDULES = (SEQUENTIAL, PARALLEL, AHEAD)


@dataclass(frozen=True, slots=True)
class Setup:
    """Two lanes: how long things take there, what drafts yield, and what is done about misses.

    `costs`, `way`: as the formulas take them (`forerun.control.overlap`); sequential rounds draft
    on one lane and verify on the other in turn, or on all cores where `costs` has those seconds.
    `accepted`: chance that the 1st, 2nd, … token of a drafter's own draft is kept, all before it
    being so; `nearest`: the same of the nearest branch after a miss at an exit that has one (with a
    given `hit`: after any); empty is none.
    `bonus`: chance that the bonus is the 1st, 2nd, … best guess at its exit. `hit`: chance that an
    outcome is prepared, whatever the branches; it overrides `bonus`. `exponent`: by which branches
    are spread over exits. `busy_draft`: how many times longer a pass takes beside a verification,
    if `costs.step_s` is that of a drafter alone. `patience_s`: after the verdict no level is begun
    later than that; `deadline_s`: and no level is waited for longer than that; `learning`: what
    decides both instead, as a real engine does, learning from its rounds. `jitter`: factors on
    the seconds of a verification, of which each draws one; `draft_jitter`: of a forecast.
    `requests`: tokens of one request after another, in turns: its first round meets a miss, its
    last draft ends where it does; empty is one without end. `redraft_rate`: share of misses that
    are drafted anew, if not all or none as `way` says; `redraft_s`: what that takes, if not a
    pass a level; `redrafted`: as `accepted`, of such drafts, if not the same.
    """

    costs: LaneCosts
    way: Way
    accepted: tuple[float, ...]
    nearest: tuple[float, ...] = ()
    bonus: tuple[float, ...] = ()
    hit: float | None = None
    exponent: float = 1.4
    busy_draft: float = 1.0
    patience_s: float = 0.0
    deadline_s: float = math.inf
    learning: Callable[[], Patience] | None = None
    jitter: tuple[float, ...] = (1.0,)
    draft_jitter: tuple[float, ...] = (1.0,)
    requests: tuple[int, ...] = ()
    redraft_rate: float | None = None
    redraft_s: float | None = None
    redrafted: tuple[float, ...] = ()
    num_devices: float = 1.0

    def __post_init__(self) -> None:
        if self.way.schedule not in SCHEDULES:
            raise OptionError(f"schedule is {self.way.schedule!r}, one of {', '.join(SCHEDULES)}")
        if len(self.accepted) < self.way.num_levels:
            raise OptionError(
                f"accepted has {len(self.accepted)} chances for {self.way.num_levels} levels: "
                "give one of each level"
            )


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out, of all rows together; shares are between 0 and 1.

    `hit`, `wrong`, `late`: outcomes of overlapped rounds: prepared; not among the guesses; guessed,
    but with nothing drafted below by the time the round went on. `partial`: hits not as deep as
    planned. `hidden`: drafting seconds during which a verification ran. `thrown_away`: branches
    never used. `verify_share`: time in which the verifier's lane worked.
    """

    tokens_per_s: float
    tokens_per_s_per_device: float
    rounds_per_s: float
    tokens_per_round: float
    hit: float
    wrong: float
    late: float
    partial: float
    hidden: float
    thrown_away: float
    verify_share: float

    def as_json(self) -> dict[str, float]:
        """By name, four digits."""
        return {one.name: float(f"{getattr(self, one.name):.4g}") for one in fields(self)}


def ranks_of(bonus: PowerLaw, most: int = 64) -> tuple[float, ...]:
    """Chances that the bonus is the 1st, 2nd, … guess, by the law of how often F guesses hit."""
    return tuple(np.diff(bonus.hits(np.arange(most + 1))).tolist())


def shares_of(setup: Setup, chances: Sequence[float]) -> list[int]:
    """Guesses `[K+1]` at each exit of a chain whose 1st, 2nd, … token is kept with these chances:
    as `parallel` itself picks its exits, or spread by `exponent`."""
    if setup.way.schedule != PARALLEL:
        return spread(exits_of(chances), setup.way.num_branches, setup.exponent).tolist()
    scores = np.cumprod([1.0, *chances]).astype(np.float32)
    chain = Draft(TokenTree.made_chain([0] * len(scores)), Draw.COUPLED, scores=scores)
    exits = Parallel().exits(chain)  # a chain's node is as many drafted tokens as lie above it
    return [Parallel.per_exit * (node in exits) for node in range(len(scores))]


REQUIRED = ("schedule", "verify_s", "step_s", "accepted", "tokens_per_s")
# Without these a run can be simulated, and not be judged: what it lacks may make up what is wrong.
JUDGED_BY = ("rounds_per_s", "tokens_per_round", "requests")
JUDGED_AHEAD_BY = ("pass_s", "redrafted", "nearest", "redraft_rate", "redraft_s", "handover_s")
OPTIONAL = (
    "name", "num_levels", "num_branches", "num_rows", "branch_s", "num_reads", "busy",
    "busy_draft", "handover_s", "engine_s", "hit_rate", "bonus", "nearest", "redrafts", "exponent",
    "patience_s", "deadline_s", "rounds_per_s", "tokens_per_round", "hidden", "num_devices",
    "machine", "command", "requests", "pass_s", "redrafted", "redraft_rate", "redraft_s",
)  # fmt: skip


def setup_of(run: Mapping[str, Any]) -> Setup:
    """A measured run as a setup; the keys are explained in `lanes_simulator.py`.

    Raises OptionError for a key that is missing or unknown."""
    missing = [key for key in REQUIRED if key not in run]
    unknown = [key for key in run if key not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        raise OptionError(
            f"a measured run lacks {missing}, and has {unknown} that nobody reads: "
            f"needed are {REQUIRED}, known beside them {OPTIONAL}"
        )
    mean_s, jitter = _spread_of(run["verify_s"])
    levels = int(run.get("num_levels", len(run["accepted"])))
    rows = int(run.get("num_rows", 1))
    given = ("busy", "branch_s", "num_reads", "handover_s", "engine_s")
    costs = LaneCosts(
        verify=((rows * (levels + 1), mean_s),),
        step_s=run["step_s"],
        **{key: run[key] for key in given if key in run},
    )
    branches = int(run.get("num_branches", 1))
    way = Way(run["schedule"], levels, branches, rows, bool(run.get("redrafts", False)))
    setup = Setup(costs, way, tuple(run["accepted"]), jitter=jitter, hit=run.get("hit_rate"))
    return _as_measured(setup, run)


def lacking(run: Mapping[str, Any]) -> list[str]:
    """What a measured run must say before a simulation of it may be called right or wrong."""
    needed = JUDGED_BY if run["schedule"] == SEQUENTIAL else JUDGED_BY + JUDGED_AHEAD_BY
    return [key for key in needed if key not in run]


def _as_measured(setup: Setup, run: Mapping[str, Any]) -> Setup:
    """What else a run says; waits are an engine's own unless it says how long they are."""
    names = (
        "exponent", "busy_draft", "patience_s", "deadline_s", "num_devices", "redraft_rate",
        "redraft_s",
    )  # fmt: skip
    given = {key: run[key] for key in names if run.get(key) is not None}
    lists = ("nearest", "bonus", "redrafted", "requests")
    given |= {key: tuple(run[key]) for key in lists if key in run}
    if run.get("pass_s"):
        given["draft_jitter"] = _spread_of(run["pass_s"])[1]
    if "patience_s" not in run and "deadline_s" not in run:
        given["learning"] = Patience
    return replace(setup, **given)


def _spread_of(seconds: Any) -> tuple[float, tuple[float, ...]]:
    """Their mean, and each in units of it."""
    values = np.asarray(seconds, np.float64)
    mean_s = float(values.mean())
    return mean_s, tuple((values / mean_s).tolist())
