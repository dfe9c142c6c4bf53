"""The document says what bodies may be; thousands made from it, good and bad, meet no failure."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from forerun import Engine
from forerun.engine.service import Service

from .live import Live, serving
from .test_reliability import is_idle, until

if find_spec("schemathesis") is None:
    pytest.skip("schemathesis is not installed", allow_module_level=True)

SEED, LONGEST_S = 7, 1100.0


@pytest.fixture(scope="module")
def brief(spare_engine: Engine) -> Iterator[Live]:
    """A server whose answers are short where a request does not say how long."""
    with serving(spare_engine, default_tokens=4) as live:
        yield live


def cases_against(live: Live, directory: Path, num_examples: int) -> tuple[int, int, str]:
    """Exit status, number of cases and report of the tool as anybody runs it."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{live.address}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--phases", "fuzzing"]
    command += ["--max-examples", str(num_examples), "--seed", str(SEED), "--no-color"]
    command += ["--request-timeout", "300", "--continue-on-failure", "--warnings", "off"]
    command += ["--suppress-health-check", "all", "--generation-database", "none"]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    found = re.search(r"([\d,]+) generated", done.stdout)
    num_cases = int(found[1].replace(",", "")) if found else 0
    return done.returncode, num_cases, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_given_bodies_made_from_the_document_then_none_is_answered_with_a_failure(
    brief: Live, tmp_path: Path
) -> None:
    status, num_cases, report = cases_against(brief, tmp_path, 360)

    assert status == 0, report
    assert num_cases >= 2000, report
    until(lambda: is_idle(brief))
    load = brief.service.load()
    assert load.num_free_blocks == load.num_blocks


def test_given_a_server_that_fails_then_the_tool_says_so(
    brief: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""

    def broken(self: Service, job: Any, listener: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(Service, "submit", broken)

    status, _, report = cases_against(brief, tmp_path, 3)

    assert status == 1
    assert "Server error" in report
