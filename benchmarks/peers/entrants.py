"""Who races and on what terms: plans, entrants, what is known of them, and how they are asked.

An *entrant* is an engine in one mode; a *seat* is the process it runs in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from catalogue import SWEPT_LENGTHS, Mode, Peer
from environments import PeerError

from forerun.tools.prompt_files import spread


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

    `drafters` are directories by kind: `lm`, `dspark`, … `made` is where engines keep this model in
    a format of their own. Settings are chosen on `num_trials` of the prompts, `trial_tokens` each.
    """

    model: Path
    drafters: Mapping[str, Path]
    made: Path
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    repeat: int
    context: int
    threads: Sequence[int]
    lengths: Sequence[int] = SWEPT_LENGTHS
    num_trials: int = 3
    trial_tokens: int = 24
    forwards: Sequence[int] = (1, 8, 16, 32)
    load_timeout_s: float = 900.0
    timeout_s: float = 300.0
    memory_bytes: int = 8 << 30
    idle_look_s: float = 1.0

    @property
    def trial_prompts(self) -> list[Sequence[int]]:
        """From all over the prompts, but none of the longest quarter: reading them takes long."""
        longest = sorted(map(len, self.prompts))[(len(self.prompts) - 1) * 3 // 4]
        short = [prompt for prompt in self.prompts if len(prompt) <= longest]
        return spread(short, self.num_trials)


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


class Desk:
    """Starts engines and asks them; keeps what is known of every entrant in `outcomes`."""

    def __init__(self, plan: Plan, open_child: Open, say: Say) -> None:
        self.plan = plan
        self.say = say
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self._open = open_child

    def outcome(self, peer: Peer, mode: Mode) -> Outcome:
        """What is known of an entrant so far."""
        return self.outcomes.setdefault((peer.name, mode.name), Outcome(peer, mode))

    def load(
        self, peer: Peer, mode: Mode, threads: int, options: Mapping[str, Any], stack: ExitStack
    ) -> Asked:
        """A child with the model in it, closed with the stack.

        Raises:
            PeerError: the engine could not be started, or refused.
        """
        child = self._open(peer, f"{peer.name}-{mode.name}".replace(" ", "-"), threads)
        stack.callback(child.close)
        plan, started = self.plan, monotonic()
        own = plan.drafters.get(mode.drafter or "lm")
        answer = child.ask(
            {
                "do": "load",
                "model": str(plan.model),
                "drafter": None if own is None else str(own),
                "drafters": {kind: str(path) for kind, path in plan.drafters.items()},
                "workspace": str(plan.made),
                "threads": threads,
                "context": plan.context,
                "mode": mode.name,
                "options": {**peer.settings, **options},
            },
            plan.load_timeout_s,
        )
        self.say(f"{peer.title}: loaded in {monotonic() - started:.0f} s")
        for (name, _), outcome in self.outcomes.items():
            if name == peer.name:
                outcome.versions = answer.get("versions", {})
        return child

    def generate(
        self,
        child: Asked,
        mode: Mode,
        options: Mapping[str, Any],
        prompt: Sequence[int],
        max_tokens: int,
    ) -> dict[str, Any]:
        """A timed completion of exactly so many tokens, as the driver's protocol has it.

        Raises:
            PeerError: the engine failed, or wrote another number of tokens.
        """
        question = {"do": "generate", "mode": mode.name, "options": dict(options)}
        run = child.ask(
            {**question, "prompt": list(prompt), "max_tokens": max_tokens}, self.plan.timeout_s
        )
        if len(run["token_ids"]) != max_tokens:
            raise PeerError(
                f"wrote {len(run['token_ids'])} tokens where {max_tokens} were asked for"
            )
        return run


def rate_of(run: Mapping[str, Any]) -> float:
    """Tokens per second behind the first ones, whose time is the prompt's."""
    return float((len(run["token_ids"]) - run["num_first"]) / max(run["rest_s"], 1e-9))
