"""Engines that draft ahead: with a drafter in between that breaks when a test says so, and with a
verifier whose patience does not hang on a clock."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from forerun import Engine
from forerun.control.patience import Patience, Wait
from forerun.draft import Commit, Draft, Draw
from forerun.drafters.ahead import rewind, settle
from forerun.drafters.asking import foreseen
from forerun.drafters.lane import DraftLane
from forerun.drafters.lane_side import LaneSide
from forerun.drafters.overlapped import Overlapped
from forerun.drafters.plain import Plain, plain_draft
from forerun.drafters.waits import Spares
from forerun.protocols import DraftRow, Outlook
from forerun.tree import TokenTree

SOON_S = 120.0  # what is waited for comes on any machine, or the test has failed
LOOK_S = 0.002  # between two looks of who waits
AGES_S = 3600.0
THREAD = "forerun-draft"
VOCAB = 272
Fault = Callable[[Sequence[Draft], list[Draft]], list[Draft]]


class Patient(Patience):
    """Waits as long as it is told, and counts how often it was asked to wait; drafts anew after
    every miss, or never."""

    def __init__(self, longest_s: float = SOON_S, *, redrafts: bool = True) -> None:
        super().__init__()
        self.longest_s, self.redrafts = longest_s, redrafts
        self.num_waits = 0

    def wait_for(self, num_levels: int, elapsed_s: float, num_rows: int) -> Wait:
        self.num_waits += 1
        return Wait(0, self.longest_s)

    def prefers_redraft(self, other: str, num_missed: int) -> bool:
        return self.redrafts

    def longest_redraft_s(self) -> float:
        self.num_waits += 1
        return self.longest_s


class StillClock:
    """Time of a test's own: none goes by while a drafter works, however slow the machine, so that
    every wait sees its end. While it `flies` no wait lasts, and ages have passed."""

    def __init__(self) -> None:
        self._now_s, self.flies = 0.0, False

    def fly(self) -> None:
        """Let every wait end at once, in vain or not."""
        self._now_s, self.flies = self._now_s + AGES_S, True

    def stand_still(self) -> None:
        """Let every wait last again until what it waits for."""
        self.flies = False

    def now_s(self) -> float:
        return self._now_s

    def wait(self, done: threading.Event, longest_s: float | None) -> bool:
        for _ in range(int(SOON_S / LOOK_S)):
            if self.flies or done.wait(LOOK_S):
                return done.is_set()
        raise AssertionError("neither did it end, nor did the test let time go by")


class Faulty:
    """Drafts as `inner` does; what it foresees goes through `fault`, while there is one."""

    def __init__(self, inner, catch_up: Callable[[], None] = lambda: None) -> None:
        self.inner, self._catch_up = inner, catch_up
        self.fault: Fault | None = None
        self.num_left = 0  # so many more calls are faulty
        self.num_foreseen = 0

    def breaks(self, fault: Fault, num_calls: int = 1) -> None:
        """Let the next calls go wrong; one that is still under way does not."""
        self._catch_up()
        self.fault, self.num_left = fault, num_calls

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        self.num_foreseen += 1
        grown = foreseen(self.inner, rows, drafts, outlook)
        if self.fault is None or not self.num_left:
            return grown
        self.num_left -= 1
        return self.fault(drafts, grown)

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        self.inner.admit(sequence_id, prompt)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        return self.inner.propose(rows)

    def observe(self, sequence_id: int, commit: Commit) -> None:
        self.inner.observe(sequence_id, commit)

    def settle(self, sequence_id: int, commit: Commit) -> None:
        settle(self.inner, sequence_id, commit)

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        rewind(self.inner, sequence_id, tokens)

    def release(self, sequence_id: int) -> None:
        self.inner.release(sequence_id)

    def close(self) -> None:
        self.inner.close()


# --- what may go wrong ----------------------------------------------------------------------------


def raw(draft: Draft, tokens, parents, dtype=np.int32) -> Draft:
    """A draft with a tree that nobody checked."""
    tree = TokenTree.made(np.array(tokens, dtype), np.array(parents, np.int32))
    return dataclasses.replace(draft, tree=tree)


def changed(draft: Draft, grown: Draft, tokens_of) -> Draft:
    """What was grown below a draft, with other tokens."""
    num = len(draft.tree)
    tokens = np.array(grown.tree.tokens)
    return raw(grown, [*tokens[:num], *tokens_of(tokens[num:])], grown.tree.parents, np.float64)


def raises(drafts, grown):
    raise RuntimeError("the drafter is beside itself")


def killed(drafts, grown):
    raise SystemExit("the thread ends")


def not_a_number(drafts, grown):
    return [
        changed(one, two, lambda own: own * np.nan) for one, two in zip(drafts, grown, strict=True)
    ]


def _shifted(by):
    def fault(drafts, grown):
        return [
            as_int(changed(one, two, lambda own: own + by))
            for one, two in zip(drafts, grown, strict=True)
        ]

    return fault


def as_int(draft: Draft) -> Draft:
    return raw(draft, draft.tree.tokens.astype(np.int32), draft.tree.parents)


def no_tree(drafts, grown):
    return [raw(one, one.tree.tokens, np.arange(len(one.tree))) for one in grown]


def another_draft(drafts, grown):
    return [raw(one, (one.tree.tokens + 1) % VOCAB, one.tree.parents) for one in grown]


def too_few(drafts, grown):
    return grown[:-1]


def nothing(drafts, grown):
    return None


def garbage(drafts, grown):
    """Tokens that are tokens, and mean nothing."""
    rng = np.random.default_rng(len(grown[0].tree))
    return [
        Draft(
            TokenTree(
                np.array([*one.tree.tokens, *rng.permutation(VOCAB)[:20]], np.int32),
                np.array([*one.tree.parents, *[len(one.tree) - 1] * 20], np.int32),
            ),
            Draw.POINT,
        )
        for one in drafts
    ]


def overlong(drafts, grown):
    """Much more than was asked for, below a guess."""
    made = []
    for one in grown:
        num = len(one.tree)
        more = np.full(500, 65, np.int32)
        tokens = np.concatenate([one.tree.tokens, more])
        parents = np.concatenate([one.tree.parents, np.arange(num - 1, num + 499, dtype=np.int32)])
        figures = dict.fromkeys(("margins", "ranks", "scores", "expanded"))
        tree = TokenTree(tokens, parents)
        made.append(dataclasses.replace(one, tree=tree, **figures))
    return made


def figures_not_numbers(drafts, grown):
    return [
        dataclasses.replace(
            one,
            scores=np.full(len(one.tree), np.nan, np.float32),
            margins=np.full(len(one.tree), np.nan, np.float32),
        )
        for one in grown
    ]


LOUD: dict[str, Fault] = {
    "raises": raises,
    "kills its thread": killed,
    "NaN": not_a_number,
    "a larger vocabulary": _shifted(VOCAB),
    "negative tokens": _shifted(-1000),
    "no tree": no_tree,
    "another draft": another_draft,
    "too few": too_few,
    "nothing": nothing,
}
SILENT: dict[str, Fault] = {
    "garbage": garbage,
    "over-long": overlong,
    "figures that are no numbers": figures_not_numbers,
}


class Stopped:
    """Hangs until it `goes_on`; nobody's wait lasts meanwhile, and every wait does otherwise."""

    def __init__(self, clock: StillClock) -> None:
        self._clock, self._gate = clock, threading.Event()
        self.num_stops = 0

    def __call__(self, drafts, grown):
        self.num_stops += 1
        self._clock.fly()
        assert self._gate.wait(SOON_S)
        return grown

    def goes_on(self) -> None:
        """Let what stopped go on."""
        self._clock.stand_still()
        self._gate.set()


class LateSide(LaneSide):
    """A lane that answers with what was foreseen some rounds before, with its version."""

    def __init__(self, side: LaneSide, num_late: int) -> None:
        super().__init__(side._drafter, side._vocab)
        self.num_late, self.answers, self.num_late_answers = num_late, [], 0

    def foresee(self, rows, drafts, outlook, commits):
        self.answers.append(super().foresee(rows, drafts, outlook, commits))
        if len(self.answers) <= self.num_late:
            return {}
        self.num_late_answers += 1
        return self.answers[-1 - self.num_late]


# --- into an engine -------------------------------------------------------------------------------


def overlapped_of(engine: Engine) -> Overlapped:
    drafter = engine._parts.drafter._drafter
    assert isinstance(drafter, Overlapped)
    return drafter


def broken(engine: Engine) -> Faulty:
    """Put a `Faulty` between an engine's lane and its drafter, which is always done before anybody
    asks, and a patience of one's own."""
    overlapped = overlapped_of(engine)
    faulty = Faulty(overlapped._drafter, lambda: caught_up(engine))
    overlapped._drafter, overlapped._side = faulty, LaneSide(faulty, VOCAB)
    overlapped._waits = Patient()
    in_time(overlapped)
    return faulty


def that_stops(engine: Engine) -> tuple[Faulty, Stopped]:
    """The same with a fault that hangs, and time that goes by only while it does."""
    clock = StillClock()
    overlapped_of(engine)._lane = DraftLane(THREAD, clock)
    return broken(engine), Stopped(clock)


def in_time(overlapped: Overlapped) -> None:
    """Let every job end before the next draft is asked for, but where a test's clock flies."""
    propose = overlapped.propose

    def late(rows):
        last, clock = overlapped._last, overlapped._lane._clock
        is_done = last is None or last.wait(SOON_S)
        assert is_done or (isinstance(clock, StillClock) and clock.flies)
        return propose(rows)

    overlapped.propose = late


def late_by(engine: Engine, num_late: int) -> LateSide:
    """Have a lane answer some rounds late."""
    overlapped = overlapped_of(engine)
    overlapped._side = late = LateSide(overlapped._side, num_late)
    without_spares(overlapped)
    return late


def without_spares(overlapped: Overlapped) -> None:
    """Let no row that misses make do with a guess for another outcome, or with a lookup."""
    overlapped._spares = Spares(Plain())
    overlapped._spare = lambda row, _: ("none", plain_draft(row.tokens[-1]))


def caught_up(engine: Engine) -> None:
    """Wait until the lane has done everything that was posted to it."""
    assert overlapped_of(engine)._lane.post(lambda: None).wait(SOON_S)


def lane_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == THREAD]


def lane_sums(made) -> dict[str, int]:
    """Hits and misses of completions that ran together."""
    rounds = {id(one): one.lane for done in made for one in done.stats.rounds}
    names = ("num_hits", "num_wrong", "num_short", "num_late", "num_cold", "num_redrafted")
    return {name[4:]: sum(getattr(lane, name) for lane in rounds.values()) for name in names}
