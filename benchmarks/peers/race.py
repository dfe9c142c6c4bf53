"""Engines take turns: choose each one's settings, then time all of them prompt by prompt.

An *entrant* is an engine in one mode; a *seat* is the process it runs in. Only one child works at
a time. Engines race in groups that fit the memory together, and forerun races in every group, so
that each ratio compares runs of the same minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any, Protocol

from catalogue import SWEPT_LENGTHS, Mode, Peer
from environments import PeerError

_NUM_TRIAL_PROMPTS = 2
_FORWARD_REPEAT = 5
_IDLE_LOOK_S = 1.0


class Asked(Protocol):
    """What the race needs of a child."""

    @property
    def cpu_s(self) -> float: ...
    @property
    def resident_bytes(self) -> int: ...
    def ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run; times are bounds for one answer, `prompts` are token ids.

    `made` is where engines keep this model in a format of their own.
    """

    model: Path
    drafter: Path | None
    made: Path
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    repeat: int
    context: int
    threads: Sequence[int]
    lengths: Sequence[int] = SWEPT_LENGTHS
    forwards: Sequence[int] = (1, 8, 16, 32)
    load_timeout_s: float = 900.0
    timeout_s: float = 300.0
    memory_bytes: int = 8 << 30


@dataclass(frozen=True, slots=True)
class Entrant:
    """An engine in one mode with its chosen settings; `seat` names the process it shares."""

    peer: Peer
    mode: Mode
    threads: int
    options: Mapping[str, Any]
    seat: str
    resident_bytes: int

    @property
    def name(self) -> str:
        return f"{self.peer.title}, {self.mode.name}"


@dataclass(slots=True)
class Outcome:
    """All that is known of an entrant: `runs[group, repeat, prompt]`, or why there are none."""

    peer: Peer
    mode: Mode
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[tuple[int, int, int], dict[str, Any]] = field(default_factory=dict)
    forwards_s: dict[int, float] = field(default_factory=dict)
    idle_share: float | None = None
    reason: str | None = None


Open = Callable[[Peer, str, int], Asked]  # peer, name of the seat, threads
Say = Callable[[str], None]


class Race:
    """One run of the benchmark; `outcomes` grows as it goes."""

    def __init__(self, plan: Plan, open_child: Open, say: Say) -> None:
        self._plan = plan
        self._open = open_child
        self._say = say
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.floors_s: list[float] = []

    def run(self, forerun: Peer, peers: Sequence[Peer]) -> None:
        """Choose settings engine by engine, then race; a failure becomes its entrants' reason."""
        entrants = {peer.name: self._chosen(peer) for peer in (forerun, *peers)}
        own = entrants.pop(forerun.name)
        if not own:
            raise PeerError(f"forerun itself failed: {self._reason(forerun)}")
        groups = list(_groups(own, [one for each in entrants.values() for one in each], self._plan))
        for number, group in enumerate(groups):
            self._say(f"group {number + 1} of {len(groups)}")
            self._race(number, group)

    # --- settings, one engine at a time ----------------------------------------------------------

    def _chosen(self, peer: Peer) -> list[Entrant]:
        modes = [mode for mode in peer.modes if self._plan.drafter or not mode.needs_drafter]
        for mode in modes:
            self.outcomes[peer.name, mode.name] = Outcome(peer, mode)
        if not modes:
            return []
        try:
            threads = self._best_threads(peer, modes[0])
        except PeerError as error:
            for mode in modes:
                self.outcomes[peer.name, mode.name].reason = str(error)
            return []
        found = []
        with ExitStack() as stack:
            shared: dict[str, Asked] = {}
            for mode in modes:
                self._say(f"{peer.title}, {mode.name}: choosing settings")
                try:
                    found.append(self._tried(peer, mode, threads, shared, stack))
                except PeerError as error:
                    self.outcomes[peer.name, mode.name].reason = str(error)
        return found

    def _best_threads(self, peer: Peer, mode: Mode) -> int:
        """The number of threads that decodes fastest in the engine's first mode."""
        if len(self._plan.threads) == 1:
            return self._plan.threads[0]
        rates = {}
        for threads in self._plan.threads:
            self._say(f"{peer.title}: {threads} threads")
            with ExitStack() as stack:
                child = self._loaded(peer, mode, threads, {}, stack)
                rates[threads] = self._rate(child, mode, {})
                trial = {"threads": threads, "tokens_per_s": rates[threads]}
                self.outcomes[peer.name, mode.name].trials.append(trial)
        return max(rates, key=lambda threads: rates[threads])

    def _tried(
        self, peer: Peer, mode: Mode, threads: int, shared: dict[str, Asked], stack: ExitStack
    ) -> Entrant:
        """The mode with its best draft length; engines that fix it at load are loaded for each."""
        outcome = self.outcomes[peer.name, mode.name]
        lengths = [{"num_draft": n} for n in self._plan.lengths] if mode.is_swept else [{}]
        rates: list[tuple[float, int, dict[str, Any]]] = []
        for options in lengths:
            with ExitStack() as own:
                if peer.has_mode_a_process:
                    child = self._loaded(peer, mode, threads, options, own)
                else:
                    if peer.name not in shared:
                        shared[peer.name] = self._loaded(peer, mode, threads, options, stack)
                    child = shared[peer.name]
                if len(lengths) > 1:
                    rate = self._rate(child, mode, options)
                else:  # nothing to choose: one run shows that it works and what it holds
                    rate = rate_of(self._generate(child, mode, options, self._plan.prompts[0]))
                rates.append((rate, child.resident_bytes, options))
                outcome.trials.append({"threads": threads, **options, "tokens_per_s": rate})
        _, memory, options = max(rates, key=lambda one: one[0])
        outcome.threads, outcome.options = threads, options
        seat = f"{peer.name}-{mode.name}" if peer.has_mode_a_process else peer.name
        return Entrant(peer, mode, threads, options, seat.replace(" ", "-"), memory)

    def _rate(self, child: Asked, mode: Mode, options: Mapping[str, Any]) -> float:
        """Tokens per second on two prompts, after an unmeasured run of each."""
        runs = [
            [self._generate(child, mode, options, prompt) for _ in range(2)][1]
            for prompt in self._plan.prompts[:_NUM_TRIAL_PROMPTS]
        ]
        return median(rate_of(run) for run in runs)

    # --- the race --------------------------------------------------------------------------------

    def _race(self, group: int, entrants: Sequence[Entrant]) -> None:
        with ExitStack() as stack:
            children: dict[str, Asked] = {}
            for one in entrants:
                self._seated(one, children, stack)
            self._look_at_idleness(entrants, children)
            for one in entrants:
                self._warm(one, children)
            for repeat in range(self._plan.repeat):
                for number, prompt in enumerate(self._plan.prompts):
                    self._say(f"repeat {repeat + 1}, prompt {number + 1}")
                    shift = (repeat + number) % len(entrants)
                    for one in (*entrants[shift:], *entrants[:shift]):
                        self._turn(one, children, (group, repeat, number), prompt)
                    self._floor(children, len(prompt) + self._plan.max_tokens // 2)

    def _seated(self, one: Entrant, children: dict[str, Asked], stack: ExitStack) -> None:
        outcome = self.outcomes[one.peer.name, one.mode.name]
        if one.seat in children or outcome.reason:
            return
        self._say(f"{one.name}: loading")
        try:
            children[one.seat] = self._loaded(one.peer, one.mode, one.threads, one.options, stack)
        except PeerError as error:
            outcome.reason = str(error)

    def _look_at_idleness(self, entrants: Sequence[Entrant], children: dict[str, Asked]) -> None:
        """Processor time that each child takes while nobody asks it anything."""
        sleep(_IDLE_LOOK_S)
        before = {seat: child.cpu_s for seat, child in children.items()}
        sleep(_IDLE_LOOK_S)
        for one in entrants:
            if one.seat in children:
                share = (children[one.seat].cpu_s - before[one.seat]) / _IDLE_LOOK_S
                self.outcomes[one.peer.name, one.mode.name].idle_share = share

    def _warm(self, one: Entrant, children: dict[str, Asked]) -> None:
        outcome = self.outcomes[one.peer.name, one.mode.name]
        try:
            child = _seat(children, one)
            self._say(f"{one.name}: warming up")
            self._generate(child, one.mode, one.options, self._plan.prompts[0])
            if one.mode.name == "plain":
                self._time_forwards(child, outcome)
        except PeerError as error:
            outcome.reason = outcome.reason or str(error)

    def _time_forwards(self, child: Asked, outcome: Outcome) -> None:
        question = {"do": "forward", "context": 64, "repeat": _FORWARD_REPEAT}
        for count in self._plan.forwards:
            if count in outcome.forwards_s:
                continue
            try:
                answer = child.ask({**question, "num_tokens": count}, self._plan.timeout_s)
            except PeerError as error:
                if "not offered" in str(error):
                    return
                raise
            outcome.forwards_s[count] = answer["forward_s"]

    def _turn(
        self,
        one: Entrant,
        children: dict[str, Asked],
        key: tuple[int, int, int],
        prompt: Sequence[int],
    ) -> None:
        outcome = self.outcomes[one.peer.name, one.mode.name]
        if outcome.reason:
            return
        try:
            child = _seat(children, one)
            outcome.runs[key] = self._generate(child, one.mode, one.options, prompt)
        except PeerError as error:
            outcome.reason = str(error)

    def _floor(self, children: dict[str, Asked], context: int) -> None:
        if "forerun" in children:
            question = {"do": "floor", "context": context}
            self.floors_s.append(children["forerun"].ask(question, self._plan.timeout_s)["floor_s"])

    # --- asking ----------------------------------------------------------------------------------

    def _loaded(
        self, peer: Peer, mode: Mode, threads: int, options: Mapping[str, Any], stack: ExitStack
    ) -> Asked:
        child = self._open(peer, f"{peer.name}-{mode.name}".replace(" ", "-"), threads)
        stack.callback(child.close)
        plan, started = self._plan, monotonic()
        answer = child.ask(
            {
                "do": "load",
                "model": str(plan.model),
                "drafter": None if plan.drafter is None else str(plan.drafter),
                "workspace": str(plan.made),
                "threads": threads,
                "context": plan.context,
                "mode": mode.name,
                "options": {**peer.settings, **options},
            },
            plan.load_timeout_s,
        )
        self._say(f"{peer.title}: loaded in {monotonic() - started:.0f} s")
        for (name, _), outcome in self.outcomes.items():
            if name == peer.name:
                outcome.versions = answer.get("versions", {})
        return child

    def _generate(
        self, child: Asked, mode: Mode, options: Mapping[str, Any], prompt: Sequence[int]
    ) -> dict[str, Any]:
        plan = self._plan
        question = {"do": "generate", "mode": mode.name, "options": dict(options)}
        run = child.ask(
            {**question, "prompt": list(prompt), "max_tokens": plan.max_tokens}, plan.timeout_s
        )
        if len(run["token_ids"]) != plan.max_tokens:
            raise PeerError(
                f"wrote {len(run['token_ids'])} tokens where {plan.max_tokens} were asked for"
            )
        return run

    def _reason(self, peer: Peer) -> str:
        reasons = [one.reason for (name, _), one in self.outcomes.items() if name == peer.name]
        return "; ".join(filter(None, reasons))


def rate_of(run: Mapping[str, Any]) -> float:
    """Tokens per second behind the first ones, whose time is the prompt's."""
    return (len(run["token_ids"]) - run["num_first"]) / max(run["rest_s"], 1e-9)


def _seat(children: Mapping[str, Asked], one: Entrant) -> Asked:
    if one.seat not in children:
        raise PeerError("its process did not load")
    return children[one.seat]


def _groups(
    own: Sequence[Entrant], others: Sequence[Entrant], plan: Plan
) -> Iterator[list[Entrant]]:
    """Entrants that fit the memory together, forerun's in each group; a seat is never split."""
    seats: dict[str, list[Entrant]] = {}
    for one in others:
        seats.setdefault(one.seat, []).append(one)
    own_bytes = max(one.resident_bytes for one in own)
    group, used = list(own), own_bytes
    for members in seats.values():
        needed = max(one.resident_bytes for one in members)
        if used + needed > plan.memory_bytes and len(group) > len(own):
            yield group
            group, used = list(own), own_bytes
        group += members
        used += needed
    yield group
