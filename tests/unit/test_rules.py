"""The sampled rules on single cases and edges; tests/exact has the proof that they are exact."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from forerun.draft import Draft, Draw, Verdict
from forerun.errors import DrafterError
from forerun.noise import Purpose, RoundNoise, pick
from forerun.protocols import Reads
from forerun.rules.block import Block
from forerun.rules.kseq import KSeq, least_ratio
from forerun.rules.rejection import Rejection
from forerun.rules.traversal import Traversal
from forerun.shapes.draw import draw_children
from forerun.tree import TokenTree

RULES = (Rejection(), Block(), Traversal(), KSeq())
ALL = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
NAN = float("nan")


@dataclass
class FixedNoise:
    """Every number is `u`, and what was asked is remembered."""

    u: float = 0.5
    asked: list[tuple] = field(default_factory=list)

    def accepts(self, node, index, p, q):
        self.asked.append((Purpose.ACCEPT, node, index))
        return self.u * q < p

    def picks(self, purpose, node, index, weights):
        assert weights.dtype == np.float64
        self.asked.append((purpose, node, index))
        return pick(weights, self.u)


def chain(tokens, laws, draws=None):
    """A sampled chain below pending token 0; `laws` of the nodes that have a child."""
    return Draft(
        TokenTree.chain([0, *tokens]),
        Draw.SAMPLED,
        np.arange(len(laws), dtype=np.int32),
        np.array(laws, np.float32).reshape(len(laws), -1),
        None if draws is None else np.array(draws, np.int32),
    )


def siblings(tokens, law, draw, draws=None):
    tree = TokenTree(np.array([0, *tokens], np.int32), np.array([-1] + [0] * len(tokens), np.int32))
    row = np.array([law], np.float32)
    repeated = None if draws is None else np.array([draws], np.int32)
    return Draft(tree, draw, np.array([0], np.int32), row, repeated)


def laws(*rows):
    return np.array(rows, np.float32)


# --- edges ----------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("draw", list(Draw))
def test_given_one_node_then_its_law_is_sampled_whatever_the_draw(rule, draw):
    plain = Draft(TokenTree.chain([7]), draw)

    assert rule.reads is Reads.LAWS
    assert rule.judge(plain, laws([0.25, 0.5, 0.25]), FixedNoise(0.9)) == Verdict((0,), 2)


@ALL
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_given_p_of_zero_then_a_draft_is_never_kept(rule, u):
    draft = chain([1], [[0.5, 0.5]])

    assert rule.judge(draft, laws([1, 0], [0, 1]), FixedNoise(u)) == Verdict((0,), 0)


@ALL
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_given_p_of_one_then_a_draft_of_it_is_always_kept(rule, u):
    draft = chain([1], [[0.5, 0.5]])

    assert rule.judge(draft, laws([0, 1], [1, 0]), FixedNoise(u)) == Verdict((0, 1), 0)


@ALL
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_given_equal_laws_then_all_of_a_chain_is_kept(rule, u):
    q = [[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]
    draft = chain([2, 1], q)

    assert rule.judge(draft, laws(*q, [0, 1, 0]), FixedNoise(u)) == Verdict((0, 1, 2), 1)


@ALL
def test_given_one_hot_laws_then_greedy_is_the_same_formula(rule):
    draft = chain([1, 2, 0], np.eye(3)[[1, 2, 0]])

    verdict = rule.judge(draft, np.eye(3, dtype=np.float32)[[1, 0, 2, 2]], FixedNoise(0.0))

    assert verdict == Verdict((0, 1), 0)


@ALL
@pytest.mark.parametrize("broken", [[NAN, 0.5], [0.0, 0.0], [float("inf"), 0.0]])
def test_given_a_node_on_the_path_without_a_law_then_there_is_no_bonus(rule, broken):
    kept = chain([1], [[0.0, 1.0]])

    assert rule.judge(kept, laws([0, 1], broken), FixedNoise()) == Verdict((0, 1), -1)
    assert rule.judge(kept, laws(broken, [0, 1]), FixedNoise()) == Verdict((0,), -1)


@ALL
def test_given_a_node_off_the_path_without_a_law_then_nothing_is_lost(rule):
    refused = chain([1], [[0.5, 0.5]])

    assert rule.judge(refused, laws([1, 0], [NAN, NAN]), FixedNoise()) == Verdict((0,), 0)


@ALL
def test_given_a_broken_draft_law_then_its_draws_are_not_looked_at(rule):
    draft = chain([1], [[NAN, 1.0]])

    assert rule.judge(draft, laws([0, 1], [1, 0]), FixedNoise()) == Verdict((0,), 1)


def test_given_an_exhausted_support_then_the_rest_of_the_target_is_emitted():
    draft = siblings([1, 2], [0.0, 0.7, 0.3, 0.0], Draw.WITHOUT_REPLACEMENT)
    target = laws([0.5, 0.0, 0.0, 0.5], [1, 0, 0, 0], [1, 0, 0, 0])

    for rule in (Rejection(), Traversal()):
        assert rule.judge(draft, target, FixedNoise(0.4)) == Verdict((0,), 0)
        assert rule.judge(draft, target, FixedNoise(0.6)) == Verdict((0,), 3)


def test_given_top_and_one_then_an_only_child_was_sampled_and_of_two_the_last_one():
    target = laws([0.4, 0.4, 0.2], [1, 0, 0], [1, 0, 0])
    q = [0.8, 0.1, 0.1]

    alone = Rejection().judge(siblings([0], q, Draw.TOP_AND_ONE), target[:2], FixedNoise(0.45))
    pair = Rejection().judge(siblings([0, 1], q, Draw.TOP_AND_ONE), target, FixedNoise(0.45))

    assert alone.path == (0, 1)  # 0.45 * 0.8 < 0.4
    assert pair.path == (0, 2)  # 0.45 > 0.4, then 0.45 * 0.5 < 0.4 / 0.6


def test_given_point_siblings_then_each_is_kept_by_its_own_p():
    draft = Draft(siblings([2, 0], [0] * 3, Draw.POINT).tree, Draw.POINT)
    target = laws([0.3, 0.5, 0.2], [1, 0, 0], [0, 1, 0])

    assert Rejection().judge(draft, target, FixedNoise(0.1)) == Verdict((0, 1), 0)
    assert Rejection().judge(draft, target, FixedNoise(0.3)) == Verdict((0, 2), 1)
    assert Rejection().judge(draft, target, FixedNoise(0.6)) == Verdict((0,), 1)


@pytest.mark.parametrize("rule", [Rejection(), KSeq()])
def test_given_repeated_draws_then_each_is_judged_and_one_child_follows(rule):
    noise = FixedNoise(0.9)
    draft = siblings([1], [0.5, 0.5], Draw.SAMPLED, [1, 1, -1])

    verdict = rule.judge(draft, laws([0.9, 0.1], [1, 0]), noise)

    assert verdict == Verdict((0,), 0)
    assert noise.asked == [(Purpose.ACCEPT, 0, 0), (Purpose.ACCEPT, 0, 1), (Purpose.BONUS, 0, 0)]


@pytest.mark.parametrize("rule", [Rejection(), KSeq()])
def test_given_a_draw_without_a_node_then_it_is_the_last_token_where_it_is_kept(rule):
    draft = siblings([0], [0.5, 0.5], Draw.SAMPLED, [0, 1])

    assert rule.judge(draft, laws([0, 1], [1, 0]), FixedNoise()) == Verdict((0,), 1)


def test_given_laws_that_do_not_sum_to_one_then_they_are_what_they_are_divided_by():
    draft = chain([1], [[2.0, 2.0]])

    assert Rejection().judge(draft, laws([6, 2], [1, 0]), FixedNoise(0.49)).path == (0, 1)
    assert Rejection().judge(draft, laws([6, 2], [1, 0]), FixedNoise(0.51)).path == (0,)


def test_given_k_draws_then_the_ratio_is_between_one_and_k_and_leaves_no_token_too_much():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p, q = rng.dirichlet(np.full(6, 0.3), 2)
        ratio = least_ratio(p, q, 3)
        kept = np.minimum(q, p / ratio)
        weight = sum((1 - kept.sum()) ** power for power in range(3))
        assert 1.0 <= ratio <= 3.0
        assert np.all(kept * weight <= p + 1e-15)
    assert least_ratio(p, p, 3) == pytest.approx(1.0, abs=1e-4)
    assert least_ratio(p, q, 1) == 1.0


# --- counters -------------------------------------------------------------------------------------


@ALL
def test_given_a_round_then_no_counter_is_asked_twice(rule):
    rng = np.random.default_rng(2)
    q, p = rng.dirichlet(np.ones(4), 5), rng.dirichlet(np.ones(4), 6)
    for u in (0.05, 0.5, 0.95):
        noise = FixedNoise(u)
        rule.judge(chain([1, 2, 0, 3, 1], q), p.astype(np.float32), noise)
        assert len(noise.asked) == len(set(noise.asked))


def test_given_a_chain_then_traversal_says_what_block_says():
    rng = np.random.default_rng(3)
    for seed in range(200):
        q, p = rng.dirichlet(np.full(4, 0.5), 3), rng.dirichlet(np.full(4, 0.5), 4)
        noise = RoundNoise(seed, 0, 5)
        drawn = [draw_children(row, 1, Draw.SAMPLED, at, noise)[0] for at, row in enumerate(q)]
        draft = chain(drawn, q)
        assert Block().judge(draft, p, noise) == Traversal().judge(draft, p, noise)


# --- what is refused ------------------------------------------------------------------------------


@ALL
def test_given_coupled_drafts_then_they_are_refused(rule):
    with pytest.raises(DrafterError, match="use match"):
        rule.judge(Draft(TokenTree.chain([0, 1]), Draw.COUPLED), laws([1, 0]), FixedNoise())


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: type(rule).__name__)
def test_given_tokens_without_a_law_then_only_rejection_takes_them(rule):
    with pytest.raises(DrafterError, match="use match"):
        rule.judge(Draft(TokenTree.chain([0, 1]), Draw.POINT), laws([1, 0]), FixedNoise())


@ALL
def test_given_sampled_children_without_their_law_then_they_are_refused(rule):
    with pytest.raises(DrafterError, match="without the law"):
        rule.judge(Draft(TokenTree.chain([0, 1]), Draw.SAMPLED), laws([1, 0]), FixedNoise())


@pytest.mark.parametrize("rule", [Block(), Traversal()])
def test_given_independent_siblings_then_rules_for_one_draw_refuse_them(rule):
    draft = siblings([1], [0.5, 0.5], Draw.SAMPLED, [1, 1])

    with pytest.raises(DrafterError, match="at most 1 draw"):
        rule.judge(draft, laws([1, 0], [1, 0]), FixedNoise())


# --- numpy and torch ------------------------------------------------------------------------------


@ALL
def test_given_the_same_vectors_then_numpy_and_torch_say_the_same(rule):
    rng = np.random.default_rng(4)
    for seed in range(50):
        noise = RoundNoise(seed, 0, 3)
        target = rng.dirichlet(np.full(9, 0.4), 4).astype(np.float32)
        q = (0.5 * target + 0.5 * rng.dirichlet(np.ones(9), 4)).astype(np.float32)[:3]
        drawn = [draw_children(row, 1, Draw.SAMPLED, at, noise)[0] for at, row in enumerate(q)]
        draft = chain(drawn, q)

        verdict = rule.judge(draft, target, noise)

        assert rule.judge(draft, torch.from_numpy(target), noise) == verdict
        assert rule.judge(draft, torch.from_numpy(target.astype(np.float64)), noise) == verdict


@pytest.mark.parametrize("rule", [Rejection(), Traversal()])
def test_given_the_same_tree_then_numpy_and_torch_say_the_same(rule):
    rng = np.random.default_rng(5)
    for seed in range(50):
        q, p = rng.dirichlet(np.full(5, 0.5)), rng.dirichlet(np.full(5, 0.5), 4)
        noise = RoundNoise(seed, 0, 3)
        drawn = draw_children(q, 3, Draw.WITHOUT_REPLACEMENT, 0, noise)
        draft = siblings(drawn, q, Draw.WITHOUT_REPLACEMENT)
        assert rule.judge(draft, p, noise) == rule.judge(draft, torch.from_numpy(p), noise)


# --- draws ----------------------------------------------------------------------------------------


def test_given_deterministic_draws_then_the_likeliest_come_first_and_lowest_ids_on_ties():
    law = np.float32([0.2, 0.3, 0.3, 0.0, 0.2])
    noise = FixedNoise()

    assert draw_children(law, 3, Draw.POINT, 0, noise) == [1, 2, 0]
    assert noise.asked == []
    assert draw_children(law, 3, Draw.TOP_AND_ONE, 4, noise) == [1, 2, 4]
    assert noise.asked == [(Purpose.DRAFT, 4, 2)]
    assert draw_children(law, 1, Draw.TOP_AND_ONE, 0, FixedNoise(0.0)) == [0]


def test_given_a_law_with_few_tokens_then_draws_stop_where_it_is_exhausted():
    law = np.float32([0, 0.5, 0, 0.5])

    for draw in (Draw.WITHOUT_REPLACEMENT, Draw.TOP_AND_ONE, Draw.POINT):
        assert draw_children(law, 4, draw, 0, FixedNoise(0.1)) == [1, 3]
    assert draw_children(law, 4, Draw.SAMPLED, 0, FixedNoise(0.1)) == [1, 1, 1, 1]


def test_given_a_broken_law_then_nothing_is_drawn():
    for law in ([NAN, 1.0], [0.0, 0.0]):
        assert draw_children(np.float32(law), 2, Draw.SAMPLED, 0, FixedNoise()) == []


def test_given_coupled_children_then_there_is_nothing_to_draw():
    with pytest.raises(DrafterError, match="scores"):
        draw_children(np.float32([1]), 1, Draw.COUPLED, 0, FixedNoise())
