"""The benchmark against other engines: its protocol, its turns and its figures, on fake drivers."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

SOON_S = 120.0  # what is waited for comes on any machine, or the test has failed
HANGS_S = 10.0  # what is asked of a fake takes no time, or for ever
PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
FAKE = """
import os, sys
sys.path.insert(0, {drivers!r})
import protocol
from protocol import Stopwatch, serve

class Time:  # goes by where the fake engine says so: a busy machine changes no figure
    now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

time = protocol.time = Time()

class Fake:
    def load(self, setting):
        self.model = setting.model.name
        print("engines print what they like")
        if setting.mode == "refuses":
            raise ValueError("this engine refuses")
        return {{"versions": {{"fake": "1"}}}}

    def generate(self, mode, options, prompt, max_tokens):
        if mode == "crashes" or (mode == "crashes later" and len(prompt) == 3):
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(7)
        if mode == "hangs":
            os.system("sleep 3600")
        watch = Stopwatch()
        time.sleep(0.002)
        watch.add([1])
        while watch.add([7 if mode == "differs" else 2] * options.get("num_draft", 1)) < max_tokens:
            time.sleep(0.001)
        return watch.result(max_tokens - 1 if mode == "stops early" else max_tokens)

    def forward(self, num_tokens, context):
        raise NotImplementedError("no such call")

    def floor(self, context):
        return 0.0005

serve(Fake())
"""


@pytest.fixture(scope="module", autouse=True)
def peers_on_the_path():
    sys.path.insert(0, str(PEERS))
    yield
    sys.path.remove(str(PEERS))


@pytest.fixture
def opened(tmp_path):
    """A function that starts fake drivers, and those it started."""
    from child import Child

    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE.format(drivers=str(PEERS / "drivers"))))
    children = []

    def open_child(peer, seat, threads):
        log = tmp_path / f"{len(children)}.log"
        children.append(Child([sys.executable, str(script)], {}, log))
        return children[-1]

    open_child.children = children
    yield open_child
    for child in children:
        child.close()


def load(mode="plain"):
    places = {"model": "model", "drafter": None, "drafters": {}, "workspace": "."}
    return {"do": "load", **places, "threads": 1, "context": 64, "mode": mode, "options": {}}


def generate(mode="plain", max_tokens=4):
    return {
        "do": "generate",
        "mode": mode,
        "options": {},
        "prompt": [1],
        "max_tokens": max_tokens,
    }


def test_given_a_driver_that_prints_then_its_answers_are_still_understood(opened):
    child = opened(None, "", 1)

    assert child.ask(load(), SOON_S)["versions"] == {"fake": "1"}
    answer = child.ask(generate(), SOON_S)

    assert answer["token_ids"] == [1, 2, 2, 2]
    assert answer["num_first"] == 1
    assert answer["first_s"] == pytest.approx(0.002)
    assert answer["rest_s"] == pytest.approx(0.002)


def test_given_an_error_in_a_driver_then_it_is_quoted_and_the_driver_lives_on(opened):
    from environments import PeerError

    child = opened(None, "", 1)

    with pytest.raises(PeerError, match="this engine refuses"):
        child.ask(load("refuses"), SOON_S)
    assert child.ask(load(), SOON_S)["versions"] == {"fake": "1"}


def test_given_a_driver_that_crashes_then_its_last_words_are_the_reason(opened):
    from environments import PeerError

    child = opened(None, "", 1)
    child.ask(load(), SOON_S)

    with pytest.raises(PeerError, match="its process ended: out of luck"):
        child.ask(generate("crashes"), SOON_S)
    with pytest.raises(PeerError, match="ended"):
        child.ask(generate(), SOON_S)


def test_given_a_driver_that_hangs_then_it_is_ended_with_all_it_started(opened):
    from environments import PeerError

    child = opened(None, "", 1)
    child.ask(load(), SOON_S)

    with pytest.raises(PeerError, match=r"no answer to `generate` within 0\.5 s"):
        child.ask(generate("hangs"), 0.5)

    assert is_gone(child)


def is_gone(child):
    """Whether no process of the child's group runs any more, after a while to die in."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        if child._process.pid not in set(running_groups()):
            return True
        time.sleep(0.05)
    return False


def running_groups():
    """Process group of everything that runs; the dead whom nobody has buried yet do not count."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                yield int(group)


@pytest.fixture
def plan(tmp_path):
    from entrants import Plan

    return Plan(
        model=tmp_path / "model",
        drafters={},
        made=tmp_path,
        prompts=[[1], [1, 2], [1, 2, 3]],
        max_tokens=8,
        repeat=2,
        context=64,
        threads=[1, 2],
        lengths=[1, 4],
        load_timeout_s=SOON_S,
        timeout_s=HANGS_S,
        idle_look_s=0.05,
    )


def engine(name, *modes):
    from catalogue import PLAIN, Mode, Peer

    others = tuple(Mode(mode, is_swept=mode == "drafts") for mode in modes)
    return Peer(name, name, "fake.py", (), (PLAIN, *others))


def test_given_engines_that_fail_in_every_way_then_the_others_are_measured(opened, plan):
    from race import Race
    from report import rows_of

    race = Race(plan, opened, lambda _: None)
    bad = ("refuses", "crashes later", "hangs", "stops early")
    peers = [engine("good", "drafts", "differs"), *(engine(mode, mode) for mode in bad)]

    race.run(engine("forerun"), peers)
    rows = {(row["engine"], row["mode"]): row for row in rows_of(race.outcomes)}

    for name in ("forerun", "good"):
        assert rows[name, "plain"]["num_runs"] == plan.repeat * len(plan.prompts)
        assert rows[name, "plain"]["equal_tokens"] == 1
        low, high = rows[name, "plain"]["ratio_ci95"]
        assert low <= rows[name, "plain"]["ratio_to_forerun_plain"] <= high
    assert rows["forerun", "plain"]["ratio_to_forerun_plain"] == 1
    assert rows["good", "differs"]["equal_tokens"] == pytest.approx(1 / 8)
    assert rows["good", "drafts"]["options"] == {"num_draft": 4}
    assert rows["good", "drafts"]["ratio_to_forerun_plain"] > 1.5
    assert "process ended" in rows["crashes later", "crashes later"]["reason"]
    assert "no answer" in rows["hangs", "hangs"]["reason"]
    assert "wrote 7 tokens" in rows["stops early", "stops early"]["reason"]
    assert race.floors_s == [0.0005] * 6
    assert all(is_gone(child) for child in opened.children)


def test_given_little_memory_then_engines_race_in_groups_and_forerun_in_each(opened, plan):
    from race import Race

    race = Race(replace(plan, memory_bytes=1, threads=[1]), opened, lambda _: None)

    race.run(engine("forerun"), [engine("one"), engine("other")])

    groups = {name: {key[0] for key in out.runs} for (name, _), out in race.outcomes.items()}
    assert groups == {"forerun": {0, 1}, "one": {0}, "other": {1}}


def test_given_ctrl_c_in_the_middle_then_no_process_is_left(opened, plan):
    from race import Race

    def interrupt(text):
        if text.startswith("repeat 2"):
            raise KeyboardInterrupt

    race = Race(plan, opened, interrupt)

    with pytest.raises(KeyboardInterrupt):
        race.run(engine("forerun"), [engine("good")])

    assert opened.children
    assert all(is_gone(child) for child in opened.children)


def test_given_a_report_then_failures_are_rows_that_say_why(opened, plan, tmp_path):
    from race import Race
    from report import rows_of, show
    from rich.console import Console

    race = Race(plan, opened, lambda _: None)
    race.run(engine("forerun"), [engine("broken", "refuses", "crashes")])
    report = {
        "model": "model",
        "num_prompts": 3,
        "max_tokens": 8,
        "machine": "a machine",
        "date": "2026-01-01",
        "floor_tokens_per_s": 2000.0,
        "rows": json.loads(json.dumps(rows_of(race.outcomes))),
    }

    with (tmp_path / "table").open("w+") as file:
        show(report, Console(file=file, width=200))
        file.seek(0)
        text = file.read()

    assert "broken, crashes did not run: its process ended" in text
    assert "floor of plain decoding: 2000.0 tokens/s" in text
