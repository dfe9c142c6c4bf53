"""What a decode costs, counted: against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forerun.models.spec import ModelSpec, Rope
from forerun.tools.costs import RoundCount, decode_costs, pass_bytes, pass_flops

TARGET = ModelSpec(
    family="qwen3",
    hidden=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    ffn=128,
    vocab=300,
    max_position=512,
    norm_eps=1e-6,
    rope=Rope(theta=10000.0),
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    eos_ids=(0,),
    bos_id=0,
    dtype="bfloat16",
)
DRAFTER = replace(TARGET, num_layers=1)


def test_a_pass_reads_each_weight_once_and_the_context_once() -> None:
    weights = 2 * TARGET.num_parameters
    assert pass_bytes(TARGET, 0) == weights
    assert pass_bytes(TARGET, 10) == weights + 10 * (2 * 2 * 1 * 32) * 2


def test_an_untied_embedding_is_looked_up_and_not_read() -> None:
    untied = replace(TARGET, tied=False)
    assert pass_bytes(untied, 0) == pass_bytes(TARGET, 0)
    assert pass_flops(untied, 3, 5) == pass_flops(TARGET, 3, 5)


def test_plain_decoding_is_one_node_a_token_and_drafts_nothing() -> None:
    rounds = [RoundCount(0, 1, 7, 0), RoundCount(0, 1, 8, 0)]
    costs = decode_costs(rounds, TARGET, DRAFTER)
    assert costs.target_flops == pass_flops(TARGET, 1, 7) + pass_flops(TARGET, 1, 8)
    assert costs.draft_flops == costs.draft_bytes == 0
    assert costs.num_emitted == 2


def test_a_drafter_reads_what_it_has_not_seen_in_its_first_pass() -> None:
    # Given: three drafts, all kept (so the last and the bonus are unseen), then two, none kept.
    rounds = [RoundCount(3, 4, 10, 3), RoundCount(2, 1, 14, 2)]
    costs = decode_costs(rounds, TARGET, DRAFTER)
    # Then: 1 + 2 nodes in the first round's passes, 2 + 1 in the second's, five passes in all.
    nodes = pass_flops(DRAFTER, 3, 10) + pass_flops(DRAFTER, 3, 14)
    assert costs.draft_flops == nodes
    assert costs.draft_bytes == 3 * pass_bytes(DRAFTER, 10) + 2 * pass_bytes(DRAFTER, 14)
    assert costs.target_flops == pass_flops(TARGET, 4, 10) + pass_flops(TARGET, 3, 14)


def test_rounds_without_drafts_are_read_when_drafting_begins_again() -> None:
    rounds = [RoundCount(0, 1, 10, 0), RoundCount(0, 1, 11, 0), RoundCount(1, 1, 12, 1)]
    assert decode_costs(rounds, TARGET, DRAFTER).draft_flops == pass_flops(DRAFTER, 3, 12)


def test_the_floor_is_bytes_over_each_models_own_bandwidth() -> None:
    costs = decode_costs([RoundCount(1, 2, 0, 1)], TARGET, DRAFTER)
    expected = pass_bytes(TARGET, 0) / 10.0 + pass_bytes(DRAFTER, 0) / 40.0
    assert costs.floor_s(10.0, 40.0) == pytest.approx(expected)
