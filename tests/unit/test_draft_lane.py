"""A lane's thread: the order of jobs, what a ticket says, and what is left when the thread dies."""

from __future__ import annotations

import sys
import threading

import pytest

from forerun.drafters.lane import DraftLane
from forerun.errors import DrafterError

SOON_S = 120.0  # what is waited for comes on any machine, or the test has failed
NOW_S = 0.0


@pytest.fixture
def lane():
    lane = DraftLane("lane under test")
    yield lane
    assert lane.close(SOON_S)


def dies():
    raise SystemExit("the thread ends here")


def held(lane, gate):
    """A job that runs until `gate` opens, and has begun."""
    began = threading.Event()

    def job():
        began.set()
        assert gate.wait(SOON_S)

    ticket = lane.post(job)
    assert began.wait(SOON_S)
    return ticket


def test_given_several_jobs_then_they_run_in_order_on_one_other_thread(lane):
    seen = []

    tickets = [lane.post(lambda at=at: seen.append((at, threading.get_ident()))) for at in range(9)]

    assert tickets[-1].wait(SOON_S)
    assert [at for at, _ in seen] == list(range(9))
    assert {thread for _, thread in seen} - {threading.get_ident()} == {seen[0][1]}
    assert lane.num_starts == 1


def test_given_a_job_then_its_ticket_says_how_it_ended_and_when(lane):
    ticket = lane.post(lambda: 6 * 7)

    assert ticket.wait(SOON_S)
    assert ticket.is_done
    assert ticket.result() == 42
    assert ticket.posted_s <= ticket.began_s <= ticket.ended_s
    assert ticket.elapsed_s() >= ticket.ended_s - ticket.posted_s


class NoPatience:
    """Time that stands still, and in which no wait lasts."""

    def now_s(self):
        return 7.0

    def wait(self, done, longest_s):
        return done.is_set()


def test_given_a_clock_then_a_ticket_s_times_and_waits_are_those_of_it():
    lane, gate = DraftLane("another clock", NoPatience()), threading.Event()
    ticket = held(lane, gate)

    assert not ticket.wait(SOON_S)
    assert ticket.elapsed_s() == 0.0
    gate.set()
    assert lane.close(SOON_S)
    assert ticket.wait(NOW_S)
    assert (ticket.posted_s, ticket.began_s, ticket.ended_s) == (7.0, 7.0, 7.0)


def test_given_a_job_that_runs_then_posting_and_looking_do_not_wait(lane):
    gate = threading.Event()
    running = held(lane, gate)

    behind = lane.post(lambda: "behind")

    assert not running.is_done
    assert not behind.wait(NOW_S)
    gate.set()
    assert behind.wait(SOON_S)
    assert behind.result() == "behind"


def test_given_a_job_that_raises_then_its_ticket_raises_and_the_thread_goes_on(lane):
    broken = lane.post(lambda: 1 // 0)
    after = lane.post(lambda: "still here")

    assert after.wait(SOON_S)
    with pytest.raises(ZeroDivisionError):
        broken.result()
    assert after.result() == "still here"
    assert lane.num_starts == 1


def test_given_a_job_that_kills_its_thread_then_the_ticket_says_so_and_the_next_job_runs(lane):
    killer = lane.post(dies)

    assert killer.wait(SOON_S)
    with pytest.raises(SystemExit):
        killer.result()
    after = lane.post(lambda: "a new thread")
    assert after.wait(SOON_S)


def test_given_jobs_behind_one_that_kills_the_thread_then_they_fail_and_none_is_forgotten(lane):
    gate = threading.Event()
    held(lane, gate)
    killer, behind = lane.post(dies), [lane.post(lambda: "never") for _ in range(3)]

    gate.set()

    assert all(ticket.wait(SOON_S) for ticket in (killer, *behind))
    for ticket in behind:
        with pytest.raises(DrafterError, match="before this job"):
            ticket.result()


@pytest.fixture
def hasty():
    """Threads that take turns all the time."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty")
def test_given_a_job_posted_as_the_thread_dies_then_a_new_thread_does_it(lane):
    # who waits for the killer posts into the last moments of its thread
    for num_deaths in range(1, 301):
        assert lane.post(dies).wait(SOON_S)
        after = lane.post(lambda: "done")

        assert after.wait(SOON_S), "a job was left with nobody to do it"
        assert after.result() == "done"
        assert lane.num_starts == num_deaths + 1


def test_given_a_lane_that_never_worked_then_closing_it_is_nothing():
    lane = DraftLane("idle")

    assert lane.close(SOON_S)
    assert lane.num_starts == 0


def test_given_jobs_that_wait_then_closing_does_them_first():
    lane, done = DraftLane("closing"), []
    for at in range(5):
        lane.post(lambda at=at: done.append(at))

    assert lane.close(SOON_S)
    assert done == [0, 1, 2, 3, 4]
    assert not lane.is_alive


def test_given_a_job_that_hangs_then_closing_gives_up_in_time_and_says_so():
    lane, gate = DraftLane("hanging"), threading.Event()
    held(lane, gate)

    assert not lane.close(NOW_S)
    assert lane.is_alive  # left as it is: nobody can end another's thread
    gate.set()
    assert lane.close(SOON_S)


def test_given_a_dead_thread_then_closing_does_not_wait_for_it():
    lane = DraftLane("dead")
    assert lane.post(dies).wait(SOON_S)

    assert lane.close(SOON_S)
    assert not lane.is_alive


def test_given_a_lane_then_its_thread_keeps_no_process_alive(lane):
    named = lane.post(threading.current_thread)

    assert named.wait(SOON_S)
    assert named.result().daemon
    assert named.result().name == "lane under test"
