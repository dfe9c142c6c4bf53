"""Requests for a service, who listens to them, and a play that sends them at odd moments."""

from __future__ import annotations

import dataclasses
import random
import threading

from forerun import SamplingParams
from forerun.engine.service import Began, Ended, Gained, Job

FEW = (36, 37, 65, 68)
PATIENCE_S = 300.0
POISON = 250  # a token that broken targets cannot take
SAMPLING = (
    {},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.8, "top_k": 40, "min_p": 0.02},
    {"temperature": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5, "logprobs": 2},
    {"temperature": 1.3, "allowed_tokens": FEW, "stop": ("AD", "%%")},
    {"temperature": 0.8, "logit_bias": {65: 4.0, 256: -100.0}},
    {"temperature": 1.0, "choice": 3, "stop_token_ids": tuple(range(0, 250, 31))},
)
LENGTHS = (1, 5, 31, 33, 64, 100, 150, 300)


def prompt_of(length: int, seed: int) -> tuple[int, ...]:
    """Ids that repeat after a while, so that there is something to look up."""
    rng = random.Random(seed)
    period = [rng.randrange(10, 90) for _ in range(min(length, 17))]
    return tuple(period[at % len(period)] for at in range(length))


def jobs(num: int = 24, seed: int = 0, **changes) -> list[Job]:
    """Requests of every length and every way to sample."""
    rng = random.Random(seed)
    return [
        Job(
            prompt_of(rng.choice(LENGTHS), at),
            SamplingParams(
                seed=at, max_tokens=rng.randrange(1, 25), **SAMPLING[at % len(SAMPLING)]
            ),
            **changes,
        )
        for at in range(num)
    ]


class Listener:
    """Keeps what it is told; `at_event` is called with the number of events so far."""

    def __init__(self, at_event=None) -> None:
        self.events = []
        self.ended = threading.Event()
        self._at_event = at_event

    def __call__(self, event) -> None:
        assert not self.ended.is_set(), "an event after the last one"
        self.events.append(event)
        if isinstance(event, Ended):
            self.ended.set()
        if self._at_event is not None:
            self._at_event(len(self.events))

    @property
    def completion(self):
        assert self.ended.wait(PATIENCE_S), "the last event did not come"
        return self.events[-1].completion

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What its pieces said, all together."""
        gained = [event for event in self.events if isinstance(event, Gained)]
        return tuple(token for event in gained for token in event.piece.token_ids)

    def is_in_order(self) -> bool:
        """Began at most once and first, Ended once and last; both say the same."""
        completion = self.completion
        kinds = [type(event) for event in self.events]
        began = [Began] if Began in kinds else []
        gained = [Gained] * (len(kinds) - len(began) - 1)
        texts = [event.piece.text for event in self.events if isinstance(event, Gained)]
        says_same = self.token_ids == completion.token_ids and "".join(texts) == completion.text
        return kinds == [*began, *gained, Ended] and says_same


def outcome(completion):
    """What a user sees of a completion."""
    return (
        completion.token_ids, completion.text, completion.finish_reason, completion.seed,
        completion.logprobs,
    )  # fmt: skip


def alone(engine, asked):
    """What each request comes to by itself."""
    return [outcome(engine.generate(list(job.prompt), job.params)[0]) for job in asked]


def played(service, asked, seed=0, share_cancelled=0.0):
    """All requests, each sent while others are somewhere in the middle: their listeners.

    The first few come at once, each later one when some earlier one hears its n-th event; so it is
    with cancelling a share of them.
    """
    rng = random.Random(seed)
    listeners: list[Listener] = []
    handles, rest, lock = {}, list(asked), threading.Lock()

    def send():
        with lock:
            if not rest:
                return
            job, place = rest.pop(0), len(listeners)
            at_event, is_cancelled = rng.randrange(1, 6), rng.random() < share_cancelled

            def heard(num_events):
                if num_events == at_event or isinstance(listeners[place].events[-1], Ended):
                    send()
                if num_events == at_event and is_cancelled:
                    handles[place].cancel()

            listeners.append(Listener(heard))
            handles[place] = service.submit(job, listeners[place])

    for _ in range(5):
        send()
    while len(listeners) < len(asked) or not all(one.ended.wait(PATIENCE_S) for one in listeners):
        assert listeners[-1].ended.wait(PATIENCE_S)
        send()
    return listeners


# --- targets with something around them ---------------------------------------------------------


class Around:
    """A target with something around it."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)


class Held(Around):
    """A target whose passes wait until they are let go, are counted, and shown to `on_pass`."""

    def __init__(self, target):
        super().__init__(target)
        self.gate = threading.Event()
        self.num_passes = 0
        self.on_pass = lambda _: None

    def forward(self, batch):
        assert self.gate.wait(PATIENCE_S)
        self.num_passes += 1
        self.on_pass(batch)
        return self._target.forward(batch)


def around(engine, wrap):
    target = wrap(engine._parts.target)
    engine._parts = dataclasses.replace(engine._parts, target=target)
    return target


def is_whole(engine):
    return engine._parts.slots.num_free == engine._parts.slots.num_blocks


def endless(num=1, seed=0, max_tokens=200):
    params = SamplingParams(
        temperature=1.1,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=True,
        logit_bias={POISON: -100.0},
    )
    return Job(prompt_of(num, seed), params)
