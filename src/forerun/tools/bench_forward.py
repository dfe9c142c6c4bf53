"""`forerun bench forward`: passes of the native backend against the floor of this machine.

A floor is the bytes that must move (`costs.py`) ÷ the bandwidth: the best of several read kernels
over a private buffer of the same size, measured between the passes, so that both see the same
machine in the same minute.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import chain_batch, prefill
from forerun.errors import CapacityError, OptionError
from forerun.models.resolve import resolve_model
from forerun.models.weights import Checkpoint, open_checkpoint
from forerun.options import SamplingParams
from forerun.protocols import BLOCK_LEN, ForwardBatch, ProposalPlan, Sampler
from forerun.stats import timed
from forerun.tools import machine
from forerun.tools.costs import pass_bytes
from forerun.tools.random_model import random_config, write_random_model
from forerun.tools.terminal import say, write_json

if TYPE_CHECKING:
    from forerun.backends.native import NativeBackend
    from forerun.tools.arguments import EngineArguments

_NUM_WARM = 3
_NUM_SETTLING = 2  # passes until a model that fits the cache is in it, as between decode rounds


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time: every number of tokens at every context, or proposals of some steps."""

    num_tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    propose: int
    repeat: int
    temperature: float = 0.0

    @staticmethod
    def parse(num_tokens: str, context: str, *, propose: int, repeat: int) -> Plan:
        """The plan of the command line.

        Raises:
            OptionError: something that is no list of positive counts.
        """
        if repeat < 1 or propose < 0:
            raise OptionError(
                f"--repeat {repeat} must be at least 1, --propose {propose} at least 0"
            )
        return Plan(
            _counts("--num-tokens", num_tokens, 1),
            _counts("--context", context, 0),
            propose,
            repeat,
        )

    @property
    def num_blocks(self) -> int:
        """K/V blocks that the longest row needs."""
        return (max(self.contexts) + max(*self.num_tokens, self.propose + 1)) // BLOCK_LEN + 1


@dataclass(frozen=True, slots=True)
class Row:
    """One timed shape; `num_bytes` is what its floor counts, `ratio` how far above it we are."""

    num_tokens: int
    context: int
    times_s: tuple[float, ...]
    bandwidth: float
    num_bytes: int

    @property
    def median_s(self) -> float:
        return median(self.times_s)

    @property
    def floor_s(self) -> float:
        return self.num_bytes / self.bandwidth

    def as_dict(self) -> dict[str, float]:
        """The row with the keys scripts build on."""
        return {
            "num_tokens": self.num_tokens,
            "context": self.context,
            "median_s": self.median_s,
            "min_s": min(self.times_s),
            "floor_s": self.floor_s,
            "ratio": self.median_s / self.floor_s,
            "bandwidth_bytes_per_s": self.bandwidth,
            "bytes": self.num_bytes,
        }


def run(random: str | None, plan: Plan, engine: EngineArguments, *, as_json: bool) -> int:
    """Measure and report; `random` names a size to make up, else the engine's model is used."""
    if engine.backend == "torch" or engine.device != "cpu":
        raise OptionError(
            f"bench forward times the native backend; --backend {engine.backend} --device"
            f" {engine.device} has no floor here"
        )
    with (
        _checkpoint(random, engine.model) as checkpoint,
        _backend(checkpoint, plan, engine) as backend,
    ):
        measure = _time_proposals if plan.propose else _time_forwards
        rows = list(measure(backend, plan))
        report = {
            "machine": machine.machine_name(),
            "model": f"random-{random}" if random else engine.model,
            "parameters": backend.spec.num_parameters,
            "numerics": backend.numerics,
            "isa": backend.isa,
            "threads": backend.num_threads,
            "propose": plan.propose,
            "rows": [row.as_dict() for row in rows],
        }
    if as_json:
        write_json(report)
    else:
        from forerun.tools.tables import show_forward

        show_forward(report)
    return 0


@contextmanager
def _checkpoint(random: str | None, model: str) -> Iterator[Checkpoint]:
    if random is None:
        yield open_checkpoint(resolve_model(model))
        return
    config = random_config(random)
    with tempfile.TemporaryDirectory(prefix="forerun-") as folder:
        say(f"writing random-{random} to {folder}")
        write_random_model(config, Path(folder))
        yield open_checkpoint(Path(folder))


@contextmanager
def _backend(
    checkpoint: Checkpoint, plan: Plan, engine: EngineArguments
) -> Iterator[NativeBackend]:
    from forerun.backends.native import NativeBackend, default_cores

    longest = (plan.num_blocks - 1) * BLOCK_LEN
    if longest > checkpoint.spec.max_position:
        raise CapacityError(
            f"a context of {max(plan.contexts)} tokens is more than the model's"
            f" {checkpoint.spec.max_position}: choose a smaller --context"
        )
    cores = default_cores()
    if engine.threads is not None and not 1 <= engine.threads <= len(cores):
        raise OptionError(f"--threads {engine.threads} must be in [1, {len(cores)}] here")
    isa = None if engine.isa == "auto" else engine.isa
    started = perf_counter()
    backend = NativeBackend(
        checkpoint, cores=cores[: engine.threads], num_blocks=plan.num_blocks, isa=isa
    )
    say(f"packed {checkpoint.num_bytes / 1e6:.0f} MB in {perf_counter() - started:.2f} s")
    with closing(backend):
        yield backend


def _time_forwards(backend: NativeBackend, plan: Plan) -> Iterator[Row]:
    """Rows of one context are interleaved with each other and with the bandwidth.

    Each measured pass follows unmeasured ones, and so does each measured read: the buffer of one
    row's bandwidth must not make the next row's weights cold.
    """
    for context in plan.contexts:
        num_bytes = pass_bytes(backend.spec, context, backend.value_bytes)
        _prefill(backend, context, plan.num_blocks)
        batches = [_chain(backend, context, count, plan.num_blocks) for count in plan.num_tokens]
        times: list[list[float]] = [[] for _ in batches]
        bandwidths = []
        for _ in range(_NUM_WARM + plan.repeat):
            for batch, seconds in zip(batches, times, strict=True):
                for _ in range(_NUM_SETTLING):
                    backend.forward(batch)
                seconds.append(timed(partial(backend.forward, batch)))
            backend.read_bandwidth(num_bytes)
            bandwidths.append(backend.read_bandwidth(num_bytes))
        bandwidth = median(bandwidths[_NUM_WARM:])
        for count, seconds in zip(plan.num_tokens, times, strict=True):
            yield Row(count, context, tuple(seconds[_NUM_WARM:]), bandwidth, num_bytes)


def _time_proposals(backend: NativeBackend, plan: Plan) -> Iterator[Row]:
    """Seconds per step of a whole proposal; weights and buffer are both left in cache if they fit.

    Each measured call follows an unmeasured one, because in a real round the steps of a proposal
    follow each other too.
    """
    for context in plan.contexts:
        num_bytes = pass_bytes(backend.spec, context, backend.value_bytes)
        _prefill(backend, context, plan.num_blocks)
        proposal = _proposal(context, plan)
        times, bandwidths = [], []
        for _ in range(_NUM_WARM + plan.repeat):
            backend.propose(proposal)
            times.append(timed(partial(backend.propose, proposal)) / plan.propose)
            backend.read_bandwidth(num_bytes)
            bandwidths.append(backend.read_bandwidth(num_bytes))
        bandwidth = median(bandwidths[_NUM_WARM:])
        yield Row(1, context, tuple(times[_NUM_WARM:]), bandwidth, num_bytes)


def _prefill(backend: NativeBackend, context: int, num_blocks: int) -> None:
    prefill(backend, _table(num_blocks), _tokens(backend, context, 0).tolist(), 0)


def _chain(backend: NativeBackend, committed: int, count: int, num_blocks: int) -> ForwardBatch:
    """`count` nodes in a row after `committed` ones, all their logits wanted, as to verify them."""
    tokens = _tokens(backend, count, committed)
    return chain_batch(tokens, committed, _table(num_blocks), num_logits=count)


def _tokens(backend: NativeBackend, count: int, seed: int) -> NDArray[np.int32]:
    generator = np.random.default_rng(seed)
    return generator.integers(backend.spec.vocab, size=count, dtype=np.int32)


def _table(num_blocks: int) -> NDArray[np.int32]:
    return np.arange(num_blocks, dtype=np.int32)[None]


def _proposal(context: int, plan: Plan) -> ProposalPlan:
    return ProposalPlan(
        catch_up=np.ones(1, np.int32),
        catch_up_starts=np.array([0, 1], np.int32),
        committed=np.array([context], np.int32),
        block_table=_table(plan.num_blocks),
        samplers=[Sampler(SamplingParams(temperature=plan.temperature), 0)],
        num_steps=plan.propose,
    )


def _counts(option: str, text: str, least: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= least for part in parts):
        raise OptionError(f"{option} {text!r} must be whole numbers from {least} up, by commas")
    return tuple(int(part) for part in parts)
