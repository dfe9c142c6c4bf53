"""What a person sees and does: marks on a terminal, Ctrl-C at any moment, a reader that leaves."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

pytestmark = pytest.mark.alone
Write = Callable[..., Path]
PROMPT = "def add(a, b):\n    return a + b\n\ndef add(a, b):\n"


@pytest.fixture(scope="session")
def model(tiny_checkpoint_dir: Write) -> str:
    return str(tiny_checkpoint_dir("qwen3", max_position_embeddings=131072))


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Programs that a shell starts in the background ignore Ctrl-C, and so does what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "forerun.cli", *arguments]


def test_a_closed_reader_is_no_traceback(model: str) -> None:
    with subprocess.Popen(
        command("generate", "-m", model, PROMPT, "-n", "2000", "--ignore-eos"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors
    assert process.returncode == 1


@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
def test_ctrl_c_at_any_moment_leaves_nothing(model: str, delay_s: float) -> None:
    # Python itself answers Ctrl-C until our first line runs; from there on it is our promise.
    start = "import sys; from forerun.cli import main; sys.stderr.write('!\\n'); main()"
    options = ["generate", "-m", model, PROMPT, "-n", "130000", "--ignore-eos", "-t", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", start, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "!\n"
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


DROPS = """
import os, signal, time
from forerun import cli

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def run(arguments):
    Finalized()
    time.sleep({longest_s})
    return 0

cli.run = run
{before}
cli.main()
"""


def interrupted(longest_s: float, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command whose Ctrl-C comes where exceptions are dropped, as in the midst of an import."""
    script = DROPS.format(longest_s=longest_s, before=before)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False
    )


def test_a_ctrl_c_that_nobody_could_hear_still_ends_the_command() -> None:
    done = interrupted(longest_s=50)

    assert (done.returncode, done.stderr) == (130, "")


def test_such_a_ctrl_c_is_lost_and_printed_by_python_itself() -> None:
    """The control of the test above."""
    done = interrupted(longest_s=0.1, before="cli._raise_again_what_is_dropped = lambda: None")

    assert done.returncode == 0
    assert "Exception ignored in" in done.stderr


class Terminal:
    """A program on a terminal of its own, as a user has it."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.screen, line = pty.openpty()
        self.before = termios.tcgetattr(self.screen)
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=line,
            stdout=line,
            stderr=line,
            env=os.environ | {"TERM": "xterm", "NO_COLOR": ""} | environment,
            start_new_session=True,
        )
        os.close(line)
        self.shown = ""

    def read_until(self, text: str, seconds: float = 300) -> None:
        """Collect what is shown until `text` is, or the program ends."""
        end = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < end:
            if not select.select([self.screen], [], [], 0.1)[0]:
                continue
            try:
                self.shown += os.read(self.screen, 65536).decode("utf-8", "replace")
            except OSError:  # the other side is closed
                return
        assert text in self.shown, self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(*arguments, **environment))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("environment", "mark"),
    [({}, "\x1b[32;4m"), ({"NO_COLOR": "1"}, "\x1b[4m"), ({"TERM": "dumb"}, "")],
)
def test_accepted_drafts_are_marked_on_a_terminal(
    terminal: Callable[..., Terminal], model: str, environment: dict[str, str], mark: str
) -> None:
    shown = terminal("generate", "-m", model, PROMPT * 3, "-n", "120", **environment)
    shown.read_until("tokens/s")
    if mark:
        assert mark in shown.shown
    else:
        assert "\x1b[" not in shown.shown
    assert shown.process.wait(120) == 0


def test_ctrl_c_in_chat_gives_the_terminal_back(
    terminal: Callable[..., Terminal], model: str
) -> None:
    chat = terminal("chat", "-m", model, "-n", "130000", "--ignore-eos", "-t", "1")
    chat.read_until("> ")
    os.write(chat.screen, b"hello\n")
    chat.read_until("hello\r\n")
    time.sleep(0.2)
    os.killpg(chat.process.pid, signal.SIGINT)
    assert chat.process.wait(120) == 130
    chat.read_until("\x1b[?25h")
    assert termios.tcgetattr(chat.screen) == chat.before
    assert "Traceback" not in chat.shown


def test_ctrl_d_ends_a_chat(terminal: Callable[..., Terminal], model: str) -> None:
    chat = terminal("chat", "-m", model, "-n", "4")
    chat.read_until("> ")
    os.write(chat.screen, b"\x04")
    assert chat.process.wait(120) == 0
