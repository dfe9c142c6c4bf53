"""Values of the contract as arrays and objects of the C++ core, and back.

Knows both sides' names for the same things. Must not know weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from forerun import _native
from forerun.draft import Damping, Draft, Draw
from forerun.forecast import ForecastPlan
from forerun.options import SamplingParams
from forerun.protocols import LEAST_MARGIN, MARGIN_STEP, Growth, GrowthPlan, Sampler
from forerun.tree import Tokens, TokenTree


class Samplers:
    """The core's twins of samplers, made once each."""

    def __init__(self) -> None:
        # Keyed by identity and kept alive beside its twin, so that an id cannot be reused.
        self._known: dict[int, tuple[Sampler, Any]] = {}

    def of(self, samplers: Sequence[Sampler]) -> list[Any]:
        """The twin of each."""
        return [self._twin(sampler) for sampler in samplers]

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _twin(self, sampler: Sampler) -> Any:
        known = self._known.get(id(sampler))
        if known is not None and known[0] is sampler:
            return known[1]
        if len(self._known) >= 256:
            self._known.clear()
        made = _make_sampler(sampler)
        self._known[id(sampler)] = (sampler, made)
        return made


def native_plan(plan: GrowthPlan, samplers: Samplers) -> Any:
    """A plan as the core takes it."""
    growth = plan.growth
    made = _native.GrowthPlan(
        plan.catch_up,
        plan.catch_up_starts,
        plan.committed,
        plan.block_table,
        samplers.of(plan.samplers),
        plan.budgets,
        plan.depths,
        growth.draw.value,
        growth.parents or (),
        growth.width,
        growth.frontier,
        growth.least,
        plan.prices,
        plan.pass_price,
        plan.acceptance,
        LEAST_MARGIN,
        MARGIN_STEP,
    )
    if growth.damped is not None:
        made.damp(*growth.damped)
    if plan.is_told:
        made.tell()
    return made


def forecast_arguments(plan: ForecastPlan, samplers: Samplers) -> tuple[Any, ...]:
    """A plan as the core's `foresee` takes it, but for features."""
    trees = plan.trees
    return (
        native_plan(plan.below, samplers),
        np.concatenate([tree.tokens for tree in trees]),
        np.concatenate([tree.parents for tree in trees]),
        _starts([len(tree) for tree in trees]),
        np.concatenate(plan.exits).astype(np.int32),
        _starts([len(exits) for exits in plan.exits]),
        plan.num_branches,
        plan.per_exit,
        plan.num_offers,
        plan.deepest,
        *_carried(plan),
        *_given(plan),
    )


def _given(plan: ForecastPlan) -> tuple[Tokens, Tokens]:
    """Outcomes of all rows: nodes of all drafts, and the tokens below them."""
    starts = _starts([len(tree) for tree in plan.trees]).tolist()
    outcomes = [
        (start + node, token)
        for start, own in zip(starts, plan.outcomes, strict=False)
        for node, token in own
    ]
    pairs = np.array(outcomes, np.int32).reshape(len(outcomes), 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _carried(plan: ForecastPlan) -> tuple[list[Any], Tokens]:
    """What is held of each row, and which of it each node is."""
    rows = plan.carried or [None] * len(plan.trees)
    nodes = [
        np.full(len(tree), -1, np.int32) if one is None else one.nodes
        for one, tree in zip(rows, plan.trees, strict=True)
    ]
    return [None if one is None else one.held for one in rows], np.concatenate(nodes)


def _starts(lengths: list[int]) -> Tokens:
    return np.cumsum([0, *lengths]).astype(np.int32)


def draft_of(row: tuple[Any, ...], growth: Growth) -> Draft:
    """What the core grew for one row."""
    tokens, parents, ranks, margins, scores, _, expanded, laws, draws, passes, *others = row
    damped, chances = others
    tree, draw = TokenTree.made(tokens, parents), growth.draw
    if draw is Draw.COUPLED:
        draft = Draft(tree, draw, expanded, None, None, margins, ranks, scores, passes)
        return replace(draft, chances=chances) if len(chances) else draft
    if draw is Draw.POINT:
        return Draft(tree, draw, expanded, None, None, None, ranks, scores, passes)
    drawn = draws if draw is Draw.SAMPLED else None
    damping = None if growth.damped is None else Damping(damped, growth.damped[1])
    return Draft(tree, draw, expanded, laws, drawn, None, ranks, None, passes, damping)


def _make_sampler(sampler: Sampler) -> Any:
    params: SamplingParams = sampler.params
    return _native.Sampler(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        seed=sampler.seed,
        choice=params.choice,
        bias_ids=list(params.logit_bias.keys()),
        bias=list(params.logit_bias.values()),
        allowed=None if params.allowed_tokens is None else list(params.allowed_tokens),
        prompt_ids=np.ascontiguousarray(sampler.prompt_ids, np.int32),
        output_ids=np.ascontiguousarray(sampler.output_ids, np.int32),
        output_counts=np.ascontiguousarray(sampler.output_counts, np.int32),
    )
