"""What measured seconds say of a schedule is what is built: the depth, its branches, and why."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from forerun.composition import read_schedule, read_shape
from forerun.control.lane_trial import yields_of
from forerun.control.overlap import (
    AHEAD,
    LaneCosts,
    Way,
    Yields,
    best_overlapped,
    compared,
    deepest_worth,
    overlapped,
)
from forerun.drafters.overlapped import Overlapped
from forerun.engine.drafting import Openers
from forerun.engine.parts import build_parts
from forerun.engine.scheduling import Depths, chosen_by
from forerun.engine.shaping import AUTO_CHAIN, live_shape, usual_depth
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.options import Speculation
from forerun.schedules.ahead import Ahead
from forerun.schedules.sequential import Sequential
from forerun.shapes.chain import Chain
from forerun.stats import RoundMeter, RoundStats

# A target whose verification hardly grows with its nodes, and a drafter of a fifth of it a level.
COSTS = LaneCosts(
    verify=((1, 10e-3), (8, 10.5e-3)), step_s=2e-3, busy=1.05, branch_s=1e-4, handover_s=3e-4
)
CHEAP = replace(COSTS, step_s=5e-4, branch_s=2e-5)
DEAR = replace(COSTS, step_s=4e-3)
SLOWED = replace(COSTS, busy=3.0)  # by whatever the other lane does
YIELDS = yields_of({})
MOST_BRANCHES = 24


def best_at(num_levels, costs=COSTS):
    yields = yields_of({}, num_levels)
    return best_overlapped(costs, yields, AHEAD, MOST_BRANCHES, num_levels=num_levels)


# --- chosen of figures ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ahead", "auto"])
def test_given_a_free_depth_then_it_is_the_best_one_and_so_are_its_branches(name):
    best = best_overlapped(COSTS, YIELDS, AHEAD, MOST_BRANCHES).way

    chosen = chosen_by(read_schedule(name), COSTS, YIELDS, None)

    assert chosen.schedule == Ahead(best.num_branches)
    assert chosen.depths == Depths(best.num_levels, deepest_worth(COSTS, YIELDS, best))


@pytest.mark.parametrize("name", ["ahead", "auto"])
@pytest.mark.parametrize("num_levels", [1, 2, 4, 6])
def test_given_a_depth_then_the_branches_are_the_best_for_it(name, num_levels):
    yields = yields_of({}, num_levels)

    chosen = chosen_by(read_schedule(name), COSTS, yields, num_levels)

    assert chosen.schedule == Ahead(best_at(num_levels).way.num_branches)
    assert chosen.depths is None


def test_control_given_depths_then_their_best_branches_differ():
    free = best_overlapped(COSTS, YIELDS, AHEAD, MOST_BRANCHES).way
    branches = {depth: best_at(depth).way.num_branches for depth in (1, 4, 12)}

    assert branches[1] > free.num_branches > branches[4]


def test_given_costs_then_a_cheaper_level_is_a_deeper_draft():
    cheap, usual, dear = (
        chosen_by(read_schedule("ahead"), costs, YIELDS, None).depths
        for costs in (CHEAP, COSTS, DEAR)
    )

    assert cheap.usual > usual.usual > dear.usual
    assert cheap.most > usual.most > dear.most


def test_given_sequential_wins_then_no_depth_is_chosen_for_whoever_measures_it():
    chosen = chosen_by(read_schedule("auto"), SLOWED, YIELDS, None)

    assert chosen.schedule == Sequential()
    assert chosen.depths is None


@pytest.mark.parametrize("name", ["ahead", "auto"])
def test_given_a_choice_then_its_line_names_depth_branches_and_the_seconds_that_decided(name):
    chosen = chosen_by(read_schedule(name), COSTS, YIELDS, None)

    way = best_overlapped(COSTS, YIELDS, AHEAD, MOST_BRANCHES).way
    assert chosen.reason.startswith(f"ahead:{way.num_branches}, {way.num_levels} deep:")
    for figure in ("verification 10.2 ms", "1.05 times", "2 ms a level", "0.1 ms more a branch"):
        assert figure in chosen.reason
    assert chosen.reason.endswith(f"0 to {chosen.depths.most} deep")
    assert ("sequential, " in chosen.reason) is (name == "auto")


def test_given_sequential_then_its_line_names_what_would_have_been():
    way = best_overlapped(SLOWED, YIELDS, AHEAD, MOST_BRANCHES).way

    reason = chosen_by(read_schedule("auto"), SLOWED, YIELDS, None).reason

    assert reason.startswith("sequential, ")
    assert f"; ahead:{way.num_branches}, {way.num_levels} deep:" in reason


@given(some.floats(0.05, 0.97), some.floats(1e-4, 5e-3), some.floats(0, 3e-4), some.booleans())
def test_given_any_text_then_no_depth_beyond_the_most_pays_more(
    acceptance, step_s, branch_s, redrafts
):
    costs, way = replace(COSTS, step_s=step_s, branch_s=branch_s), Way(AHEAD, 1, 8, 1, redrafts)
    most = deepest_worth(costs, YIELDS, way)

    text = replace(YIELDS, accepted=(acceptance,) * len(YIELDS.accepted))
    rates = [
        overlapped(costs, text, replace(way, num_levels=depth)).tokens_per_s
        for depth in range(1, len(YIELDS.accepted) + 1)
    ]

    assert max(rates[:most]) >= (1 - 1e-9) * max(rates)


def test_control_given_the_usual_depth_as_a_bound_then_a_text_that_repeats_itself_loses():
    way = best_overlapped(CHEAP, YIELDS, AHEAD, MOST_BRANCHES).way
    text = Yields((0.95,) * 8, YIELDS.bonus)

    rates = [
        overlapped(CHEAP, text, replace(way, num_levels=depth)).tokens_per_s
        for depth in (way.num_levels, deepest_worth(CHEAP, YIELDS, way))
    ]

    assert rates[0] < 0.9 * rates[1]


def test_given_a_depth_then_every_schedule_is_weighed_at_it():
    each = compared(COSTS, yields_of({}, 5), num_levels=5).each

    assert [one.way.num_levels for one in each] == [5, 5, 5]
    assert each[2].way == best_at(5).way


@pytest.mark.parametrize(
    ("shape", "accepted", "depth"),
    [
        ("chain:5", (0.5,) * 5, 5),
        ("tree:3x2x1", (0.5,) * 3, 3),
        ("chain:auto", (0.6,) * 8, 2),  # 0.36 is above its bound, 0.22 below
        ("chain:auto", (0.9,) * 8, 8),
        ("chain:auto", (0.1,) * 8, 1),
    ],
)
def test_given_a_shape_then_so_deep_are_its_drafts(shape, accepted, depth):
    assert usual_depth(live_shape(read_shape(shape), "lm"), accepted) == depth


def test_given_a_tree_then_it_is_less_deep_than_it_has_nodes():
    assert 1 < usual_depth(live_shape(read_shape("tree:16"), "lm")) < 16


# --- and built ------------------------------------------------------------------------------------


@dataclass
class Model:
    """A backend in name only: building parts runs nothing, and its seconds are given."""

    directory: Path
    num_blocks: int = 4

    @property
    def spec(self):
        return read_spec(self.directory)

    def close(self):
        pass


@pytest.fixture
def model(tiny_checkpoint_dir, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint_dir("qwen3", 0), directory)
    shutil.copytree(tiny_checkpoint_dir("qwen3", 1), directory / "drafters" / "lm")
    return directory


@pytest.fixture
def built(model, monkeypatch):
    """Builds the parts of four names on lanes that are measured to cost so much."""

    def build(*names, costs=COSTS):
        monkeypatch.setattr("forerun.engine.scheduling.measured_lanes", lambda *_: costs)
        tokenizer = load_tokenizer(model, read_spec(model))
        opens = Openers(Model, lambda directory, target: Model(directory), has_lane=True)
        speculation = Speculation(*names)
        return build_parts(speculation, Model(model), model, tokenizer, opens, RoundMeter())

    return build


def first_lengths(parts):
    """What is drafted once it is known what a plain round takes."""
    lengths = [parts.lengths_for([0], 1)]
    parts.pace.learn(RoundStats(1, 0, 0, 0.01, 0.0, 0.01, 0.0), [])
    return [*lengths, parts.lengths_for([0], 1)]


@pytest.mark.parametrize("schedule", ["ahead", "auto"])
@pytest.mark.parametrize("costs", [CHEAP, COSTS, DEAR])
def test_given_lanes_and_no_shape_then_drafts_are_as_deep_as_measured(built, schedule, costs):
    depths = chosen_by(read_schedule("ahead"), costs, YIELDS, None).depths
    parts = built("lm", "auto", "match", schedule, costs=costs)

    with closing(parts.drafter):
        assert parts.shape == Chain(depths.most)
        assert first_lengths(parts) == [[0], [depths.usual]]


@pytest.mark.parametrize(("share", "is_deepest"), [(1, True), (0, False)])
def test_given_a_text_then_it_decides_between_nothing_and_the_most(built, share, is_deepest):
    most = chosen_by(read_schedule("ahead"), CHEAP, YIELDS, None).depths.most
    parts = built("lm", "auto", "match", "ahead", costs=CHEAP)

    with closing(parts.drafter):
        for _ in range(60):
            (length,) = parts.lengths_for([0], 1)
            kept, verify_s = share * length, 0.010 + 0.0001 * length
            stats = RoundStats(1, length, kept, verify_s, 0.0, verify_s, 0.0, 1)
            parts.pace.learn(stats, [(0, length, kept)])

        assert parts.lengths_for([0], 1) == ([most] if is_deepest else [0])


@pytest.mark.parametrize("schedule", ["ahead", "auto"])
def test_given_a_choice_then_the_composition_tells_it(built, schedule):
    parts = built("lm", "auto", "match", schedule)

    with closing(parts.drafter):
        assert isinstance(parts.drafter._drafter, Overlapped)
        num_branches = parts.schedule.num_branches
        assert parts.composition.schedule == read_schedule(f"ahead:{num_branches}")
        assert parts.composition.shape == read_shape("auto")  # learned: no chain of a length
        assert parts.schedule_reason.startswith(f"ahead:{num_branches}, ")


@pytest.mark.parametrize("shape", ["chain:1", "chain:4", "chain:12", "tree:3x2x1"])
def test_given_a_shape_then_it_is_kept_and_branches_are_those_of_its_depth(built, shape):
    parts = built("lm", shape, "match", "ahead")

    with closing(parts.drafter):
        asked = live_shape(read_shape(shape), "lm")
        assert parts.shape == asked
        assert parts.pace is None
        assert parts.schedule == Ahead(best_at(usual_depth(asked)).way.num_branches)


def test_given_a_sampled_rule_then_no_clock_decides_the_depth_and_with_it_the_draws(built):
    longest = AUTO_CHAIN["lm"]
    for costs in (CHEAP, DEAR):
        parts = built("lm", "auto", "rejection", "ahead", costs=costs)
        with closing(parts.drafter):
            assert parts.shape == Chain(longest)
            assert parts.pace is None
            assert parts.schedule == Ahead(best_at(longest, costs).way.num_branches)


def test_given_sequential_wins_then_lengths_are_learned_as_without_lanes(built):
    parts = built("lm", "auto", "match", "auto", costs=SLOWED)

    with closing(parts.drafter):
        assert parts.schedule == Sequential()
        assert parts.composition.schedule == read_schedule("sequential")
        assert parts.shape == Chain(AUTO_CHAIN["lm"])
        assert first_lengths(parts) == [[0], [2]]


# --- and told -------------------------------------------------------------------------------------


@dataclass
class Readable(Model):
    """A backend on cores of its own, read at given rates; `seen` are the cores it was read with."""

    cores: tuple[int, ...] = ()
    seen: list[tuple[int, ...]] = field(default_factory=list)
    weight_bytes: int = 1 << 20

    def reader(self, cores):
        self.seen.append(tuple(cores))
        return lambda _: 10e9 if len(cores) == 1 else 16e9


def told(model, monkeypatch, cores, schedule):
    """What is said of a schedule when it is asked for, and the cores that were read with."""
    monkeypatch.setattr("forerun.engine.scheduling.measured_lanes", lambda *_: COSTS)
    target, has_lane = Readable(model, cores=cores["target"]), cores["target"] != cores["draft"]
    own = partial(Readable, cores=cores["draft"])
    opens = Openers(own, lambda directory, _: own(directory), has_lane=has_lane)
    tokenizer, asked = load_tokenizer(model, read_spec(model)), ("lm", "chain:4", "match", schedule)
    parts = build_parts(Speculation(*asked), target, model, tokenizer, opens, RoundMeter())
    with closing(parts.drafter):
        return parts.schedule_figures(), target.seen


@pytest.mark.parametrize("schedule", ["auto", "sequential", "parallel", "ahead", "ahead:8"])
def test_given_lanes_then_what_all_their_cores_would_do_is_told_too(model, monkeypatch, schedule):
    line, seen = told(model, monkeypatch, {"target": (0,), "draft": (1,)}, schedule)

    assert "a round ahead on a core each at least" in line
    assert "> sequential on all" in line
    assert (0, 1) in seen  # both models' cores, though neither computes on both


def test_control_given_one_core_for_both_then_there_is_nothing_to_tell(model, monkeypatch):
    assert told(model, monkeypatch, {"target": (0,), "draft": (0,)}, "auto") == ("", [])
