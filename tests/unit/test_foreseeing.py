"""Growing a draft further without a model: which outcomes are guessed, what grows below them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.backends.foreseeing import foresee
from forerun.backends.growing import grow
from forerun.draft import Draw
from forerun.forecast import ForecastPlan, subtree
from forerun.options import SamplingParams
from forerun.protocols import NUM_MARGINS, NUM_RANKS, Growth, GrowthPlan, Sampler
from forerun.tree import TokenTree

VOCAB = 12
SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Model:
    """Logits that are a hash of a row's number and its text from `made` on; notes what is read."""

    def __init__(self, made=()):
        self.made, self.asked = tuple(made), []

    def __call__(self, rows, leaves):
        self.asked.append(list(leaves))
        for index, node in leaves:
            nodes = rows[index].nodes
            assert node == 0 or nodes[nodes[node].parent].is_expanded or len(self.asked) == 2
        return np.stack([self.line(index, rows[index].path(node)) for index, node in leaves])

    def line(self, index, path):
        rng = np.random.default_rng([index, *self.made, *path])
        return (1.5 * rng.normal(size=VOCAB)).astype(np.float32)


def below_of(growth, num_rows, *, budget=4, depth=3, temperature=0.8, seed=1, num_made=0):
    acceptance = np.random.default_rng(seed).random((num_rows, NUM_RANKS, NUM_MARGINS))
    return GrowthPlan(
        catch_up=np.arange(num_rows, dtype=np.int32) % VOCAB,
        catch_up_starts=np.arange(num_rows + 1, dtype=np.int32),
        committed=np.arange(num_rows, dtype=np.int32) + num_made,
        block_table=np.zeros((num_rows, 1), np.int32),
        samplers=[Sampler(SamplingParams(temperature=temperature), seed + at) for at in range(9)],
        budgets=np.full(num_rows, budget, np.int32),
        depths=np.full(num_rows, depth, np.int32),
        growth=growth,
        acceptance=acceptance.astype(np.float32),
    )


def tree_of(row, parents, seed=0):
    tokens = np.random.default_rng([row, seed]).permutation(VOCAB)[: len(parents) + 1]
    tokens[0] = row % VOCAB
    return TokenTree(tokens.astype(np.int32), np.array([-1, *parents], np.int32))


def forecast_of(below, trees, *, num_branches=5, num_offers=4, deepest=0, exits=None, per_exit=0):
    if exits is None:
        exits = [range(len(tree)) for tree in trees]
    return ForecastPlan(
        below,
        trees,
        [np.array(list(one), np.int32) for one in exits],
        np.full(len(trees), num_branches, np.int32),
        num_offers,
        np.array([deepest], np.int32),
        per_exit=per_exit,
    )


@st.composite
def growths(draw):
    parents = None
    if draw(st.booleans()):
        parents = tuple(draw(st.integers(0, node)) for node in range(draw(st.integers(1, 6))))
    least = draw(st.sampled_from([0.0, 0.1, 0.3]))
    how = draw(st.sampled_from([Draw.COUPLED, Draw.POINT]))
    return Growth(how, parents, draw(st.integers(1, 3)), draw(st.integers(1, 3)), least)


TREES = st.lists(
    st.lists(st.integers(0, 20), max_size=6).map(
        lambda numbers: [number % (at + 1) for at, number in enumerate(numbers)]
    ),
    min_size=1,
    max_size=3,
)


def guesses_of(draft, num_verified):
    parents = draft.tree.parents.tolist()
    return [at for at in range(num_verified, len(parents)) if parents[at] < num_verified]


@SETTINGS
@given(growths(), TREES, st.sampled_from([0.0, 0.8]), st.integers(0, 99))
def test_given_any_draft_then_it_stands_first_and_guesses_are_what_it_lacks(
    growth, shapes, temperature, seed
):
    trees = [tree_of(row, parents, seed) for row, parents in enumerate(shapes)]
    below = below_of(growth, len(trees), temperature=temperature, seed=seed)
    exits = [[node for node in range(len(tree)) if (node + seed) % 3] for tree in trees]

    drafts = foresee(forecast_of(below, trees, exits=exits), Model())

    # that parents come first and siblings differ is checked where a `TokenTree` is built
    for draft, tree, own in zip(drafts, trees, exits, strict=True):
        assert draft.tree.tokens[: len(tree)].tolist() == tree.tokens.tolist()
        assert draft.tree.parents[: len(tree)].tolist() == tree.parents.tolist()
        guesses = guesses_of(draft, len(tree))
        assert len(guesses) <= 5
        assert {int(draft.tree.parents[guess]) for guess in guesses} <= set(own)
        for guess in guesses:
            branch = subtree(draft, guess, 0)
            assert branch.num_drafted <= 4
            assert int(branch.tree.depths().max()) <= 3


@SETTINGS
@given(growths(), st.integers(0, 99))
def test_given_a_guess_then_below_it_stands_what_would_be_drafted_after_it(growth, seed):
    tree = tree_of(0, (0, 0, 1), seed)
    below = below_of(growth, 1, seed=seed)
    (draft,) = foresee(forecast_of(below, [tree]), Model())

    for guess in guesses_of(draft, len(tree)):
        made = draft.tree.tokens[draft.tree.path(guess)[1:]].tolist()
        later = replace(
            below,
            catch_up=np.array(made[-1:], np.int32),
            committed=np.array([len(made)], np.int32),
        )
        (expected,) = grow(later, Model(made))

        found = subtree(draft, guess, made[-1])
        assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
        assert found.tree.parents.tolist() == expected.tree.parents.tolist()


def test_control_given_another_position_then_another_draft_follows():
    tree = tree_of(0, (0, 0, 1))
    below = below_of(Growth(Draw.COUPLED, (0, 1, 2)), 1)
    (draft,) = foresee(forecast_of(below, [tree]), Model())
    guess = guesses_of(draft, len(tree))[0]
    made = draft.tree.tokens[draft.tree.path(guess)[1:]].tolist()
    shifted = replace(
        below,
        catch_up=np.array(made[-1:], np.int32),
        committed=np.array([len(made) + 1], np.int32),
    )

    (other,) = grow(shifted, Model(made))

    assert other.tree.tokens[1:].tolist() != subtree(draft, guess, 0).tree.tokens[1:].tolist()


@pytest.mark.parametrize("draw", [Draw.COUPLED, Draw.POINT])
def test_given_scores_then_they_are_chances_of_paths_and_the_best_outcomes_are_guessed(draw):
    # given a chain of what the model likes best, then of what it likes least
    below = below_of(Growth(draw, (0, 1)), 1, temperature=0.0)
    best = int(np.argmax(Model().line(0, [])))
    worst = int(np.argmin(Model().line(0, [best])))
    tree = TokenTree.chain(np.array([0, best, worst]))

    (every,) = foresee(forecast_of(below, [tree], num_branches=99, num_offers=3), Model())
    (some,) = foresee(forecast_of(below, [tree], num_branches=3, num_offers=3), Model())

    # then a listed token counts by rank and margin, another as the worst of all
    assert every.ranks[:3].tolist() == [-1, 0, 3]
    if draw is Draw.COUPLED:
        ordered = np.sort(Model().line(0, []))
        assert every.margins[1] == pytest.approx(ordered[-1] - ordered[-2], rel=1e-6)
        assert every.margins[2] == -np.inf
        unlisted = float(below.acceptance[0, 3, 0])
        assert every.scores[2] == pytest.approx(every.scores[1] * unlisted)
    else:
        weights = np.exp(Model().line(0, []).astype(float))
        assert every.scores[1] == pytest.approx(weights[best] / weights.sum(), rel=1e-5)
        assert 0 < every.scores[2] < every.scores[1]
    # ... two of three children are guesses where one is drafted, else all
    guesses = guesses_of(every, 3)
    assert [int(every.tree.parents[at]) for at in guesses] == [0, 0, 1, 1, 1, 2, 2, 2]
    # ... and the likeliest of them are those of a smaller number
    scores = sorted((float(every.scores[at]) for at in guesses), reverse=True)
    found = sorted((float(some.scores[at]) for at in guesses_of(some, 3)), reverse=True)
    assert found == scores[:3]


@pytest.mark.parametrize("draw", [Draw.COUPLED, Draw.POINT])
def test_given_a_limit_of_an_exit_then_each_has_its_own_best_guess(draw):
    # given a drafted token that the model would hardly draft, and a verdict at either end
    below = below_of(Growth(draw, (0, 1)), 1, temperature=0.0)
    worst = int(np.argmin(Model().line(0, [])))
    tree = TokenTree.chain(np.array([0, worst]))
    every, anywhere, each = (
        foresee(forecast_of(below, [tree], num_branches=most, per_exit=per_exit), Model())[0]
        for most, per_exit in ((99, 0), (2, 0), (2, 1))
    )

    def exits_of(draft):
        return [int(draft.tree.parents[at]) for at in guesses_of(draft, 2)]

    def best_below(draft, node):
        found = [at for at in guesses_of(draft, 2) if draft.tree.parents[at] == node]
        return int(draft.tree.tokens[max(found, key=lambda at: float(draft.scores[at]))])

    # then each has one guess, its likeliest; without the limit both are at the likelier one
    assert exits_of(each) == [0, 1]
    assert [best_below(each, node) for node in (0, 1)] == [best_below(every, n) for n in (0, 1)]
    assert exits_of(anywhere) == [0, 0]


@SETTINGS
@given(growths(), TREES, st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_given_limits_then_no_likelier_outcome_is_left_out_but_for_them(
    growth, shapes, per_exit, num_branches, seed
):
    trees = [tree_of(row, parents, seed) for row, parents in enumerate(shapes)]
    below = below_of(growth, len(trees), seed=seed)
    limits = {"num_branches": num_branches, "per_exit": per_exit}

    every = foresee(forecast_of(below, trees, num_branches=999), Model())
    some = foresee(forecast_of(below, trees, **limits), Model())

    for tree, possible, chosen in zip(trees, every, some, strict=True):
        left = Counter(dict.fromkeys(range(len(tree)), per_exit))
        expected, scores = [], possible.scores.astype(float)
        for at in sorted(guesses_of(possible, len(tree)), key=lambda at: -scores[at]):
            exit_node = int(possible.tree.parents[at])
            if left[exit_node] and len(expected) < num_branches:
                left[exit_node] -= 1
                expected.append((exit_node, int(possible.tree.tokens[at])))
        guesses = guesses_of(chosen, len(tree))
        found = [(int(chosen.tree.parents[at]), int(chosen.tree.tokens[at])) for at in guesses]
        assert sorted(found) == sorted(expected)


@SETTINGS
@given(growths(), TREES, st.integers(1, 3))
def test_given_a_cut_then_branches_are_as_those_of_fewer_levels(growth, shapes, deepest):
    trees = [tree_of(row, parents) for row, parents in enumerate(shapes)]
    cut_model, model = Model(), Model()

    cut = foresee(forecast_of(below_of(growth, len(trees)), trees, deepest=deepest), cut_model)
    planned = foresee(forecast_of(below_of(growth, len(trees), depth=deepest), trees), model)

    assert cut_model.asked == model.asked
    for one, other in zip(cut, planned, strict=True):
        assert one.tree.tokens.tolist() == other.tree.tokens.tolist()
        assert one.tree.parents.tolist() == other.tree.parents.tolist()


@SETTINGS
@given(growths(), TREES)
def test_given_a_pass_a_level_then_the_tree_is_the_same(growth, shapes):
    trees = [tree_of(row, parents) for row, parents in enumerate(shapes)]
    plan = forecast_of(below_of(growth, len(trees)), trees)
    model = Model()

    at_once = foresee(plan, Model())
    by_level = foresee(plan, model, by_level=True)

    deepest = max(int(tree.depths().max()) for tree in trees)
    for one, other in zip(at_once, by_level, strict=True):
        assert one.tree.tokens.tolist() == other.tree.tokens.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        assert other.num_passes - one.num_passes == deepest
        assert other.num_passes == len(model.asked)


def test_given_no_exit_or_no_room_then_the_draft_stays_alone():
    tree = tree_of(0, (0, 1))
    growth = Growth(Draw.COUPLED, None, 2, 2)
    for plan in (
        forecast_of(below_of(growth, 1), [tree], exits=[[]]),
        forecast_of(below_of(growth, 1), [tree], num_branches=0),
    ):
        (draft,) = foresee(plan, Model())
        assert len(draft.tree) == 3
        assert draft.num_passes == 1
    # ... and without depth there is nothing below a guess
    (draft,) = foresee(forecast_of(below_of(growth, 1, depth=0), [tree]), Model())
    assert len(draft.tree) == 8
    assert draft.expanded.tolist() == [0, 1, 2]


def test_given_a_torch_model_then_below_a_guess_stands_what_it_drafts_later(tiny_checkpoint_dir):
    torch = pytest.importorskip("torch")
    from forerun.backends.torch.backend import TorchBackend
    from forerun.models.weights import open_checkpoint

    torch.set_num_threads(1)
    backend = TorchBackend(open_checkpoint(tiny_checkpoint_dir("qwen3", 0)), num_blocks=1)
    below = below_of(Growth(Draw.COUPLED, (0, 1)), 1)
    below = replace(below, catch_up=np.array([5], np.int32))
    tree = TokenTree.chain(np.array([5, 7, 9]))

    (draft,) = backend.foresee(forecast_of(below, [tree]))

    guesses = guesses_of(draft, 3)
    assert len(guesses) == 5
    for guess in guesses:
        made = draft.tree.tokens[draft.tree.path(guess)].tolist()
        text = {"catch_up": np.array(made, np.int32), "catch_up_starts": np.array([0, len(made)])}
        (later,) = backend.grow(replace(below, **text))
        assert subtree(draft, guess, made[-1]).tree.tokens.tolist() == later.tree.tokens.tolist()
