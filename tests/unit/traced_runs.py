"""Runs of tiny models with a trace, and without."""

from __future__ import annotations

from forerun import Engine, SamplingParams, Speculation
from forerun.tools.trace import FORMAT, Header
from forerun.tools.trace_reader import read_trace
from forerun.tools.trace_writer import TraceWriter

PROMPTS = [[97, 98, 99, 97, 98], [100, 101, 100, 101, 100], [120, 10, 120, 10]]
SAMPLED = {"temperature": 0.8, "seed": 5}


def header_of(model, drafter, shape, rule="match"):
    return Header(
        FORMAT, "0", str(model), 272, "canonical-bf16", "bits", "native", "cpu",
        drafter, shape, rule, "auto", "a machine",
    )  # fmt: skip


def traced(path, model, drafter, shape, prompts=PROMPTS[:1], rule="match", **params):
    """Completions of a traced run, and its trace."""
    params = SamplingParams(**{"max_tokens": 40, "ignore_eos": True} | params)
    speculation = Speculation(drafter, shape, rule)
    with (
        TraceWriter(path) as writer,
        Engine(model, speculate=speculation, backend="native", witness=writer) as engine,
    ):
        writer.begin(header_of(model, drafter, shape, rule))
        completions = engine.generate(prompts, params)
    return completions, read_trace(path)


def run(model, drafter, shape, prompts=PROMPTS[:1], rule="match", **params):
    """What a run without a trace gives."""
    params = SamplingParams(**{"max_tokens": 40, "ignore_eos": True} | params)
    speculation = Speculation(drafter, shape, rule)
    with Engine(model, speculate=speculation, backend="native") as engine:
        return engine.generate(prompts, params)


def counts(completions):
    return [(one.stats.num_rounds, one.stats.num_accepted) for one in completions]
