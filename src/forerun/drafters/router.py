"""Router: one of several drafters for each request, chosen by what they were worth so far.

Knows counts and seconds, no token. Every drafter reads every sequence, so any of them can be asked
at any time; one of them is asked in a round, chosen before it drafts:

    look    at each in turn for a few rounds
    stay    with the one that gave most tokens a second; longer each time that it stays the best
    look    at one of the others, in turn, and decide again

The choice depends on earlier rounds only, never on what is being drafted, so any rule may follow.
Seconds differ from run to run, and with them the choice: where tokens depend on who drafted, that
is under the sampled rules, tokens a round are compared instead, or a seed would not repeat.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft
from forerun.drafters.ahead import rewind, settle
from forerun.drafters.asking import foreseen
from forerun.drafters.plain import plain_draft
from forerun.errors import CapacityError, OptionError
from forerun.protocols import Drafter, DraftRow, Outlook, ReadsFeatures
from forerun.stats import Span

LOOK = 3  # rounds of a look; the first is not counted, for it also reads what was missed
FIRST_STAY, LAST_STAY = 32, 512  # rounds with the best before the next look
_MEMORY = 0.85  # of earlier rounds a new one keeps: about the last six

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Yield:
    """Tokens that a drafter's rounds gave and what they cost, older rounds counting less."""

    num_tokens: float = 0.0
    cost: float = 0.0

    def add(self, num_tokens: int, cost: float) -> None:
        self.num_tokens = _MEMORY * self.num_tokens + num_tokens
        self.cost = _MEMORY * self.cost + cost

    @property
    def rate(self) -> float:
        return self.num_tokens / self.cost if self.cost > 0 else 0.0


class Bandit:
    """Which of `num_arms` to use next, for one request; None when all of them are dropped."""

    def __init__(self, num_arms: int) -> None:
        self._yields = {arm: _Yield() for arm in range(num_arms)}
        self._to_look = deque(range(1, num_arms))
        self._last_look = num_arms - 1
        self._best: int | None = None  # None while looking for the first time
        self._is_staying = False
        self._is_new = False
        self._stay = FIRST_STAY
        self._rounds_left = LOOK
        self.arm: int | None = 0

    @property
    def is_settled(self) -> bool:
        """Whether the next round has the present arm, whatever this one gives."""
        return self._rounds_left > 1

    def learn(self, num_tokens: int, cost: float) -> None:
        """A round of the present arm gave `num_tokens` at this cost, in any one unit."""
        if self.arm is None:
            return
        if not self._is_new:
            self._yields[self.arm].add(num_tokens, cost)
        self._is_new = False
        self._rounds_left -= 1
        if self._rounds_left == 0:
            self._move()

    def drop(self, arm: int) -> None:
        """Never use an arm again."""
        self._yields.pop(arm, None)
        if arm in self._to_look:
            self._to_look.remove(arm)
        if self.arm == arm:
            self._is_staying = False
            self._move()

    def _move(self) -> None:
        """The next look, or back to the best."""
        if not self._yields:
            self.arm = None
        elif self._to_look:
            self._go(self._to_look.popleft(), LOOK)
        elif self._is_staying and len(self._yields) > 1:
            self._is_staying = False
            self._go(self._next_look(), LOOK)
        else:
            best = max(self._yields, key=lambda arm: self._yields[arm].rate)  # the first of equals
            self._stay = min(2 * self._stay, LAST_STAY) if best == self._best else FIRST_STAY
            self._best, self._is_staying = best, True
            self._go(best, self._stay)

    def _go(self, arm: int, num_rounds: int) -> None:
        self._is_new = arm != self.arm
        self.arm, self._rounds_left = arm, num_rounds

    def _next_look(self) -> int:
        """The arm after the one looked at last, but for the best."""
        others = [arm for arm in self._yields if arm != self.arm]
        self._last_look = next((arm for arm in others if arm > self._last_look), others[0])
        return self._last_look


class Router:
    """Asks, for every request, the drafter that has served it best.

    `is_timed` compares tokens a second instead of tokens a round.

    Raises:
        OptionError: no drafters, or not as many names.
    """

    def __init__(
        self, drafters: Sequence[Drafter], names: Sequence[str], *, is_timed: bool = True
    ) -> None:
        if not drafters or len(drafters) != len(names):
            raise OptionError(
                f"a router needs at least one drafter and a name for each, found {len(drafters)}"
                f" drafters and {len(names)} names"
            )
        self._drafters = list(drafters)
        self._names = list(names)
        self._is_timed = is_timed
        self._tapping = {
            arm: one for arm, one in enumerate(drafters) if isinstance(one, ReadsFeatures)
        }
        self._tap_layers = tuple(
            sorted({layer for one in self._tapping.values() for layer in one.tap_layers})
        )
        self._bandits: dict[int, Bandit] = {}
        self._readers: dict[int, set[int]] = {}  # which drafters follow a sequence
        self._draft_s: dict[int, float] = {}  # of the proposal whose verdict is pending
        self._verdict = Span()
        self._is_pending = False

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """The layers that any of them reads."""
        return self._tap_layers

    def chosen(self, sequence_id: int) -> str | None:
        """The name of the drafter that is asked next; None when all have failed."""
        arm = self._bandits[sequence_id].arm
        return None if arm is None else self._names[arm]

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Let every drafter read the prompt.

        Raises:
            CapacityError: none of them can.
        """
        self._bandits[sequence_id] = Bandit(len(self._drafters))
        self._readers[sequence_id] = set(range(len(self._drafters)))
        self._call_all(sequence_id, "admit", lambda _, one: one.admit(sequence_id, prompt))
        if not self._readers[sequence_id]:
            raise CapacityError(f"none of {', '.join(self._names)} can draft for this prompt")

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One draft a row, each from the row's own drafter."""
        drafts = {row.sequence_id: plain_draft(row.tokens[-1]) for row in rows}
        arms = {row.sequence_id: self._bandits[row.sequence_id].arm for row in rows}
        self._draft_s = {}
        for arm, drafter in enumerate(self._drafters):
            own = [row for row in rows if arms[row.sequence_id] == arm]
            if own:
                drafts |= self._ask(arm, drafter, own)
        self._verdict, self._is_pending = Span(), True
        self._verdict.__enter__()  # left in `_learn`: what lies between is the round's other part
        return [drafts[row.sequence_id] for row in rows]

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """Each draft grown further by the row's own drafter, where it will be the one asked next.

        Seconds are hidden behind the verdict now, so tokens a round are compared from here on.
        """
        self._is_timed = False
        grown = list(drafts)
        for row in rows:
            self._draft_s.setdefault(row.sequence_id, 0.0)
        for arm, drafter in enumerate(self._drafters):
            bandits = [self._bandits[row.sequence_id] for row in rows]
            own = [at for at, one in enumerate(bandits) if one.arm == arm and one.is_settled]
            if own:
                self._grow_on(arm, drafter, rows, outlook, own, grown)
        return grown

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Tell every drafter what was kept, and learn what the one asked was worth."""
        self._learn(sequence_id, commit)
        self._call_all(
            sequence_id,
            "observe",
            lambda arm, one: one.observe(sequence_id, self._told(arm, commit)),
        )

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Hand everyone who reads features the layers of its own."""

        def hand(arm: int, _: Drafter) -> None:
            if arm in self._tapping:
                self._tapping[arm].absorb(sequence_id, self._own_layers(arm, features))

        self._call_all(sequence_id, "absorb", hand)

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """Tell every drafter what was kept for now, and learn what the one asked was worth."""
        self._learn(sequence_id, commit)
        self._call_all(sequence_id, "settle", lambda _, one: settle(one, sequence_id, commit))

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Take every drafter back."""
        self._call_all(sequence_id, "rewind", lambda _, one: rewind(one, sequence_id, tokens))

    def release(self, sequence_id: int) -> None:
        """Let every drafter forget."""
        self._call_all(sequence_id, "release", lambda _, one: one.release(sequence_id))
        self._bandits.pop(sequence_id, None)
        self._readers.pop(sequence_id, None)
        self._draft_s.pop(sequence_id, None)

    def close(self) -> None:
        """Close every drafter, also behind one that fails to.

        Raises:
            Exception: what the first of them raised, once all are closed.
        """
        errors = []
        for drafter in self._drafters:
            try:
                drafter.close()
            except Exception as error:  # noqa: BLE001  a drafter may raise anything
                errors.append(error)
        if errors:
            raise errors[0]

    def _ask(self, arm: int, drafter: Drafter, rows: Sequence[DraftRow]) -> dict[int, Draft]:
        """The drafts of one drafter's rows; nothing when it fails, and it is dropped for them."""
        span = Span()
        try:
            with span:
                made = drafter.propose(rows)
            drafts = {row.sequence_id: one for row, one in zip(rows, made, strict=True)}
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            for row in rows:
                self._drop(row.sequence_id, arm, "propose", error)
            return {}
        self._draft_s |= dict.fromkeys(drafts, span.seconds)
        return drafts

    def _grow_on(
        self,
        arm: int,
        drafter: Drafter,
        rows: Sequence[DraftRow],
        outlook: Outlook,
        own: list[int],
        grown: list[Draft],
    ) -> None:
        """Grow on the drafts of one drafter's rows; it is dropped for them when it fails."""
        part = replace(
            outlook,
            exits=[outlook.exits[at] for at in own],
            most=outlook.most[own],
            depths=outlook.depths[own],
        )
        asked = [rows[at] for at in own]
        try:
            made = foreseen(drafter, asked, [grown[at] for at in own], part)
            found = dict(zip(own, made, strict=True))
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            for row in asked:
                self._drop(row.sequence_id, arm, "foresee", error)
            return
        for at, draft in found.items():
            grown[at] = draft

    def _learn(self, sequence_id: int, commit: Commit) -> None:
        """The first verdict after a proposal says what it was worth; later ones repeat it."""
        if self._is_pending:
            self._verdict.__exit__(None, None, None)
            self._is_pending = False
        draft_s = self._draft_s.pop(sequence_id, None)
        if draft_s is not None:
            cost = draft_s + self._verdict.seconds if self._is_timed else 1.0
            self._bandits[sequence_id].learn(len(commit.tokens), cost)

    def _told(self, arm: int, commit: Commit) -> Commit:
        """A commit with the layers that a drafter reads."""
        if commit.features is None or arm not in self._tapping:
            return commit
        return Commit(commit.tokens, self._own_layers(arm, commit.features))

    def _own_layers(self, arm: int, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The columns of a drafter's own layers, in its order."""
        own, num = self._tapping[arm].tap_layers, len(self._tap_layers)
        if own == self._tap_layers:
            return features
        layers = features.reshape(len(features), num, features.shape[1] // num)
        wanted = layers[:, [self._tap_layers.index(layer) for layer in own]]
        return np.ascontiguousarray(wanted.reshape(len(features), -1))

    def _call_all(self, sequence_id: int, verb: str, call: Callable[[int, Drafter], None]) -> None:
        for arm in sorted(self._readers.get(sequence_id, ())):
            try:
                call(arm, self._drafters[arm])
            except Exception as error:  # noqa: BLE001  a drafter may raise anything
                self._drop(sequence_id, arm, verb, error)

    def _drop(self, sequence_id: int, arm: int, verb: str, error: Exception) -> None:
        """Go on without a drafter in one sequence; what it holds of it is given back."""
        _log.info(
            "%s is not asked again for sequence %d, its %s failed (%s: %s)",
            self._names[arm], sequence_id, verb, type(error).__name__, error,
        )  # fmt: skip
        self._readers[sequence_id].discard(arm)
        self._bandits[sequence_id].drop(arm)
        if verb != "release":
            try:
                self._drafters[arm].release(sequence_id)
            except Exception as second:  # noqa: BLE001  nor may it fail on its way out
                _log.info("%s could not let go of it either (%s)", self._names[arm], second)
