"""Each engine's settings, chosen by measurement before the race, one engine at a time.

The number of threads is chosen in the engine's first mode, which is plain decoding; the draft
length in each mode that has one. A setting that fails is a trial that says why, and loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

from catalogue import Mode, Peer
from entrants import Asked, Desk, Entrant, rate_of
from environments import PeerError


class Sweep:
    """Settings of one engine; `chosen` leaves every trial in the outcomes."""

    def __init__(self, desk: Desk, peer: Peer) -> None:
        self._desk = desk
        self._peer = peer
        self._shared: Asked | None = None

    def chosen(self) -> list[Entrant]:
        """The engine's modes that work, each with its fastest settings."""
        peer, plan = self._peer, self._desk.plan
        modes = [mode for mode in peer.modes if not mode.drafter or mode.drafter in plan.drafters]
        outcomes = {mode: self._desk.outcome(peer, mode) for mode in modes}
        if not modes:
            return []
        try:
            threads = self._best_threads(modes[0])
        except PeerError as error:
            for outcome in outcomes.values():
                outcome.reason = str(error)
            return []
        found = []
        with ExitStack() as stack:
            for mode, outcome in outcomes.items():
                self._desk.say(f"{peer.title}, {mode.name}: choosing settings")
                try:
                    found.append(self._tried(mode, threads, stack))
                except PeerError as error:
                    outcome.reason = str(error)
        return found

    def _best_threads(self, mode: Mode) -> int:
        """The number of threads that decodes fastest."""
        counts = self._desk.plan.threads
        if len(counts) == 1:
            return counts[0]
        rates = {}
        failure = None
        for threads in counts:
            self._desk.say(f"{self._peer.title}: {threads} threads")
            try:
                with ExitStack() as stack:
                    child = self._desk.load(self._peer, mode, threads, {}, stack)
                    rates[threads] = self._rate(child, mode, {})
            except PeerError as error:
                failure = error
                self._note(mode, {"threads": threads}, reason=str(error))
            else:
                self._note(mode, {"threads": threads}, tokens_per_s=rates[threads])
        if not rates and failure is not None:
            raise failure
        return max(rates, key=lambda threads: rates[threads])

    def _tried(self, mode: Mode, threads: int, stack: ExitStack) -> Entrant:
        """The mode with its best draft length."""
        peer, lengths = self._peer, self._desk.plan.lengths
        every = [{"num_draft": n} for n in lengths] if mode.is_swept else [{}]
        found: list[tuple[float, int, dict[str, Any]]] = []
        failure = None
        for options in every:
            setting = {"threads": threads, **options}
            try:
                rate, memory = self._trial(mode, threads, options, stack)
            except PeerError as error:
                failure = error
                self._note(mode, setting, reason=str(error))
            else:
                found.append((rate, memory, options))
                self._note(mode, setting, tokens_per_s=rate)
        if not found and failure is not None:
            raise failure
        _, memory, options = max(found, key=lambda one: one[0])
        outcome = self._desk.outcome(peer, mode)
        outcome.threads, outcome.options = threads, options
        seat = f"{peer.name}-{mode.name}" if peer.has_mode_a_process else peer.name
        return Entrant(peer, mode, threads, options, seat.replace(" ", "-"), memory)

    def _trial(
        self, mode: Mode, threads: int, options: Mapping[str, Any], stack: ExitStack
    ) -> tuple[float, int]:
        """Tokens per second and resident bytes; engines that fix a setting at load are loaded."""
        with ExitStack() as own:
            if self._peer.has_mode_a_process:
                child = self._desk.load(self._peer, mode, threads, options, own)
            else:
                if self._shared is None:
                    self._shared = self._desk.load(self._peer, mode, threads, options, stack)
                child = self._shared
            try:
                return self._rate(child, mode, options), child.resident_bytes
            except PeerError:
                self._shared = None  # it may be gone: the next setting gets a new one
                raise

    def _rate(self, child: Asked, mode: Mode, options: Mapping[str, Any]) -> float:
        """Median tokens per second over the trial prompts, each after an unmeasured run of it."""
        plan = self._desk.plan
        num_tokens = min(plan.trial_tokens, plan.max_tokens)
        rates = []
        for prompt in plan.trial_prompts:
            for _ in range(2):
                run = self._desk.generate(child, mode, options, prompt, num_tokens)
            rates.append(rate_of(run))
        return median(rates)

    def _note(self, mode: Mode, setting: Mapping[str, Any], **figures: object) -> None:
        self._desk.outcome(self._peer, mode).trials.append({**setting, **figures})
