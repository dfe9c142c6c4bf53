"""Does a small model's draft pay on this machine? Timed once, before the first request.

Knows two backends and a clock. Used only where the caller left the drafter to us.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from forerun.backends.prefill import chain_batch
from forerun.options import SamplingParams
from forerun.protocols import Backend, ForwardBatch, ProposalPlan, Sampler
from forerun.stats import timed

_DRAFTED = 2  # a short chain: if this does not pay, no longer one does
_ACCEPTANCE = 0.56  # of a fitting drafter on text that is not a loop; measured 0.5 to 0.65
_MARGIN = 1.3  # a round's other work, the drafter's reading of prompts, a short timing's doubt
_REPEATS = 9
_FEW_REPEATS, _LONG_S = 2, 0.05


def draft_pays(target: Backend, drafter: Backend) -> bool:
    """Whether verifying a short chain of the drafter's yields more tokens a second than plain."""
    plain_s, verify_s, draft_s = least_seconds(
        lambda: target.forward(chain_of(1)),
        lambda: target.forward(chain_of(1 + _DRAFTED)),
        lambda: drafter.propose(proposal_of(_DRAFTED)),
    )
    expected = sum(_ACCEPTANCE**at for at in range(1 + _DRAFTED))
    return expected * plain_s > _MARGIN * (verify_s + draft_s)


def least_seconds(*calls: Callable[[], object]) -> list[float]:
    """The least time of each call, in turns: what one leaves in the cache, all of them find."""
    for call in calls:
        call()  # memory is touched, threads are awake
    turns = [[timed(call) for call in calls]]
    # A large model's time is dear, and its times vary less.
    more = _REPEATS if turns[0][0] < _LONG_S else _FEW_REPEATS
    turns += [[timed(call) for call in calls] for _ in range(more - 1)]
    return [min(times) for times in zip(*turns, strict=True)]


def chain_of(num_nodes: int) -> ForwardBatch:
    """A chain at the beginning of a text, with all its logits."""
    table = np.zeros((1, 1), np.int32)
    return chain_batch(np.zeros(num_nodes, np.int32), 0, table, num_logits=num_nodes)


def proposal_of(num_steps: int) -> ProposalPlan:
    """A greedy chain of so many steps behind one token."""
    return ProposalPlan(
        catch_up=np.zeros(1, np.int32),
        catch_up_starts=np.array([0, 1], np.int32),
        committed=np.zeros(1, np.int32),
        block_table=np.zeros((1, 1), np.int32),
        samplers=[Sampler(SamplingParams(), 0)],
        num_steps=num_steps,
    )
