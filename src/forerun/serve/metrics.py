"""A service's load in Prometheus' words: vLLM's names, for dashboards that exist, and our own.

Read when scraped: nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from forerun.engine.service import Load
from forerun.engine.service_times import Spread, Spreads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DRAFTER_STATES = ("healthy", "resting", "disabled")


class LoadCollector(Collector):
    """Turns a `Load` into metrics at every scrape."""

    def __init__(self, load: Callable[[], Load], model_name: str) -> None:
        self._load = load
        self._labels = {"model_name": model_name}

    def collect(self) -> Iterator[Metric]:
        """Every metric of now."""
        load = self._load()
        yield from self._gauges(load)
        yield from self._counters(load)

    def _gauges(self, load: Load) -> Iterator[Metric]:
        used = 1.0 - load.num_free_blocks / load.num_blocks if load.num_blocks else 0.0
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in the rounds.", load.num_running),
            ("vllm:num_requests_waiting", "Requests that wait.", load.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of K/V blocks in use, 1 is all.", used),
            ("forerun:waiting_tokens", "Prompt tokens that wait.", load.num_waiting_tokens),
            ("forerun:kv_blocks", "K/V blocks there are.", load.num_blocks),
            ("forerun:kv_blocks_free", "K/V blocks that are free.", load.num_free_blocks),
            ("forerun:compositions", "Ways of requests that are held.", load.num_compositions),
        ):
            gauge = GaugeMetricFamily(name, text, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge
        state = GaugeMetricFamily(
            "forerun:drafter_state", "1 for the state it is in.", labels=[*self._labels, "state"]
        )
        for name in DRAFTER_STATES:
            state.add_metric([*self._labels.values(), name], float(load.drafter == name))
        yield state

    def _counters(self, load: Load) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:prompt_tokens", "Prompt tokens.", load.num_prompt_tokens),
            ("vllm:prefix_cache_hits", "Prompt tokens not read again.", load.num_cached_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", load.num_prompt_tokens),
            ("vllm:generation_tokens", "Generated tokens.", load.num_generated_tokens),
            ("vllm:spec_decode_num_drafts", "Drafts verified.", load.num_drafts),
            ("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", load.num_draft_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Tokens kept.", load.num_accepted_tokens),
            ("vllm:num_preemptions", "Rows that gave memory back.", load.num_preemptions),
            ("forerun:rounds", "Rounds of all running requests.", load.num_rounds),
        ):
            counter = CounterMetricFamily(name, text, labels=list(self._labels))
            counter.add_metric(list(self._labels.values()), value)
            yield counter
        yield self._by(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Tokens kept, by place in the draft.",
            "position", enumerate(load.num_accepted_by_position),
        )  # fmt: skip
        yield self._by(
            "vllm:request_success", "Requests that ended, by reason.",
            "finished_reason", load.num_requests.items(),
        )  # fmt: skip

    def _by(self, name: str, text: str, label: str, values: Iterable[tuple[object, int]]) -> Metric:
        counter = CounterMetricFamily(name, text, labels=[*self._labels, label])
        for key, value in values:
            counter.add_metric([*self._labels.values(), str(key)], value)
        return counter


class SpreadsCollector(Collector):
    """Turns `Spreads` into histograms at every scrape."""

    def __init__(self, spreads: Callable[[], Spreads], model_name: str) -> None:
        self._spreads = spreads
        self._labels = {"model_name": model_name}

    def collect(self) -> Iterator[Metric]:
        """Every histogram of now."""
        now = self._spreads()
        for name, text, spread in (
            ("request_queue_time_seconds", "From arrival to K/V memory.", now.queue_s),
            ("request_prefill_time_seconds", "From there to the first token.", now.prefill_s),
            ("request_decode_time_seconds", "From there to the last.", now.decode_s),
            ("request_inference_time_seconds", "From K/V memory on.", now.inference_s),
            ("request_time_per_output_token_seconds", "A token, a request's mean.", now.token_s),
            ("request_prompt_tokens", "Prompt tokens of a request.", now.prompt_tokens),
            ("request_generation_tokens", "Tokens it came to.", now.generated_tokens),
            ("iteration_tokens_total", "Read and generated in a round.", now.round_tokens),
        ):
            histogram = HistogramMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            histogram.add_metric(list(self._labels.values()), _buckets(spread), spread.total)
            yield histogram


def _buckets(spread: Spread) -> list[tuple[str, float]]:
    """Bounds and how many values are at most those, as Prometheus counts them."""
    bounds = [*map(str, spread.bounds), "+Inf"]
    return list(zip(bounds, accumulate(map(float, spread.counts)), strict=True))


def exposition(registry: CollectorRegistry) -> bytes:
    """What a scrape reads."""
    return generate_latest(registry)
