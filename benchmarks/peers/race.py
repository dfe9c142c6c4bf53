"""Engines take turns: choose each one's settings, then time all of them prompt by prompt.

Only one child works at a time. Engines race in groups that fit the memory together, and forerun
races in every group, so that each ratio compares runs of the same minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from time import sleep
from typing import Any

from catalogue import Peer
from entrants import Asked, Desk, Entrant, Open, Outcome, Plan, Say
from environments import PeerError
from sweep import Sweep

_FORWARD_REPEAT = 5


class Race:
    """One run of the benchmark; `outcomes` grows as it goes."""

    def __init__(self, plan: Plan, open_child: Open, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._desk = Desk(plan, open_child, say)
        self.floors_s: list[float] = []

    @property
    def outcomes(self) -> dict[tuple[str, str], Outcome]:
        """What is known of every entrant, by the names of its engine and mode."""
        return self._desk.outcomes

    def run(self, forerun: Peer, peers: Sequence[Peer]) -> None:
        """Choose settings engine by engine, then race; a failure becomes its entrants' reason."""
        entrants = {peer.name: Sweep(self._desk, peer).chosen() for peer in (forerun, *peers)}
        own = entrants.pop(forerun.name)
        if not own:
            raise PeerError(f"forerun itself failed: {self._reason(forerun)}")
        groups = list(_groups(own, [one for each in entrants.values() for one in each], self._plan))
        for number, group in enumerate(groups):
            self._say(f"group {number + 1} of {len(groups)}")
            self._race(number, group)

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
            children[one.seat] = self._desk.load(
                one.peer, one.mode, one.threads, one.options, stack
            )
        except PeerError as error:
            outcome.reason = str(error)

    def _look_at_idleness(self, entrants: Sequence[Entrant], children: dict[str, Asked]) -> None:
        """Processor time that each child takes while nobody asks it anything."""
        look_s = self._plan.idle_look_s
        sleep(look_s)
        before = {seat: child.cpu_s for seat, child in children.items()}
        sleep(look_s)
        for one in entrants:
            if one.seat in children:
                share = (children[one.seat].cpu_s - before[one.seat]) / look_s
                self.outcomes[one.peer.name, one.mode.name].idle_share = share

    def _warm(self, one: Entrant, children: dict[str, Asked]) -> None:
        outcome = self.outcomes[one.peer.name, one.mode.name]
        try:
            child = _seat(children, one)
            self._say(f"{one.name}: warming up")
            self._generate(child, one, self._plan.prompts[0])
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
            outcome.runs[key] = self._generate(child, one, prompt)
        except PeerError as error:
            outcome.reason = str(error)

    def _floor(self, children: dict[str, Asked], context: int) -> None:
        if "forerun" in children:
            question = {"do": "floor", "context": context}
            self.floors_s.append(children["forerun"].ask(question, self._plan.timeout_s)["floor_s"])

    def _generate(self, child: Asked, one: Entrant, prompt: Sequence[int]) -> dict[str, Any]:
        return self._desk.generate(child, one.mode, one.options, prompt, self._plan.max_tokens)

    def _reason(self, peer: Peer) -> str:
        reasons = [one.reason for (name, _), one in self.outcomes.items() if name == peer.name]
        return "; ".join(filter(None, reasons))


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
