"""Lanes: threads that agree, sleep, let Python run, stay where they belong and go away."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import (
    CORES,
    Floats,
    MemoryCheckpoint,
    Row,
    Text,
    batch_of,
    chain,
    opened,
    random_checkpoint,
    require_same_bits,
    tiny_spec,
)

from forerun.backends.native import NativeBackend

pytestmark = pytest.mark.alone
TASKS = Path("/proc/self/task")
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return random_checkpoint(tiny_spec(hidden=100, ffn=75, num_layers=2), 1)


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(1).integers(0, 97, 60).tolist()


@pytest.fixture(scope="module")
def expected(checkpoint: MemoryCheckpoint, tokens: list[int]) -> Floats:
    with opened(checkpoint, isa="portable") as backend:
        return Text(backend, [0, 1]).decode(tokens)


def tasks() -> set[str]:
    return {entry.name for entry in TASKS.iterdir()}


def status(task: str, key: str) -> str:
    lines = (TASKS / task / "status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(key + ":"))


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_agree_however_often_they_meet(
    threads: int, checkpoint: MemoryCheckpoint, tokens: list[int], expected: Floats
) -> None:
    # given as many threads as there are cores, fewer and more
    rng = np.random.default_rng(threads)
    with opened(checkpoint, threads=threads) as backend:
        assert backend.num_threads == threads
        # when passes of one node, of a few and of more than fit one tile follow each other
        for _ in range(15):
            at, text = 0, Text(backend, [0, 1])
            while at < len(tokens):
                n = int(rng.choice([1, 5, 16, 17, 33, 60]))
                found = text.read(tokens[at : at + n])
                # then each has the same bits
                require_same_bits(found, expected[at : at + n], f"{threads} threads, {n} nodes")
                at += n


@two_cores
def test_two_lanes_at_once_do_not_touch_each_other(
    checkpoint: MemoryCheckpoint, tokens: list[int], expected: Floats
) -> None:
    # given two models of other weights, each on a core of its own
    other = random_checkpoint(checkpoint.spec, 2)
    with opened(other, isa="portable") as backend:
        other_expected = Text(backend, [0, 1]).decode(tokens)
    found: dict[int, list[Floats]] = {0: [], 1: []}

    def read(index: int, backend: NativeBackend) -> None:
        for _ in range(20):
            found[index].append(Text(backend, [0, 1]).decode(tokens))

    first = NativeBackend(checkpoint, cores=CORES[:1], num_blocks=2)
    second = NativeBackend(other, cores=CORES[1:2], num_blocks=2)
    # when two Python threads run them at the same time
    readers = [threading.Thread(target=read, args=(i, b)) for i, b in enumerate((first, second))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    first.close()
    second.close()
    # then each gives the bits it gives alone
    for logits in found[0]:
        require_same_bits(logits, expected, "first lane")
    for logits in found[1]:
        require_same_bits(logits, other_expected, "second lane")


# --- manners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 3])
def test_idle_lanes_sleep(threads: int, checkpoint: MemoryCheckpoint, tokens: list[int]) -> None:
    with opened(checkpoint, threads=threads) as backend:
        # given a lane that has just worked
        Text(backend, [0, 1]).read(tokens)
        # when nothing is asked of it, then it burns less than a hundredth of a core, soon
        assert any(share_burnt(0.5) < 0.01 for _ in range(20))


def share_burnt(seconds: float) -> float:
    """Cores that this process keeps busy while its main thread does nothing."""
    started, burnt = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return (time.process_time() - burnt) / (time.perf_counter() - started)


def test_control_given_a_thread_that_spins_then_a_core_is_burnt() -> None:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        assert sum(share_burnt(0.1) > 0.01 for _ in range(5)) >= 4
    finally:
        stop.set()
        spinner.join()


@two_cores
@pytest.mark.parametrize("holds", [False, True], ids=["a pass", "control"])
def test_python_runs_during_a_forward_pass(holds: bool) -> None:
    # given a pass that takes a while, on one core; and a call that lets nobody else run
    spec = tiny_spec(hidden=128, ffn=512, num_layers=4)
    with opened(random_checkpoint(spec, 1), isa="portable") as backend:
        batch = batch_of([Row([1] * 256, chain(256), 0, range(8))])
        longest_s, whole_s = longest_gap(
            (lambda: pow(3, 2_000_000)) if holds else (lambda: backend.forward(batch))
        )
    # then another Python thread never waits for most of it
    assert whole_s > 0.02
    assert (longest_s < whole_s / 2) is not holds


def longest_gap(call: Callable[[], object]) -> tuple[float, float]:
    """How long another Python thread did not run during a call at most, and the whole call.

    Both in the processor time of the calling thread, which stands still when the machine does.
    """
    clock = time.pthread_getcpuclockid(threading.get_ident())
    times, stop, runs = [], threading.Event(), threading.Event()

    def tick() -> None:
        while not stop.is_set():
            times.append(time.clock_gettime(clock))
            runs.set()

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        assert runs.wait(120)
        began_s = time.clock_gettime(clock)
        call()
        ended_s = time.clock_gettime(clock)
    finally:
        stop.set()
        ticker.join()
    seen = [began_s, *[at_s for at_s in times if began_s <= at_s <= ended_s], ended_s]
    return max(later - one for one, later in pairwise(seen)), ended_s - began_s


def test_the_calling_threads_cores_are_restored(
    checkpoint: MemoryCheckpoint, tokens: list[int]
) -> None:
    allowed = os.sched_getaffinity(0)
    with opened(checkpoint, threads=len(CORES)) as backend:
        Text(backend, [0, 1]).read(tokens)
        assert os.sched_getaffinity(0) == allowed
        # given a caller that chose a core itself
        mine = {CORES[-1]}
        os.sched_setaffinity(0, mine)
        try:
            Text(backend, [0, 1]).read(tokens)
            assert os.sched_getaffinity(0) == mine
        finally:
            os.sched_setaffinity(0, allowed)


@two_cores
def test_workers_are_pinned_and_take_no_signals(checkpoint: MemoryCheckpoint) -> None:
    before = tasks()
    with opened(checkpoint, threads=2) as backend:
        Text(backend, [0]).read([1, 2, 3])
        (worker,) = tasks() - before
        assert status(worker, "Cpus_allowed_list") == str(CORES[1])
        blocked = int(status(worker, "SigBlk"), 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        assert blocked >> (number - 1) & 1


# --- end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_gone_after_close(threads: int, checkpoint: MemoryCheckpoint) -> None:
    before = tasks()
    with opened(checkpoint, threads=threads) as backend:
        assert len(tasks() - before) == threads - 1
        Text(backend, [0]).read([1, 2, 3])
    # then close waited for them, and may be called again
    assert tasks() <= before
    backend.close()


def test_many_lanes_come_and_go(checkpoint: MemoryCheckpoint) -> None:
    before = tasks()
    for _ in range(30):
        with opened(checkpoint, threads=2, num_blocks=1):
            pass
    assert tasks() <= before


def test_logits_in_the_callers_hands_survive_close(
    checkpoint: MemoryCheckpoint, tokens: list[int], expected: Floats
) -> None:
    with opened(checkpoint) as backend:
        logits = backend.forward(batch_of([Row(tokens, chain(60), 0, [0, 1])])).logits
    own = expected[:, : logits.shape[1]]
    require_same_bits(np.array(logits), own, "after close")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_readable_error(
    checkpoint: MemoryCheckpoint, tokens: list[int], expected: Floats
) -> None:
    with opened(checkpoint, threads=2) as backend:
        Text(backend, [0, 1]).read(tokens)
        readable, writable = os.pipe()
        # when a child of fork uses and closes its parent's backend
        child = os.fork()
        if child == 0:
            answer = b"no error"
            try:
                Text(backend, [0, 1]).read(tokens)
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent must see it
                answer = str(error).encode()
            backend.close()
            os.write(writable, answer + b"; closed")
            os._exit(0)
        os.close(writable)
        ready, _, _ = select.select([readable], [], [], 120)
        message = os.read(readable, 1000).decode() if ready else "the child hangs"
        os.close(readable)
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # then it is told, without hanging, and the parent works on
        assert "does not survive fork" in message
        assert message.endswith("; closed")
        require_same_bits(Text(backend, [0, 1]).read(tokens), expected, "after fork")
