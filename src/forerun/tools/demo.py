"""`forerun demo`: complete a Python function before your eyes, then say what it cost."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from forerun.tools.bench_decode import PLAIN, figures, measure_pairs
from forerun.tools.generate import write_pieces
from forerun.tools.prompt_files import BUILT_IN, read_prompts
from forerun.tools.terminal import Ink, write, write_json

if TYPE_CHECKING:
    from forerun.tools.arguments import EngineArguments, SamplingArguments

_PROMPT_NAME = "quicksort"
_NUM_PAIRS = 7


def run(engine: EngineArguments, sampling: SamplingArguments, *, as_json: bool) -> int:
    """Show the completion, then the figures; 1 if plain decoding gave another token."""
    prompt = next(one.text for one in read_prompts(BUILT_IN) if one.name == _PROMPT_NAME)
    params = replace(sampling.params(), seed=sampling.seed or 0)
    ink = Ink.of(sys.stdout)
    with ExitStack() as stack:
        speculative = stack.enter_context(engine.open())
        if not as_json:
            write(ink.dim(prompt))
            write_pieces(speculative.stream(prompt, params), ink)
            legend = f"{ink.mark_accepted('accepted draft')} · the target's own token\n"
            write("\n\n" + (legend if ink.accepted else ""))
        plain = stack.enter_context(engine.open(PLAIN))
        group = measure_pairs(plain, speculative, prompt, params, _NUM_PAIRS)
    report = figures([group])
    if as_json:
        write_json({**report, "token_ids": list(group[0].speculative.token_ids)})
    else:
        write(f"{ink.bold(_line(report))}\n")
    return 0 if report["identical"] else 1


def _line(report: dict[str, Any]) -> str:
    ours = report["speculative"]
    return (
        f"{ours['tokens_per_s']:.0f} tokens/s · plain {report['baseline']['tokens_per_s']:.0f}"
        f" tokens/s · ratio {report['ratio']:.2f} · {ours['tokens_per_round']:.2f} tokens a round"
        f" · identical: {'yes' if report['identical'] else 'NO'}"
    )
