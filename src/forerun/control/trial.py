"""Does a small model's draft pay on this machine? Timed once, before the first request.

Knows two backends and a clock. Used only where the caller left the drafter to us.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np

from forerun.backends.prefill import chain_batch
from forerun.options import SamplingParams
from forerun.protocols import Backend, ForwardBatch, ProposalPlan, Sampler
from forerun.stats import timed

_DRAFTED = 2  # a short chain: if this does not pay, no longer one does
_ACCEPTANCE = 0.6  # of a fitting drafter on text that is not a loop; measured 0.5 to 0.7
_MARGIN = 1.2  # what a round spends beside its two passes, and the drafter on reading prompts
_REPEATS = 5
_LONG_S = 0.05


def draft_pays(target: Backend, drafter: Backend) -> bool:
    """Whether verifying a short chain of the drafter's yields more tokens a second than plain."""
    plain_s = _seconds(lambda: target.forward(_chain(1)))
    verify_s = _seconds(lambda: target.forward(_chain(1 + _DRAFTED)))
    draft_s = _seconds(lambda: drafter.propose(_plan()))
    expected = sum(_ACCEPTANCE**at for at in range(1 + _DRAFTED))
    return expected * plain_s > _MARGIN * (verify_s + draft_s)


def _seconds(call: Callable[[], object]) -> float:
    first = timed(call)  # memory is touched, threads are awake
    if first > _LONG_S:
        return first  # waking up is nothing beside it, and a large model's time is dear
    return median(timed(call) for _ in range(_REPEATS))


def _chain(num_nodes: int) -> ForwardBatch:
    table = np.zeros((1, 1), np.int32)
    return chain_batch(np.zeros(num_nodes, np.int32), 0, table, num_logits=num_nodes)


def _plan() -> ProposalPlan:
    return ProposalPlan(
        catch_up=np.zeros(1, np.int32),
        catch_up_starts=np.array([0, 1], np.int32),
        committed=np.zeros(1, np.int32),
        block_table=np.zeros((1, 1), np.int32),
        samplers=[Sampler(SamplingParams(), 0)],
        num_steps=_DRAFTED,
    )
