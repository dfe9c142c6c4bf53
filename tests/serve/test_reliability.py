"""What goes wrong around a request stays with it: leaving, waiting, failing, ending."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest

from forerun import Engine
from forerun.engine.service import Service, ServiceLimits
from forerun.errors import BackendError
from forerun.serve import wire

from .live import MODEL, Live, serving

LONG = {"prompt": "abcabc", "max_tokens": 30_000, "ignore_eos": True, "temperature": 1.5}


def until(holds: Callable[[], bool], longest_s: float = 120.0) -> None:
    """Wait for something that happens on another thread."""
    ends_s = time.monotonic() + longest_s
    while not holds():
        assert time.monotonic() < ends_s, "it did not happen"
        time.sleep(0.002)


def is_idle(server: Live) -> bool:
    load = server.service.load()
    return load.num_running == load.num_waiting == 0


def num_cancelled(server: Live) -> int:
    return server.service.load().num_requests.get("cancelled", 0)


@contextmanager
def raw_request(server: Live, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request on a connection that is closed at the end of the block."""
    host, port = server.address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + data)
        yield connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_given_a_client_that_leaves_then_its_slots_come_back(
    server: Live, stream: bool, n: int
) -> None:
    until(lambda: is_idle(server))
    before, free = num_cancelled(server), server.service.load().num_free_blocks

    with raw_request(server, "/v1/completions", LONG | {"stream": stream, "n": n}):
        until(lambda: server.service.load().num_running == n)

    until(lambda: num_cancelled(server) == before + n)
    until(lambda: is_idle(server))
    assert server.service.load().num_free_blocks == free


def test_given_nobody_watched_then_the_request_of_who_left_would_run_on(
    spare_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""

    async def never(receive: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(wire, "_gone", never)
    with serving(spare_engine) as server:
        with raw_request(server, "/v1/completions", LONG):
            until(lambda: server.service.load().num_running == 1)
        made = server.service.load().num_generated_tokens
        until(lambda: server.service.load().num_generated_tokens > made + 300)

        assert num_cancelled(server) == 0
        server.service.close()


def test_given_a_client_that_leaves_the_queue_then_it_is_never_served(spare_engine: Engine) -> None:
    with serving(spare_engine, ServiceLimits(max_rows=1)) as server:
        with raw_request(server, "/v1/completions", LONG):
            until(lambda: server.service.load().num_running == 1)
            with raw_request(server, "/v1/completions", LONG):
                until(lambda: server.service.load().num_waiting == 1)
            until(lambda: num_cancelled(server) == 1)
            assert server.service.load().num_running == 1
        until(lambda: is_idle(server))


def test_given_a_full_queue_then_503_says_when_to_come_again(spare_engine: Engine) -> None:
    with (
        serving(spare_engine, ServiceLimits(max_rows=1, max_waiting=1)) as server,
        server.http() as http,
    ):
        with raw_request(server, "/v1/completions", LONG):
            until(lambda: server.service.load().num_running == 1)
            with raw_request(server, "/v1/completions", LONG):
                until(lambda: server.service.load().num_waiting == 1)

                refused = http.post("/v1/completions", json=LONG)

                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "queue_full"
                assert http.get("/health").status_code == 200
        until(lambda: is_idle(server))
        assert http.post("/v1/completions", json=LONG | {"max_tokens": 1}).status_code == 200


def test_given_a_stream_that_waits_then_comments_keep_its_connection(spare_engine: Engine) -> None:
    with serving(spare_engine, ServiceLimits(max_rows=1), ping_s=0.01) as server:
        with raw_request(server, "/v1/completions", LONG):
            until(lambda: server.service.load().num_running == 1)
            with server.http() as http:
                body = LONG | {"stream": True, "max_tokens": 2}
                with http.stream("POST", "/v1/completions", json=body) as stream:
                    first = next(line for line in stream.iter_lines() if line)
        until(lambda: is_idle(server))

    assert first == ": ping"


def test_given_a_request_that_takes_too_long_then_504_or_an_error_event(
    spare_engine: Engine,
) -> None:
    with serving(spare_engine, request_s=0.05) as server, server.http() as http:
        whole = http.post("/v1/completions", json=LONG)
        streamed = http.post("/v1/completions", json=LONG | {"stream": True}).text
        until(lambda: is_idle(server))

    assert whole.status_code == 504
    assert whole.headers["x-should-retry"] == "false"
    last = streamed.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert "[DONE]" not in streamed
    assert '"finish_reason":"length"' not in streamed


def test_given_a_failure_in_a_stream_then_the_client_raises_and_learns_nothing(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 2)

    with server.client() as client, pytest.raises(openai.APIError) as failed:
        for _ in client.completions.create(
            model=MODEL, prompt="abc", max_tokens=8, stream=True, temperature=0
        ):
            pass

    assert "/secret" not in str(failed.value)
    assert "x-request-id" in str(failed.value)


def test_given_a_failure_then_500_says_nothing_of_it_and_the_next_is_served(
    server: Live, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        fail_after(broken, 0)
        failed = http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 8})
    served = http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 8})

    assert failed.status_code == 500
    assert "/secret" not in failed.text
    assert failed.headers["x-should-retry"] == "false"
    assert served.status_code == 200


def fail_after(monkeypatch: pytest.MonkeyPatch, num_pieces: int) -> None:
    """Let every request fail, as one whose logits are no numbers, after so many pieces."""
    from dataclasses import replace

    from forerun.engine.service import Ended, Gained

    submit = Service.submit

    def failing(self: Service, job: Any, listener: Any) -> Any:
        heard: list[Any] = []

        def hear(event: Any) -> None:
            if isinstance(event, Gained):
                heard.append(event)
                if len(heard) > num_pieces:
                    return
            if isinstance(event, Ended):
                error = BackendError("logits at /secret/path are not numbers")
                event = Ended(replace(event.completion, finish_reason="error", error=error))
            listener(event)

        return submit(self, job, hear)

    monkeypatch.setattr(Service, "submit", failing)


def test_given_an_exception_nobody_expected_then_500_in_the_usual_form(
    server: Live, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Service, job: Any, listener: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Service, "submit", broken)
    answer = http.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}
    )

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


def test_given_a_slow_body_then_it_is_not_waited_for(spare_engine: Engine) -> None:
    with serving(spare_engine, body_s=0.05) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"POST /tokenize HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n{{".encode()
            )
            assert b" 408 " in connection.recv(4096)


def test_given_many_at_once_then_each_answer_is_as_if_alone(server: Live) -> None:
    bodies = [
        {"prompt": "ab" * (1 + at), "max_tokens": 12, "temperature": 0.8, "seed": at, "logprobs": 1}
        for at in range(8)
    ]
    together: dict[int, Any] = {}

    def ask(at: int) -> Any:
        with server.http() as http:
            return http.post("/v1/completions", json=bodies[at]).json()["choices"]

    alone = [ask(at) for at in range(8)]
    threads = [
        threading.Thread(target=lambda at=at: together.update({at: ask(at)})) for at in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [together[at] for at in range(8)] == alone


def test_given_sigterm_then_what_runs_ends_what_comes_is_refused_and_a_second_ends_all(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    running, address = process
    body = LONG | {"stream": True}

    def status() -> int:
        return httpx2.get(f"{address}/health/ready", timeout=120).status_code

    with httpx2.stream("POST", f"{address}/v1/completions", json=body, timeout=120) as stream:
        lines = stream.iter_lines()
        next(lines)
        running.send_signal(signal.SIGTERM)
        until(lambda: status() == 503)
        refused = httpx2.post(f"{address}/v1/completions", json=LONG, timeout=120)
        is_alive = httpx2.get(f"{address}/health/live", timeout=120).status_code
        running.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert is_alive == 200
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert running.wait(120) == 0


def test_given_sigterm_then_a_running_request_gets_all_its_tokens(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    running, address = process
    body = LONG | {"stream": True, "max_tokens": 300}

    with httpx2.stream("POST", f"{address}/v1/completions", json=body, timeout=120) as stream:
        lines = stream.iter_lines()
        next(lines)
        running.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]

    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert running.wait(120) == 0
    assert running.stderr is not None
    assert running.stderr.read() == ""
