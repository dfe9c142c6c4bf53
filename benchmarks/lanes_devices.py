"""What is assumed of accelerators and models where none was at hand: a roofline with efficiencies.

Nothing here is measured by us. Each assumption says where it is from; those marked `assumed` are
from nowhere. Published figures are second-hand, as read in notes on the papers and repositories.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from lanes_setup import AHEAD, SEQUENTIAL, Setup, Way, ranks_of

from forerun.control.outcomes import PowerLaw, accepted_of, tokens_of
from forerun.control.overlap import Expectation, LaneCosts, Yields, best_overlapped, best_sequential

MOST_LEVELS, MOST_BRANCHES, CONTEXT = 16, 32, 1024


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator: bytes and bf16 operations a second on paper; the share of the latter that a
    verification of many tokens reaches (assumed)."""

    bandwidth_bytes_per_s: float = 3.35e12  # H100 SXM, data sheet
    flops: float = 989e12  # H100 SXM, data sheet, dense
    compute_efficiency: float = 0.5


@dataclass(frozen=True, slots=True)
class Model:
    """A model in bf16: parameters, and bytes of keys and values a token."""

    num_parameters: float
    kv_bytes: float


TARGET = Model(70.6e9, 2 * 80 * 8 * 128 * 2)  # Llama-3.1-70B: layers, K/V heads, head, bytes
DRAFTER = Model(1.24e9, 2 * 16 * 8 * 64 * 2)  # Llama-3.2-1B
DEVICE = Device()
# Share of the bandwidth that N devices reach in one plain step. 4: from 54.7 tokens/s published for
# this target on four H100. 8: assumed, communication counts for more.
EFFICIENCY = {4: 0.576, 8: 0.45}
# Seconds of a pass of the 1B drafter; its bytes over the bandwidth are 0.74 ms. `captured`: two
# thirds of the bandwidth, assumed. `published`: what published gains imply, see `implied_steps`.
STEPS = {"captured": 1.1e-3, "published": 2.3e-3}
BRANCH_S = 8e-6  # of one more branch in a pass; 7.7 µs measured on two RTX 4090, Qwen3-8B/0.6B
HANDOVER_S = 3e-4  # assumed; the reference code takes 0.7 ms
# Chances by position follow the accepted-length histogram published for Qwen3-8B/0.6B (T=0.7, hits,
# K=7), its rejections scaled to meet the tokens a round published for K=7 and that temperature.
HISTOGRAM = (0.247, 0.159, 0.115, 0.079, 0.059, 0.046, 0.038, 0.257)
TOKENS = {0.0: 5.00, 0.7: 3.89, 1.0: 3.40}  # the last assumed
HITS = {0.0: 0.809, 0.7: 0.78, 1.0: 0.75}  # with three guesses an exit; the last assumed
NEAREST = 0.4  # assumed: chance of the first token of a nearest branch; those behind as others


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that somebody else published, at batch 1 and T = 0."""

    name: str
    num_devices: int
    schedule: str
    tokens_per_s: float


PUBLISHED = (
    Published("SSD paper, mean of four sets", 4, "plain", 54.7),
    Published("SSD paper, mean of four sets", 4, SEQUENTIAL, 161.8),
    Published("SSD paper, mean of four sets", 5, AHEAD, 255.8),
    Published("SSD repository's figure: SGLang", 4, SEQUENTIAL, 170.0),
    Published("SSD repository's figure: SSD", 5, AHEAD, 261.0),
)


def accepted_at(temperature: float) -> tuple[float, ...]:
    """Chances by position at a temperature, as assumed above; beyond the histogram as its last."""
    base = accepted_of(HISTOGRAM)
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        is_long = tokens_of(1.0 - middle * (1.0 - base)) > TOKENS[temperature]
        low, high = (middle, high) if is_long else (low, middle)
    scaled = 1.0 - low * (1.0 - base)
    return tuple(np.pad(scaled, (0, MOST_LEVELS - len(scaled)), mode="edge").tolist())


def yields_at(temperature: float) -> Yields:
    """What drafts yield at a temperature, as assumed above."""
    accepted = accepted_at(temperature)
    bonus = PowerLaw.through(HITS[temperature], 3)
    return Yields(accepted, bonus, (NEAREST, *accepted[:-1]))


def costs_of(num_devices: int, num_rows: int, step_s: float) -> LaneCosts:
    """Seconds of a target on so many devices and a drafter on one more, for so many rows."""
    nodes = sorted({num_rows * (level + 1) for level in range(MOST_LEVELS + 1)})
    kv_s = num_rows * CONTEXT * DRAFTER.kv_bytes / DEVICE.bandwidth_bytes_per_s
    return LaneCosts(
        verify=tuple((count, verify_s(num_devices, num_rows, count)) for count in nodes),
        step_s=step_s + kv_s,
        branch_s=BRANCH_S,
        handover_s=HANDOVER_S,
    )


def verify_s(num_devices: int, num_rows: int, num_nodes: int) -> float:
    """Weights and keys at the bandwidth reached, or the operations at theirs, if that is longer."""
    moved = 2 * TARGET.num_parameters + num_rows * CONTEXT * TARGET.kv_bytes
    bandwidth = num_devices * DEVICE.bandwidth_bytes_per_s * EFFICIENCY[num_devices]
    flops = num_devices * DEVICE.flops * DEVICE.compute_efficiency
    return max(moved / bandwidth, 2 * TARGET.num_parameters * num_nodes / flops)


def best_setups(
    num_devices: int, num_rows: int, temperature: float, step_s: float
) -> tuple[tuple[Setup, Expectation], tuple[Setup, Expectation]]:
    """The best sequential way on `num_devices` and the best overlapped one on one device more."""
    costs, yields = costs_of(num_devices, num_rows, step_s), yields_at(temperature)
    alone = best_sequential(costs, yields, num_rows)
    ahead = best_overlapped(costs, yields, AHEAD, MOST_BRANCHES, num_rows)
    base = Setup(
        costs=costs,
        way=alone.way,
        accepted=yields.accepted,
        bonus=ranks_of(yields.bonus),
        exponent=yields.bonus.exponent,
        num_devices=num_devices,
    )
    nearest = () if ahead.way.redrafts else yields.nearest
    beside = replace(base, way=ahead.way, nearest=nearest, num_devices=num_devices + 1)
    return (base, alone), (beside, ahead)


def implied_steps(num_levels: int = 6) -> list[dict[str, float]]:
    """How long a draft step must have taken for the published figures of plain speculation, and the
    most that hiding it can give, by assumed acceptance; backup and primary drafter being the same.
    """
    plain, sequential, ahead = (one.tokens_per_s for one in PUBLISHED[:3])
    rows = []
    for acceptance in (0.75, 0.80, 0.85, 0.90):
        tokens = tokens_of([acceptance] * num_levels)
        draft = tokens / (sequential / plain) - 1.0
        rows.append(
            {
                "acceptance": acceptance,
                "tokens_per_round": tokens,
                "step_s": draft / plain / num_levels,
                "most_gain": 1.0 + draft,
                "published_gain": ahead / sequential,
            }
        )
    return rows


# Independent measurements of the reference code, H100, Qwen3-32B with Qwen3-0.6B, by depth.
REFERENCE_VERIFY_S, REFERENCE_STEP_S, REFERENCE_FIRST_S = 11.5e-3, 2.54e-3, 2.83e-3
REFERENCE_SERVICE_S = 0.71e-3
REFERENCE_TOKENS_PER_S = {4: 210.9, 5: 193.6, 6: 175.3, 7: 158.6}


def reference_setup(num_levels: int, acceptance: float, hit: float) -> Setup:
    """Such a run: the target waits for the whole draft, a miss is drafted anew."""
    costs = LaneCosts(
        verify=((num_levels + 1, REFERENCE_VERIFY_S),),
        step_s=REFERENCE_STEP_S,
        num_reads=1,
        handover_s=REFERENCE_SERVICE_S + REFERENCE_FIRST_S - REFERENCE_STEP_S,
    )
    way = Way(AHEAD, num_levels, 3 * (num_levels + 1), redrafts=True)
    accepted = (acceptance,) * num_levels
    return Setup(costs, way, accepted, hit=hit, patience_s=float("inf"))


def assumptions() -> dict[str, Any]:
    """All of the above, for the file of results."""
    return {
        "target": asdict(TARGET),
        "drafter": asdict(DRAFTER),
        "device": asdict(DEVICE),
        "tensor_parallel_efficiency": EFFICIENCY,
        "draft_step_s": STEPS,
        "branch_s": BRANCH_S,
        "handover_s": HANDOVER_S,
        "context": CONTEXT,
        "tokens_per_round_of_seven_levels": TOKENS,
        "hit_of_three_guesses": HITS,
        "nearest_first_token": NEAREST,
        "accepted": {temperature: accepted_at(temperature) for temperature in TOKENS},
    }
