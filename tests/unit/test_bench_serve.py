"""The load tool as a command: its options, its report, its table and picture."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Script, Talk, chunk, last, scripted

from forerun.errors import BackendError, OptionError
from forerun.tools.bench_serve import read_key, run, texts_of
from forerun.tools.bench_serve_client import Outcome
from forerun.tools.bench_serve_figures import (
    Slo,
    Window,
    row_of,
)
from forerun.tools.bench_serve_load import poisson_times
from forerun.tools.bench_serve_options import LoadOptions, Point
from forerun.tools.bench_serve_show import cells_of, draw


def test_given_options_then_loads_and_fields_follow() -> None:
    options = LoadOptions(concurrency="1,4", extra_body='{"ignore_eos": true, "max_tokens": 3}')
    assert options.points() == (Point("concurrency", 1), Point("concurrency", 4))
    assert options.fields() == {"max_tokens": 3, "temperature": 0.0, "ignore_eos": True}
    assert LoadOptions(rate="0.5").points()[0].name == "0.5/s"
    assert [one.value for one in LoadOptions().points()] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rate": "1", "concurrency": "1"}, "--rate and --concurrency"),
        ({"rate": "0"}, "--rate"),
        ({"rate": "fast"}, "--rate"),
        ({"rate": "nan"}, "--rate"),
        ({"concurrency": "0"}, "--concurrency"),
        ({"concurrency": "1.5"}, "whole"),
        ({"duration_s": 0.0}, "--duration-s"),
        ({"ttft_slo": -1.0}, "--ttft-slo"),
        ({"endpoint": "edits"}, "--endpoint"),
        ({"extra_body": "[1]"}, "--extra-body"),
        ({"extra_body": "{"}, "--extra-body"),
        ({"max_tokens": 0}, "--max-tokens"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"limit": -1}, "--limit"),
        ({"check": True, "rate": "1"}, "--check"),
        ({"url": "nowhere"}, "--url"),
    ],
)
def test_given_an_option_out_of_range_then_it_is_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        run(LoadOptions(**changes))


def test_given_a_seed_then_prompts_are_mixed_the_same_way() -> None:
    one, again = (texts_of(LoadOptions(limit=12, seed=4)) for _ in range(2))
    other = texts_of(LoadOptions(limit=12, seed=5))
    assert one == again
    assert sorted(one) == sorted(other)
    assert one != other


def test_given_a_key_file_then_its_first_key_is_the_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# as the server reads it\n\n sk-1 \nsk-2\n")
    assert read_key(file) == "sk-1"
    assert read_key(None) is None
    for wrong in ("", "# no key\n", "schlüssel\n"):
        file.write_text(wrong)
        with pytest.raises(OptionError, match="--api-key-file"):
            read_key(file)


async def answering(talk: Talk) -> None:
    """A server that keeps half its drafts and echoes the prompt's last letters."""
    if talk.line.startswith("GET /v1/models"):
        await talk.begin(kind="application/json")
        await talk.send(b'{"data": [{"id": "tiny"}]}')
    elif talk.line.startswith("GET"):
        await talk.begin("404 Not Found")
    else:
        await talk.begin()
        for letter in talk.body["prompt"][-3:]:
            await talk.event(chunk(letter))
            await asyncio.sleep(0.001)
        await talk.event(last(timings={"draft_n": 4, "draft_n_accepted": 2}))
        await talk.send(b"data: [DONE]\n\n")


def moody() -> Script:
    """The same, but its text depends on how often it was asked."""
    moods: list[Talk] = []

    async def script(talk: Talk) -> None:
        if talk.body is not None:
            moods.append(talk)
            talk.body["prompt"] += str(len(moods))
        await answering(talk)

    return script


def measured(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], **changes: Any
) -> tuple[int, str]:
    """Exit status and stdout of a run against a scripted server."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"text {at}"}) + "\n" for at in range(5)))

    async def scene() -> int:
        async with scripted(script) as server:
            known = {"duration_s": 0.2, "as_json": "picture" not in changes, **changes}
            options = LoadOptions(url=server.url, prompts=prompts, **known)
            return await asyncio.to_thread(run, options)

    code = asyncio.run(scene())
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("counted_time")
def test_given_a_server_then_the_report_has_a_row_a_load_and_says_the_texts_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = measured(answering, tmp_path, capsys, concurrency="1,3", check=True)

    report = json.loads(out)
    assert code == 0
    assert report["model"] == "tiny"
    assert report["speculation"] is None  # this server says nothing of it
    assert [row["concurrency"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert row["num_ok"] == row["num_requests"] > 0
        assert row["acceptance"]["rate"] == 0.5
        assert row["tokens_per_s"] > 0
        assert row["client"]["cores"] == pytest.approx(0.5, rel=0.1)
    assert report["check"]["identical"]
    assert report["check"]["num_everywhere"] == 5


@pytest.mark.usefixtures("counted_time")
def test_given_a_server_whose_text_depends_on_its_mood_then_check_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = measured(moody(), tmp_path, capsys, concurrency="1,3", check=True)
    assert code == 1
    assert json.loads(out)["check"]["different"]


def test_given_a_rate_then_requests_leave_by_the_schedule_and_lateness_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = measured(answering, tmp_path, capsys, rate="60", seed=3)
    row = json.loads(out)["rows"][0]
    assert code == 0
    assert row["num_requests"] == len(poisson_times(60, 0.2, 3))
    assert 0 <= row["num_late"] <= row["num_requests"]


@pytest.mark.usefixtures("counted_time")
def test_given_a_picture_then_it_is_drawn_beside_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "load.png"
    code, out = measured(answering, tmp_path, capsys, concurrency="1,2", picture=picture)
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "tok/s" in out
    assert max(len(line) for line in out.split("\n")[1:5]) <= 80


def test_given_a_row_without_figures_then_cells_and_picture_have_gaps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = row_of([Outcome(0, 0.0, 0.0, 0.1, error="connect")], Window(0.0, 1.0), Slo())
    row |= {"concurrency": 2.0, "acceptance": None, "client": {"cores": 0.01, "of": 2}}
    assert cells_of(row).count("-") == 7
    draw([row], tmp_path / "load.png")
    with pytest.raises(OptionError, match="--picture"):
        draw([row], tmp_path / "load.exe")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://no..name/v1"])
def test_given_no_server_then_it_is_said_in_a_sentence(url: str) -> None:
    with pytest.raises(BackendError, match="no server answers"):
        run(LoadOptions(url=url))
