"""Does a drafter pay on this machine, and by how much? Timed once, before the first request.

Knows a backend, calls that draft, and a clock. Used only where the caller left the drafter to us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from forerun.backends.prefill import chain_batch
from forerun.backends.slots import blocks_for
from forerun.draft import Draw
from forerun.options import SamplingParams
from forerun.protocols import (
    NUM_MARGINS,
    NUM_RANKS,
    Backend,
    FeatureBackend,
    ForwardBatch,
    Growth,
    GrowthPlan,
    ProposalPlan,
    Sampler,
)
from forerun.stats import timed

# A round's other work, a drafter's reading of prompts, a short timing's doubt: to be worth it,
# drafting must seem to win by so much.
PAYS = 1.3
_LENGTHS = (2, 4, 7)  # drafted tokens a round is timed with
_ACCEPTANCE = 0.56  # of a fitting drafter on text that is not a loop; measured 0.5 to 0.65
_KEPT = 3  # tokens that a round gives where drafting pays
_REPEATS = 9
_FEW_REPEATS, _LONG_S = 2, 0.05

DraftOf: TypeAlias = Callable[[int], object]  # drafts a chain of so many tokens


def gain(
    target: Backend, draft_of: DraftOf, record: Mapping[int, float], longest: int = 1 << 30
) -> float:
    """Tokens a second with a drafter over those of plain decoding, at the best of a few lengths.

    `record`: tokens a round by drafted tokens, where somebody measured them; guessed without.
    Each draft is timed behind a verification, as in a round: what it reads has left the cache.
    """
    lengths = [length for length in _LENGTHS if length <= longest] or [longest]
    calls: list[Callable[[], object]] = [partial(target.forward, chain_of(1))]
    for length in lengths:
        calls += [partial(target.forward, chain_of(1 + length)), partial(draft_of, length)]
    plain_s, *seconds = least_seconds(*calls)
    verify_s, draft_s = seconds[::2], seconds[1::2]
    return max(
        expected_tokens(record, length) * plain_s / (verify + draft)
        for length, verify, draft in zip(lengths, verify_s, draft_s, strict=True)
    )


def expected_tokens(record: Mapping[int, float], num_drafted: int) -> float:
    """Tokens that a round of so many drafted ones yields: as recorded for the longest chain that is
    not longer, else as a fitting drafter's would."""
    known = [length for length in record if length <= num_drafted]
    if known:
        return record[max(known)]
    return sum(_ACCEPTANCE**at for at in range(1 + num_drafted))


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


def proposals(drafter: Backend) -> DraftOf:
    """Greedy chains of a small model."""
    return lambda num_steps: drafter.propose(proposal_of(num_steps))


def growths(drafter: FeatureBackend) -> DraftOf:
    """Greedy chains of a drafter that reads features: those of all tokens of a round."""
    features = np.zeros((_KEPT, drafter.spec.feature_width), np.float32)
    return lambda num_levels: drafter.grow(growth_plan_of(num_levels), features)


def growth_plan_of(num_levels: int) -> GrowthPlan:
    """A greedy chain of so many levels behind the tokens of a round and the pending one."""
    num_read = _KEPT + 1
    return GrowthPlan(
        catch_up=np.zeros(num_read, np.int32),
        catch_up_starts=np.array([0, num_read], np.int32),
        committed=np.zeros(1, np.int32),
        block_table=np.arange(blocks_for(num_read + num_levels), dtype=np.int32)[None],
        samplers=[Sampler(SamplingParams(), 0)],
        budgets=np.array([num_levels], np.int32),
        depths=np.array([num_levels], np.int32),
        growth=Growth(Draw.COUPLED, tuple(range(num_levels))),
        acceptance=np.zeros((1, NUM_RANKS, NUM_MARGINS), np.float32),
    )


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
