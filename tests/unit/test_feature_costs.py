"""What drafters on features cost, counted: against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forerun.models.drafter_spec import BlockSpec, EagleSpec
from forerun.models.spec import ModelSpec, Rope
from forerun.tools.costs import RoundCount, decode_costs, pass_bytes
from forerun.tools.feature_costs import costs_of, drafting_bytes, node_flops

TARGET = ModelSpec(
    family="qwen3",
    hidden=64,
    num_layers=6,
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
BLOCK = BlockSpec(
    body=replace(TARGET, num_layers=2),
    block_len=4,
    is_shifted=True,
    tap_layers=(1, 2, 3),
    target_hidden=64,
    num_target_layers=6,
    mask_id=1,
    windows=(0, 0),
    is_causal=(False, False),
    markov_rank=8,
)
EAGLE = EagleSpec(
    body=replace(TARGET, num_layers=1, qk_norm=False, vocab=100),
    tap_layers=(1, 2, 3),
    target_hidden=64,
    num_target_layers=6,
    target_vocab=300,
    has_token_map=True,
)
FC = 64 * 3 * 64
LAYER = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128  # weights of a block drafter's
PAIR = 128 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128  # and of EAGLE-3's


def test_a_block_reads_its_weights_the_borrowed_head_and_the_context() -> None:
    norms = 2 * (2 * 64 + 2 * 32) + 2 * 64
    weights = FC + 2 * LAYER + norms + 300 * 8 + 300 * 64
    assert drafting_bytes(BLOCK, 0) == 2 * weights
    assert drafting_bytes(BLOCK, 10) == 2 * (weights + 2 * 2 * 32 * 10)
    # a small model is counted as ever
    assert drafting_bytes(TARGET, 10) == pass_bytes(TARGET, 10)


def test_a_block_of_three_drafts_has_three_slots_or_four() -> None:
    rounds = [RoundCount(3, 2, 10, 1)]
    absorbed = 2 * (FC + 64 * 2 * 2 * 32)
    for spec, slots in ((BLOCK, 3), (replace(BLOCK, is_shifted=False), 4)):
        attention = 2 * 64 * (10 + slots)  # queries by keys, weights by values
        slot = 2 * (2 * (LAYER + attention) + 300 * 64)
        costs = costs_of(rounds, TARGET, spec)
        assert costs.draft_flops == absorbed + slots * slot + 3 * 2 * 300 * 8
        assert costs.draft_bytes == drafting_bytes(spec, 10)
        assert costs.target_flops == decode_costs(rounds, TARGET, None).target_flops


def test_a_block_that_knows_some_tokens_reads_the_rows_of_these_only() -> None:
    # given: 100 of 300 tokens, so the head is its own, and 100 rows long, as the Markov head's
    few = replace(BLOCK, draft_vocab=100)
    # when
    saved = drafting_bytes(BLOCK, 10) - drafting_bytes(few, 10)
    # then: a step saves 200 rows of both
    assert saved == 2 * 200 * (64 + 8)
    rounds = [RoundCount(3, 2, 10, 1)]
    flops = [costs_of(rounds, TARGET, spec).draft_flops for spec in (BLOCK, few)]
    assert flops[0] - flops[1] == 3 * 2 * 200 * (64 + 8)
    assert node_flops(BLOCK, 10) - node_flops(few, 10) == 2 * 200 * (64 + 8)
    # Control: a head of its own over all tokens saves nothing.
    assert drafting_bytes(replace(BLOCK, draft_vocab=300), 10) == drafting_bytes(BLOCK, 10)


def test_a_tree_is_no_more_than_a_block_but_for_its_markov_products() -> None:
    def flops(num_drafted: int) -> float:
        return costs_of([RoundCount(num_drafted, 2, 10, 1)], TARGET, BLOCK).draft_flops

    assert flops(16) - flops(4) == 12 * 2 * 300 * 8
    assert flops(4) - flops(3) > 2 * 2 * LAYER


def test_what_was_kept_while_nothing_was_drafted_is_absorbed_later() -> None:
    rounds = [RoundCount(0, 1, 10, 0), RoundCount(0, 1, 11, 0), RoundCount(3, 1, 12, 1)]
    alone = costs_of([RoundCount(3, 1, 12, 1)], TARGET, BLOCK)
    costs = costs_of(rounds, TARGET, BLOCK)
    assert costs.draft_flops - alone.draft_flops == 2 * 2 * (FC + 64 * 2 * 2 * 32)


def test_eagle_reads_its_layer_and_head_every_pass_and_fuses_in_the_first() -> None:
    rounds = [RoundCount(3, 2, 10, 3)]
    costs = costs_of(rounds, TARGET, EAGLE)
    layer = 2 * (PAIR + 2 * 64 * 10)
    # one token was kept before; two of three drafts are read on
    assert costs.draft_flops == 2 * FC + layer + 3 * 2 * 100 * 64 + 2 * layer
    assert costs.draft_bytes == 3 * drafting_bytes(EAGLE, 10) - 2 * 2 * FC


@pytest.mark.parametrize("spec", [None, TARGET])
def test_without_features_the_counts_are_the_old_ones(spec: ModelSpec | None) -> None:
    rounds = [RoundCount(3, 2, 10, 3), RoundCount(0, 1, 12, 0)]
    assert costs_of(rounds, TARGET, spec) == decode_costs(rounds, TARGET, spec)
