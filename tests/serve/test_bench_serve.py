"""The load tool against the real server: what it says is what the server counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forerun import Engine
from forerun.engine.service import ServiceLimits
from forerun.errors import BackendError
from forerun.serve.keys import read_keys
from forerun.tools.bench_serve import run
from forerun.tools.bench_serve_drafts import Drafts, drafts_of_metrics
from forerun.tools.bench_serve_options import LoadOptions

from .live import MODEL, Live, serving

PROMPTS = ("abcabcabcabcabc", "def add(a, b):", "one two one two one two", "x = 1\nx = 1\n")
NUM_TOKENS = 16


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in PROMPTS))
    return file


def report_of(
    server: Live, prompts: Path, capsys: pytest.CaptureFixture[str], **changes: Any
) -> tuple[int, dict[str, Any]]:
    """Exit status and report of a run of half a second a load."""
    known: dict[str, Any] = {
        "url": f"{server.address}/v1", "prompts": prompts, "max_tokens": NUM_TOKENS,
        "duration_s": 0.5, "as_json": True, "extra_body": '{"ignore_eos": true}',
    }  # fmt: skip
    code = run(LoadOptions(**{**known, **changes}))
    return code, json.loads(capsys.readouterr().out)


def drafts_now(server: Live) -> Drafts:
    with server.http() as http:
        found = drafts_of_metrics(http.get("/metrics").text)
    assert found is not None
    return found


@pytest.mark.usefixtures("counted_time")
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_given_the_server_then_every_figure_is_there_and_texts_do_not_depend_on_load(
    server: Live, prompts: Path, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    code, report = report_of(
        server, prompts, capsys, endpoint=endpoint, concurrency="1,4", check=True,
        temperature=0.7, ttft_slo=30.0, itl_slo=30.0,
    )  # fmt: skip

    assert code == 0
    assert report["model"] == MODEL
    assert report["speculation"]["drafter"] == "lookup"
    assert report["check"]["identical"]
    assert report["check"]["num_everywhere"] == len(PROMPTS)
    for row in report["rows"]:
        assert row["errors"] == {}
        assert row["num_tokens"] == NUM_TOKENS * row["num_ok"] > 0
        assert row["num_prompt_tokens"] > 0
        assert row["goodput"]["share"] == 1.0
        assert row["acceptance"]["source"] == "answers"
        assert row["ttft_s"]["p50"] > 0
        assert row["tokens_per_s"] > 0


@pytest.mark.usefixtures("counted_time")
def test_given_a_run_then_drafts_in_answers_are_those_in_the_metrics(
    server: Live, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given
    before = drafts_now(server)
    # When
    _, report = report_of(server, prompts, capsys, concurrency="4")
    # Then: metrics have the one request more that warms the server up.
    told, counted = report["rows"][0]["acceptance"], drafts_now(server) - before
    num_unmeasured = counted.num_draft_tokens - told["num_draft_tokens"]
    assert told["num_draft_tokens"] > 0
    assert 0 <= num_unmeasured <= 4 * NUM_TOKENS


def test_given_arrivals_at_a_rate_then_they_are_served(
    server: Live, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = report_of(server, prompts, capsys, rate="20", seed=1)
    row = report["rows"][0]
    assert code == 0
    assert row["num_ok"] == row["num_requests"] > 0


def test_given_a_server_with_keys_then_its_own_file_of_them_lets_the_load_in(
    spare_engine: Engine, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Given: a file as `forerun serve` reads it.
    keys, other = tmp_path / "keys", tmp_path / "other"
    keys.write_text("# two users\nsk-of-the-first-user\nsk-of-the-second-user\n")
    other.write_text("sk-of-nobody-at-all\n")
    with serving(spare_engine, key_hashes=read_keys(keys)) as guarded:
        # When
        code, _ = report_of(guarded, prompts, capsys, concurrency="1", api_key_file=keys)
        # Then, and without the key the sentence names it, not a model that is missing.
        assert code == 0
        for file, words in ((None, "an API key"), (other, "another API key")):
            with pytest.raises(BackendError, match=f"{words}.*--api-key-file"):
                report_of(guarded, prompts, capsys, concurrency="1", api_key_file=file)


def test_given_fields_that_the_server_refuses_then_nothing_is_measured(
    server: Live, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match="suffix"):
        report_of(server, prompts, capsys, extra_body='{"suffix": "x"}')


@pytest.mark.usefixtures("counted_time")
def test_given_speculation_off_then_nothing_was_drafted(
    server: Live, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = '{"speculation": "off", "ignore_eos": true}'
    _, report = report_of(server, prompts, capsys, concurrency="2", extra_body=extra)
    assert report["rows"][0]["acceptance"]["num_draft_tokens"] == 0
    assert report["rows"][0]["acceptance"]["drafted_per_step"] == 0.0


def test_given_more_than_fits_then_refusals_are_counted_and_goodput_is_less_than_all(
    chat_model: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given: one request at a time, one that waits, and many that come whatever is answered.
    limits = ServiceLimits(max_waiting=1, max_rows=1)
    with (
        Engine(chat_model, threads=1, kv_positions=2048) as engine,
        serving(engine, limits) as small,
    ):
        # When
        code, report = report_of(small, prompts, capsys, rate="400", max_tokens=64, ttft_slo=30.0)
    # Then
    row = report["rows"][0]
    assert code == 0
    assert row["errors"].keys() == {"http_503"}
    assert row["errors"]["http_503"] + row["num_ok"] == row["num_requests"]
    assert 0 < row["num_ok"] < row["num_requests"]
    assert row["goodput"]["share"] == row["num_ok"] / row["num_requests"]
    assert "http_503" in report["errors"]
