"""What operators see: metrics, health, models without a template, the command's own refusals."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import uvicorn

from forerun import Engine, Speculation
from forerun.serve.command import configuration
from forerun.serve.metrics import DRAFTER_STATES
from forerun.serve.start import served_name
from forerun.tools.bench_serve import first_model
from forerun.tools.bench_serve_wire import Address

from .live import MODEL, Live, serving

ROOT = Path(__file__).resolve().parents[2]
PLAIN_COUNTERS = (
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total",
    "forerun:rounds_total", "vllm:time_to_first_token_seconds_count",
    "vllm:e2e_request_latency_seconds_count", "vllm:inter_token_latency_seconds_count",
)  # fmt: skip


def scraped(http: httpx2.Client) -> dict[str, float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def total(metrics: dict[str, float], name: str) -> float:
    return metrics[f'{name}{{model_name="{MODEL}"}}']


def test_given_a_request_then_counters_grow_by_what_it_took(http: httpx2.Client) -> None:
    before = scraped(http)
    body = {"prompt": "abcabcabcabc", "max_tokens": 30, "temperature": 0, "ignore_eos": True}

    answer = http.post("/v1/completions", json=body).json()
    after = scraped(http)

    grown = {name: total(after, name) - total(before, name) for name in PLAIN_COUNTERS}
    assert grown["vllm:prompt_tokens_total"] == 12
    assert grown["vllm:generation_tokens_total"] == 30
    assert grown["vllm:spec_decode_num_draft_tokens_total"] == answer["timings"]["draft_n"] > 0
    accepted = answer["timings"]["draft_n_accepted"]
    assert grown["vllm:spec_decode_num_accepted_tokens_total"] == accepted
    assert grown["vllm:time_to_first_token_seconds_count"] == 1
    assert grown["vllm:e2e_request_latency_seconds_count"] == 1
    assert sum(value for name, value in after.items() if "_per_pos_total" in name) >= accepted
    success = f'vllm:request_success_total{{finished_reason="length",model_name="{MODEL}"}}'
    assert after[success] == before.get(success, 0) + 1


def counted(metrics: dict[str, float], name: str) -> tuple[float, float]:
    """How many values a histogram has seen, and their sum."""
    return total(metrics, f"vllm:{name}_count"), total(metrics, f"vllm:{name}_sum")


HISTOGRAMS = (
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_time_per_output_token_seconds",
    "request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
)  # fmt: skip


def test_given_choices_of_two_lengths_then_histograms_have_each_of_them_as_it_was(
    http: httpx2.Client,
) -> None:
    body = {"prompt": "abcabcabcabc", "n": 2, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    before = scraped(http)

    answer = http.post("/v1/completions", json=body | {"max_tokens": 30}).json()
    http.post("/v1/completions", json=body | {"max_tokens": 1, "n": 1})
    after = scraped(http)

    grown = {
        name: tuple(now - then for now, then in zip(counted(after, name), was, strict=True))
        for name, was in ((name, counted(before, name)) for name in HISTOGRAMS)
    }
    assert answer["usage"]["completion_tokens"] == 60
    assert grown["request_prompt_tokens"] == (3, 36)
    assert grown["request_generation_tokens"] == (3, 61)
    assert grown["request_time_per_output_token_seconds"][0] == 2  # one token is not after another
    num_read = 36 - (
        total(after, "vllm:prefix_cache_hits_total") - total(before, "vllm:prefix_cache_hits_total")
    )
    num_rounds = total(after, "forerun:rounds_total") - total(before, "forerun:rounds_total")
    assert grown["iteration_tokens_total"] == (num_rounds, 61 + num_read)
    for name in HISTOGRAMS[:4]:
        assert grown[name][0] == 3
    parts = ("prefill", "decode")
    both_s = sum(grown[f"request_{name}_time_seconds"][1] for name in parts)
    assert both_s == pytest.approx(grown["request_inference_time_seconds"][1])
    assert grown["request_decode_time_seconds"][1] > 0


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_given_a_histogram_then_its_buckets_add_up_to_its_count(
    http: httpx2.Client, name: str
) -> None:
    http.post("/v1/completions", json={"prompt": "abcabc", "max_tokens": 3, "ignore_eos": True})
    metrics = scraped(http)

    buckets = [value for key, value in metrics.items() if key.startswith(f"vllm:{name}_bucket")]

    assert buckets == sorted(buckets)
    assert buckets[-1] == counted(metrics, name)[0] > 0


def test_given_a_scrape_then_gauges_say_what_is_held(http: httpx2.Client) -> None:
    metrics = scraped(http)

    assert total(metrics, "vllm:num_requests_running") == 0
    assert total(metrics, "vllm:num_requests_waiting") == 0
    assert 0 <= total(metrics, "vllm:kv_cache_usage_perc") <= 1
    states = [
        metrics[f'forerun:drafter_state{{model_name="{MODEL}",state="{one}"}}']
        for one in DRAFTER_STATES
    ]
    assert states == [1, 0, 0]


def test_given_every_line_then_prometheus_can_read_it(http: httpx2.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(http.get("/metrics").text))

    assert len(families) > 15
    assert all(re.fullmatch(r"(vllm|forerun):[a-z0-9_]+", one.name) for one in families)


def test_given_the_page_then_it_names_every_metric_and_those_of_vllm_that_are_missing(
    http: httpx2.Client,
) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    item = page[page.index("- **Metrics.**") : page.index("## Who may come in")]
    there, _, missing = item.partition("stay empty here")
    families = text_string_to_metric_families(http.get("/metrics").text)

    names = {
        one.name + "_total" * (one.type == "counter")
        for one in families
        if not one.name.endswith("_created")  # when the library began to count
    }

    assert set(re.findall(r"`((?:vllm|forerun):[a-z0-9_]+)`", there)) == names
    assert names.isdisjoint(re.findall(r"`(vllm:[a-z0-9_]+)`", missing))


def test_given_a_draining_server_then_live_differs_from_ready(spare_engine: Engine) -> None:
    with serving(spare_engine) as server, server.http() as http:
        assert http.get("/health/ready").json() == {"status": "ok", "drafter": "healthy"}
        server.life.is_draining = True
        refused = http.get("/v1/models")

        assert http.get("/health/live").status_code == 200
        assert http.get("/health/ready").status_code == 503
        assert http.get("/metrics").status_code == 200
        assert refused.status_code == 503
        assert "retry-after" in refused.headers


def test_given_a_model_without_template_then_chat_continues_the_text_and_says_so(
    tiny_checkpoint_dir: Callable[..., Path],
) -> None:
    with (
        Engine(tiny_checkpoint_dir("qwen3"), speculate=Speculation("none"), threads=1) as engine,
        serving(engine) as server,
        server.http() as http,
    ):
        turns = [("user", "def a():"), ("assistant", " pass"), ("user", "def b():")]
        messages = [{"role": role, "content": text} for role, text in turns]

        chat = http.post(
            "/v1/chat/completions", json={"messages": messages, "max_tokens": 6, "temperature": 0}
        )
        text = http.post(
            "/v1/completions",
            json={"prompt": "def a():\n pass\ndef b():\n", "max_tokens": 6, "temperature": 0},
        )

        assert "no chat template" in chat.headers["x-forerun-chat"]
        assert chat.json()["choices"][0]["message"]["content"] == text.json()["choices"][0]["text"]
        assert http.get("/v1/models").json()["data"][0]["has_chat_template"] is False


def test_given_a_directory_then_the_model_is_never_called_by_its_path(tmp_path: Path) -> None:
    assert served_name(str(tmp_path)) == tmp_path.name
    assert served_name("org/name") == "org/name"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "127.0.0.1:8000"], "the port with --port"),
        (["--host", "[::1]:8000"], "the port with --port"),
        (["--host", "[localhost]"], "neither a name nor an address"),
        (["--host", "[::]"], "--api-key-file"),
        (["--port", "70000"], "port must be"),
        (["--api-key-file", "/does/not/exist"], "cannot be read"),
        (["--max-waiting", "0"], "max_waiting"),
        (["--max-waiting-tokens", "0"], "max_waiting_tokens"),
        (["--request-s", "0"], "request_s"),
    ],
)
def test_given_options_that_cannot_be_then_one_sentence_before_a_model_is_read(
    options: list[str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forerun.cli", "serve", "-m", "/no/model", *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    "process", [["--host", "::1"], ["--host", "[::1]"]], indirect=True, ids=str
)
def test_given_an_address_of_ipv6_with_or_without_brackets_then_the_printed_url_leads_to_it(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    _, address = process

    ready = httpx2.get(f"{address}/health/ready", timeout=60)
    name = asyncio.run(first_model(Address.parse(f"{address}/v1"), None))

    assert re.fullmatch(r"http://\[::1\]:\d+", address)
    assert ready.status_code == 200
    assert name == "tiny-chat"  # without brackets around its Host a client would be refused


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_given_a_port_of_ipv6_in_use_then_the_sentence_names_it_once_as_a_url_does() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        words = ["serve", "-m", "/no/model", "--host", "::1", "--port", str(port)]
        done = subprocess.run(
            [sys.executable, "-m", "forerun.cli", *words],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    assert done.returncode == 2
    assert f"[::1]:{port} cannot be listened on (Address already in use):" in done.stderr
    assert done.stderr.count("::1") == 1


def test_given_a_connection_at_rest_then_clients_give_it_up_before_the_server_does() -> None:
    # uvicorn's own 5 s are those of httpx and OpenAI's client: a request met the end by chance.
    by_default = uvicorn.Config("").timeout_keep_alive
    habits_s = [httpx2.Limits().keepalive_expiry, 15.0]  # and aiohttp's

    assert by_default <= max(one for one in habits_s if one is not None)  # the control
    for longest_s in habits_s:
        assert longest_s is not None
        assert configuration(Engine).timeout_keep_alive > 2 * longest_s


def test_given_a_port_in_use_then_a_sentence_with_a_way_out(server: Live) -> None:
    port = server.address.rpartition(":")[2]

    done = subprocess.run(
        [sys.executable, "-m", "forerun.cli", "serve", "-m", "/no/model", "--port", port],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "--port" in done.stderr
