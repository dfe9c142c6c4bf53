"""Growing a tree without a model: what is asked of `read`, and what becomes of its answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.backends.growing import grow
from forerun.composition import LONGEST
from forerun.draft import Draw
from forerun.options import SamplingParams
from forerun.protocols import NUM_MARGINS, NUM_RANKS, Growth, GrowthPlan, Sampler

VOCAB = 12
SAMPLED = (Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT, Draw.TOP_AND_ONE)
# A starved machine is slow at drawing examples, too.
SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Model:
    """Logits that are a hash of a row's text; notes which leaves were asked for."""

    def __init__(self, scale=1.5):
        self.scale = scale
        self.asked = []

    def line(self, index, path):
        rng = np.random.default_rng([index, *path])
        return (self.scale * rng.normal(size=VOCAB)).astype(np.float32)

    def __call__(self, rows, leaves):
        self.asked.append(list(leaves))
        for index, node in leaves:
            nodes = rows[index].nodes
            assert node == 0 or nodes[nodes[node].parent].is_expanded
        return np.stack([self.line(index, rows[index].path(node)) for index, node in leaves])


def plan_of(growth, budgets, depths, *, temperature=0.8, seed=1, acceptance=None):
    num_rows = len(budgets)
    if acceptance is None:
        random = np.random.default_rng(seed).random((num_rows, NUM_RANKS, NUM_MARGINS))
        acceptance = random.astype(np.float32)
    starts = np.arange(0, 2 * num_rows + 1, 2, dtype=np.int32)
    params = SamplingParams(temperature=temperature)
    return GrowthPlan(
        catch_up=np.arange(2 * num_rows, dtype=np.int32) % VOCAB,
        catch_up_starts=starts,
        committed=np.arange(num_rows, dtype=np.int32),
        block_table=np.zeros((num_rows, 1), np.int32),
        samplers=[Sampler(params, seed + row) for row in range(num_rows)],
        budgets=np.array(budgets, np.int32),
        depths=np.array(depths, np.int32),
        growth=growth,
        acceptance=acceptance,
    )


@st.composite
def growths(draw, how=None):
    how = draw(st.sampled_from(list(Draw))) if how is None else how
    num_nodes = draw(st.integers(1, 10))
    parents = tuple(draw(st.integers(0, node)) for node in range(num_nodes))
    if how not in SAMPLED and draw(st.booleans()):
        parents = None
    least = draw(st.sampled_from([0.0, 0.05, 0.3]))
    return Growth(how, parents, draw(st.integers(1, 5)), draw(st.integers(1, 6)), least)


ROOM = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=3)
TEMPERATURES = st.sampled_from([0.0, 0.7, 1.3])


def grown(growth, room, temperature=0.8, seed=1, acceptance=None):
    """Drafts, the plan they grew by and the model that was read."""
    budgets, depths = zip(*room, strict=True)
    plan = plan_of(
        growth, budgets, depths, temperature=temperature, seed=seed, acceptance=acceptance
    )
    model = Model()
    return grow(plan, model), plan, model


# --- every way to grow ----------------------------------------------------------------------------


@SETTINGS
@given(growths(), ROOM, TEMPERATURES, st.integers(0, 99))
def test_given_any_growth_then_drafts_are_trees_within_budget_and_depth(
    growth, room, temperature, seed
):
    drafts, plan, model = grown(growth, room, temperature, seed)

    # that parents come first and siblings differ is checked where a `TokenTree` is built
    for row, (draft, (budget, depth)) in enumerate(zip(drafts, room, strict=True)):
        assert draft.draw is growth.draw
        assert draft.num_drafted <= budget
        assert int(draft.tree.depths().max()) <= depth
        assert draft.tree.tokens[0] == plan.catch_up[2 * row + 1]
    assert len(model.asked) <= max(1, min(LONGEST, max(depth for _, depth in room)))
    for leaves in model.asked:
        assert len(set(leaves)) == len(leaves)


@SETTINGS
@given(growths(), ROOM, TEMPERATURES, st.integers(0, 99))
def test_given_a_draft_then_children_below_a_node_are_those_it_offered(
    growth, room, temperature, seed
):
    drafts, _, _ = grown(growth, room, temperature, seed)

    for draft in drafts:
        parents = draft.tree.parents.tolist()
        # who has children was read
        assert set(parents[1:]) <= set(draft.expanded.tolist()) if len(parents) > 1 else True
        # siblings stand in the order of their ranks
        for node in set(parents[1:]):
            ranks = [draft.ranks[at] for at, parent in enumerate(parents) if parent == node]
            assert ranks == sorted(ranks)


@SETTINGS
@given(growths(), ROOM, TEMPERATURES, st.integers(0, 99))
def test_given_rows_together_then_each_grows_as_it_does_alone(growth, room, temperature, seed):
    together, plan, _ = grown(growth, room, temperature, seed)

    budgets, depths = zip(*room, strict=True)
    for row, draft in enumerate(together):
        # alone: the others have no room
        budget = [size if at == row else 0 for at, size in enumerate(budgets)]
        alone = plan_of(
            growth, budget, depths, temperature=temperature, seed=seed,
            acceptance=plan.acceptance,
        )  # fmt: skip
        other = grow(alone, Model())[row]
        assert other.tree.tokens.tolist() == draft.tree.tokens.tolist()
        assert other.tree.parents.tolist() == draft.tree.parents.tolist()


@SETTINGS
@given(st.sampled_from(SAMPLED).flatmap(growths), ROOM, st.integers(0, 99))
def test_given_sampled_children_then_the_law_they_carry_could_draw_them(growth, room, seed):
    drafts, _, _ = grown(growth, room, 0.9, seed)

    for draft in drafts:
        assert len(draft.expanded) == len(draft.law)
        laws = dict(zip(draft.expanded.tolist(), draft.law, strict=True))
        for node, parent in enumerate(draft.tree.parents.tolist()[1:], start=1):
            assert laws[parent][draft.tree.tokens[node]] > 0


@SETTINGS
@given(growths(), st.integers(0, 99))
def test_given_a_given_tree_then_the_draft_is_it_as_far_as_laws_reach(growth, seed):
    if growth.parents is None or growth.draw is Draw.SAMPLED or growth.least > 0:
        return  # these may leave nodes out
    drafts, _, _ = grown(growth, [(12, 12)], 1.3, seed)

    # every node of a full law has as many children as the tree says; order is by level
    sizes = sorted(growth.parents.count(node) for node in range(len(growth.parents) + 1))
    made = drafts[0].tree.parents.tolist()
    if max(sizes) <= VOCAB:
        assert sorted(made.count(node) for node in range(len(made))) == sizes


def test_given_no_room_then_one_read_and_a_tree_of_one_node():
    drafts, _, model = grown(Growth(Draw.COUPLED, None, 3, 3), [(0, 4), (0, 4)])

    assert [draft.num_drafted for draft in drafts] == [0, 0]
    assert len(model.asked) == 1  # the text is read in any case: its K/V is wanted


def test_given_logits_that_are_no_numbers_then_nothing_grows_below_them():
    def broken(rows, leaves):
        return np.full((len(leaves), VOCAB), np.nan, np.float32)

    for how in Draw:
        parents = (0, 1) if how in SAMPLED else None
        plan = plan_of(Growth(how, parents, 2, 2), [4], [3])
        assert grow(plan, broken)[0].num_drafted == 0


# --- best first against brute force ---------------------------------------------------------------


def complete_tree(plan, model, width, depth):
    """Every node `width` wide and `depth` deep as path -> score, by growing without a budget."""
    budget = sum(width**level for level in range(1, depth + 1))
    growth = Growth(plan.growth.draw, None, width, budget)
    full = plan_of(growth, [budget], [depth], acceptance=plan.acceptance, temperature=0.8)
    draft = grow(full, model)[0]
    assert draft.num_drafted == budget
    nodes = range(1, budget + 1)
    return {
        tuple(draft.tree.tokens[draft.tree.path(n)[1:]].tolist()): draft.scores[n] for n in nodes
    }


def best_sum(scores, budget):
    """Most expected kept tokens of any part of a tree that is a tree, by trying all of them."""
    best = 0.0
    for chosen in itertools.combinations(scores, budget):
        inside = {(), *chosen}
        if all(path[:-1] in inside for path in chosen):
            best = max(best, sum(float(scores[path]) for path in chosen))
    return best


@pytest.mark.parametrize("how", [Draw.COUPLED, Draw.POINT])
@pytest.mark.parametrize("seed", range(4))
def test_given_an_unlimited_frontier_then_no_tree_of_the_budget_is_expected_to_keep_more(how, seed):
    width, depth = 2, 3
    acceptance = np.random.default_rng(seed).random((1, NUM_RANKS, NUM_MARGINS)).astype(np.float32)
    plan = plan_of(Growth(how, None, width, 100), [1], [depth], acceptance=acceptance)
    scores = complete_tree(plan, Model(), width, depth)
    assert len(scores) == 14
    for budget in (1, 2, 3, 5, 7):
        growth = Growth(how, None, width, 100)
        one = plan_of(growth, [budget], [depth], acceptance=acceptance)

        draft = grow(one, Model())[0]

        assert draft.num_drafted == budget
        assert float(draft.scores[1:].sum()) == pytest.approx(best_sum(scores, budget), rel=1e-5)


def test_control_given_a_frontier_of_one_then_some_trees_are_worse():
    losses = []
    for seed in range(8):
        random = np.random.default_rng(seed).random((1, NUM_RANKS, NUM_MARGINS))
        wide, narrow = (
            grow(
                plan_of(
                    Growth(Draw.COUPLED, None, 3, frontier), [7], [4],
                    acceptance=random.astype(np.float32),
                ),
                Model(),
            )[0].scores[1:].sum()
            for frontier in (100, 1)
        )  # fmt: skip
        assert narrow <= wide + 1e-6
        losses.append(wide - narrow)

    assert max(losses) > 0.05


@SETTINGS
@given(growths(Draw.COUPLED), ROOM, TEMPERATURES, st.integers(0, 99))
def test_given_scores_then_each_is_its_parent_s_times_an_acceptance_and_none_is_below_least(
    growth, room, temperature, seed
):
    drafts, plan, _ = grown(growth, room, temperature, seed)

    for row, draft in enumerate(drafts):
        for node, parent in enumerate(draft.tree.parents.tolist()[1:], start=1):
            margin, rank = float(draft.margins[node]), int(draft.ranks[node])
            assert (margin >= 0) == (rank == 0) or margin == 0
            ratio = draft.scores[node] / draft.scores[parent] if draft.scores[parent] else 0.0
            figures = plan.acceptance[row, min(rank, NUM_RANKS - 1)]
            assert np.isclose(figures, ratio, rtol=1e-4).any()
            if growth.parents is None:
                assert draft.scores[node] >= np.float32(growth.least)
