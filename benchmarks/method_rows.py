"""From turns to the figures of a table of methods: rows, categories, and who is the best of whom.

Pure arithmetic on what was timed and counted; must not run anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from compositions import BLOCK_KINDS, SIZES, Method

from forerun.models.spec import ModelSpec
from forerun.tools import machine
from forerun.tools.costs import Costs, RoundCount
from forerun.tools.feature_costs import AnySpec, costs_of
from forerun.tools.loops import loop_share
from forerun.tools.pairs import Pair, Run, ratio_without_loops, speedup, tokens_per_s
from forerun.tools.prompt_files import Prompt

# What is unknown of a composition whose draft passes are: see `Method.is_counted`.
UNCOUNTED = ("floor_ratio", "times_floor", "draft_flops_per_token", "bytes_per_token")


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion, as timed and as counted."""

    run: Run
    counts: tuple[RoundCount, ...]


Turns = Sequence[Sequence[Turn]]  # by prompt, then by repetition


class Meter(Protocol):
    """What is asked of bandwidths: the models of the table, and bytes per second of each."""

    target: ModelSpec

    def drafter(self, method: Method) -> AnySpec | None: ...

    def of(self, spec: AnySpec) -> float: ...


Rows = Mapping[Method, Mapping[str, Any]]
_NAMES = ("name", "shape", "rule", "kind", "drafter_kind", "size", "keeps_tokens")


def row_of(method: Method, turns: Turns, plain: Turns, meter: Meter) -> dict[str, Any]:
    """One composition against plain decoding of the same turns."""
    pairs = _pairs(plain, turns)
    runs = [[turn.run for turn in group] for group in turns]
    rounds = [one for group in runs for run in group for one in run.rounds]
    spec = meter.drafter(method)
    costs, base = (_costs(some, meter, drafter) for some, drafter in ((turns, spec), (plain, None)))
    bandwidths = meter.of(meter.target), meter.of(spec or meter.target)
    floor_s, plain_floor_s = costs.floor_s(*bandwidths), base.floor_s(*bandwidths)
    speed_s = tokens_per_s(runs)
    return {
        **{key: getattr(method, key) for key in _NAMES},
        "identical": all(pair.is_identical for group in pairs for pair in group),
        **_ratio(pairs),
        "floor_ratio": plain_floor_s / base.num_emitted * costs.num_emitted / floor_s,
        "times_floor": costs.num_emitted / speed_s / floor_s if speed_s else None,
        "loop_share": loop_share(group[0].token_ids for group in runs),
        "tokens_per_round": sum(one.num_tokens for one in rounds) / max(1, len(rounds)),
        "draft_share": sum(one.draft_s for one in rounds) / sum(one.round_s for one in rounds),
        "tokens_per_s": speed_s,
        "tokens_per_s_per_core": speed_s / machine.num_cores(),
        "target_flops_per_token": costs.target_flops / costs.num_emitted,
        "draft_flops_per_token": costs.draft_flops / costs.num_emitted,
        "bytes_per_token": (costs.target_bytes + costs.draft_bytes) / costs.num_emitted,
        "target_bandwidth": bandwidths[0],
        **({} if method.is_counted else dict.fromkeys(UNCOUNTED)),
    }


def best_of(rows: Rows, turns: Mapping[Method, Turns]) -> list[dict[str, Any]]:
    """Of each small model, its fastest tree against its fastest chain in the same turns.

    Only where both keep plain decoding's tokens; each is chosen by the figures it is shown with.
    """
    figures = []
    for weights in dict.fromkeys(one.weights for one in rows if one.weights):
        own = [one for one in rows if one.weights == weights and one.keeps_tokens]
        chain, tree = (
            max(
                (one for one in own if one.kind == kind),
                key=lambda one: rows[one]["tokens_per_s"],
                default=None,
            )
            for kind in ("chain", "tree")
        )
        names = {"chain": chain and chain.name, "tree": tree and tree.name}
        pairs = _pairs(turns[chain], turns[tree]) if chain and tree else []
        figures.append({"drafter": str(weights), **names, **(_ratio(pairs) if pairs else {})})
    return figures


def _ratio(pairs: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    speed = speedup(pairs)
    return {
        "ratio": speed.ratio,
        "ratio_ci95": [speed.low, speed.high],
        "ratio_without_loops": ratio_without_loops(pairs),
    }


def rivals_of(rows: Rows, turns: Mapping[Method, Turns]) -> list[dict[str, Any]]:
    """Of each size, the best chain of a block drafter against the best of `lm` in the same turns.

    Both are chosen by what bars look at: their ratio without loops.
    """
    figures = []
    for size in SIZES:
        block, lm = (
            max(
                (one for one in rows if _is_rival(one, size, kinds)),
                key=lambda one: rows[one]["ratio_without_loops"] or 0.0,
                default=None,
            )
            for kinds in (BLOCK_KINDS, ("lm",))
        )
        if block and lm:
            pairs = _pairs(turns[lm], turns[block])
            figures.append({"size": size, "block": block.name, "lm": lm.name, **_ratio(pairs)})
    return figures


def _is_rival(one: Method, size: str, kinds: Sequence[str]) -> bool:
    is_chain = one.kind in ("auto", "chain") and one.keeps_tokens
    return is_chain and one.size == size and one.drafter_kind in kinds


def by_label(
    label: Callable[[Prompt], str], prompts: Sequence[Prompt], turns: Turns, plain: Turns
) -> dict[str, Any]:
    """The ratio of each group of prompts that share a label."""
    pairs, figures = _pairs(plain, turns), {}
    labels = [label(prompt) for prompt in prompts]
    for name in sorted(set(labels)):
        own = [pairs[at] for at, one in enumerate(labels) if one == name]
        figures[name] = {"num_prompts": len(own), **_ratio(own)}
    return figures


def _pairs(plain: Turns, turns: Turns) -> list[list[Pair]]:
    return [
        [Pair(one.run, other.run) for one, other in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(plain, turns, strict=True)
    ]


def _costs(turns: Turns, meter: Meter, drafter: AnySpec | None) -> Costs:
    """All turns together: counts are the same in every repetition, so they may be added."""
    parts = [
        asdict(costs_of(turn.counts, meter.target, drafter)) for group in turns for turn in group
    ]
    return Costs(**{name: sum(part[name] for part in parts) for name in parts[0]})
