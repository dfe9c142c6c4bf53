"""Long prompts are read beside the rounds of others, a little at a time and in turn."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from engine.service_parts import Listener, prompt_of
from forerun import SamplingParams
from forerun.engine.queue import LONGEST_TAIL, SHARED_CHUNK
from forerun.engine.reading import Reader
from forerun.engine.service import Gained, Job, Service

LONG = 1500


@pytest.fixture(scope="module")
def long_dir(tiny_checkpoint_dir):
    return tiny_checkpoint_dir("qwen3", 0, max_position_embeddings=2048)


class Counting:
    """A target that notes the nodes of every pass, and whether logits were wanted."""

    def __init__(self, target, notes):
        self._target = target
        self._notes = notes

    def __getattr__(self, name):
        return getattr(self._target, name)

    def forward(self, batch):
        is_round = len(batch.logit_nodes) > 0
        self._notes.append(("round" if is_round else "chunk", len(batch.token_ids)))
        return self._target.forward(batch)


@pytest.fixture
def counted(open_engine, long_dir):
    """An engine, and the notes of its passes and events."""
    notes = []
    engine = open_engine("lookup", model=long_dir, kv_positions=16384, threads=1)
    target = Counting(engine._parts.target, notes)
    engine._parts = dataclasses.replace(engine._parts, target=target)
    return engine, notes


def endless(length, seed, max_tokens):
    return Job(
        prompt_of(length, seed),
        SamplingParams(
            temperature=1.2, seed=seed, max_tokens=max_tokens, ignore_eos=True, logit_bias={7: 2.0}
        ),
    )


def noting(notes, name, num_events=0, at_event=None):
    """A listener that writes into the notes, and does something at its n-th event."""

    def heard(num):
        notes.append((name, type(listener.events[-1])))
        if at_event is not None and num == num_events:
            at_event()

    listener = Listener(heard)
    return listener


def test_given_a_long_prompt_beside_a_running_row_then_no_round_of_that_row_is_left_out(counted):
    chunks, stalls = read_beside(counted)
    assert len(chunks) >= (LONG - LONGEST_TAIL) // SHARED_CHUNK
    assert max(chunks) <= SHARED_CHUNK
    assert stalls == 0


def read_beside(counted):
    """A long prompt sent while another row runs: sizes of its chunks, and how many came without a
    round of the early row between them and the one before."""
    engine, notes = counted
    with Service(engine) as service:
        late = noting(notes, "late")

        def send():
            notes.append(("late", None))
            service.submit(endless(LONG, 2, 3), late)

        early = noting(notes, "early", 4, send)
        service.submit(endless(5, 1, 60), early)
        assert early.completion.finish_reason == late.completion.finish_reason == "length"

    between = notes[notes.index(("late", None)) : notes.index(("late", Gained))]
    places = [at for at, note in enumerate(between) if note[0] == "chunk"]
    stalls = [("early", Gained) not in between[one:after] for one, after in pairwise(places)]
    return [between[at][1] for at in places], sum(stalls)


def test_given_prompts_read_in_one_go_then_the_count_of_rounds_sees_it(counted, monkeypatch):
    monkeypatch.setattr("forerun.engine.queue.SHARED_CHUNK", 1 << 20)
    monkeypatch.setattr(Reader, "read", greedily(Reader.read))
    chunks, stalls = read_beside(counted)
    assert max(chunks) > SHARED_CHUNK
    assert stalls > 0


def greedily(read):
    """Reading that does not let go of a prompt before it is read."""

    def whole(self, row, most):
        return sum(iter(lambda: read(self, row, most), 0))

    return whole


def test_given_two_long_prompts_then_they_are_read_in_turn(counted):
    engine, notes = counted
    with Service(engine) as service:
        pair = [noting(notes, "one"), noting(notes, "two")]

        def send():
            for seed, listener in enumerate(pair):
                service.submit(endless(LONG, seed, 3), listener)

        early = noting(notes, "early", 3, send)
        service.submit(endless(5, 9, 90), early)
        assert [listener.completion.finish_reason for listener in pair] == ["length"] * 2

    firsts = [notes.index((name, Gained)) for name in ("one", "two")]
    rounds_apart = [note for note in notes[min(firsts) : max(firsts)] if note[0] == "round"]
    assert len(rounds_apart) <= 3, "one of two equal prompts waited for the whole of the other"


def test_given_short_prompts_that_keep_coming_then_a_long_one_is_read_all_the_same(counted):
    engine, notes = counted
    with Service(engine) as service:
        late = noting(notes, "late")
        num_left = [60]

        def more():
            if num_left[0] and not late.ended.is_set():
                num_left[0] -= 1
                submit()

        def submit():
            service.submit(endless(100, num_left[0], 2), noting(notes, "short", 3, more))

        for _ in range(3):
            submit()
        service.submit(endless(LONG, 5, 2), late)
        assert late.completion.finish_reason == "length"
        assert num_left[0] > 0, "it waited for all of them"
        assert service.drain(60)


def test_given_a_row_that_runs_then_a_burst_of_prompts_delays_it_by_a_bounded_pass(counted):
    engine, notes = counted
    with Service(engine) as service:
        burst = [Listener() for _ in range(12)]

        def send():
            for seed, listener in enumerate(burst):
                service.submit(endless(90, seed, 3), listener)

        early = noting(notes, "early", 3, send)
        service.submit(endless(5, 1, 40), early)
        assert early.completion.finish_reason == "length"
        assert all(one.completion.finish_reason == "length" for one in burst)

    gains = [at for at, note in enumerate(notes) if note[0] == "early"]
    for one, after in pairwise(gains):
        read = sum(size for kind, size in notes[one:after] if kind == "chunk")
        assert read <= SHARED_CHUNK
    assert max(size for kind, size in notes if kind == "round") <= LONGEST_TAIL + 13 * 13


def test_given_nobody_waits_then_a_prompt_is_read_in_large_chunks(counted):
    engine, notes = counted
    with Service(engine) as service:
        only = noting(notes, "only")
        service.submit(endless(LONG, 1, 2), only)
        assert only.completion.finish_reason == "length"

    sizes = [size for kind, size in notes if kind == "chunk"]
    assert max(sizes) == 256
