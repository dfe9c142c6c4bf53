"""What the four names say, and every pair that is refused, by its sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.composition import (
    DrafterName,
    ScheduleName,
    ShapeName,
    compose,
    num_nodes,
    read_drafter,
    read_schedule,
    read_shape,
)
from forerun.errors import IncompatibleSpeculation, OptionError
from forerun.options import Speculation
from forerun.shapes.tree import FixedTree

DRAFTERS = (
    "none", "lookup", "lookup:corpus", "prediction:out.py", "lm", "lm:/a:b", "exit:3",
    "dflash", "dspark:/a", "eagle3:/a:b",
)  # fmt: skip


@pytest.mark.parametrize("text", DRAFTERS)
def test_given_a_drafter_then_its_name_and_argument_are_read(text):
    name = read_drafter(text)

    assert ":".join(filter(None, (name.name, name.argument))) == text
    assert name.leaves() == (name,)


def test_given_parentheses_then_what_is_inside_is_read():
    router = read_drafter("router(lm, lookup, nested(lookup,chain:4,match))")

    assert [part.name for part in router.parts] == ["lm", "lookup", "nested"]
    nested = router.parts[2]
    assert nested == DrafterName(
        "nested", parts=(DrafterName("lookup"),), shape=ShapeName("chain", 4), rule="match"
    )
    assert [leaf.name for leaf in router.leaves()] == ["lm", "lookup", "lookup"]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("auto", ShapeName()),
        ("chain:4", ShapeName("chain", 4)),
        ("chain:auto", ShapeName("chain")),
        ("tree:24", ShapeName("tree", 24)),
        ("tree:auto", ShapeName("tree")),
        ("tree:16:top", ShapeName("tree", 16, siblings="top")),
        ("tree:8:likeliest", ShapeName("tree", 8, siblings="likeliest")),
        ("tree:3x2x1", ShapeName("tree", 15, (3, 2, 1))),
        ("tree:mine.json", ShapeName("tree", file="mine.json")),
    ],
)
def test_given_a_shape_then_its_numbers_are_read(text, shape):
    assert read_shape(text) == shape


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("auto", ScheduleName()),
        ("sequential", ScheduleName("sequential")),
        ("parallel", ScheduleName("parallel")),
        ("ahead", ScheduleName("ahead")),
        ("ahead:1", ScheduleName("ahead", 1)),
        ("ahead:256", ScheduleName("ahead", 256)),
        ("ahead:24:0.25", ScheduleName("ahead", 24, 0.25)),
        ("ahead:24:1", ScheduleName("ahead", 24, 1.0)),
    ],
)
def test_given_a_schedule_then_its_numbers_are_read(text, schedule):
    assert read_schedule(text) == schedule


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple))
def test_given_widths_then_the_tree_has_as_many_nodes(widths):
    tree = FixedTree.of_widths(widths)

    assert num_nodes(widths) == tree.max_drafted
    assert tree.num_levels == len(widths)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("grammar",), "drafter 'grammar' is not to be named: .*; available: auto, none, lookup"),
        (("magic",), "unknown drafter 'magic'; available"),
        (("magic(lm)",), "unknown drafter"),
        (("lm:",), "unknown drafter 'lm:'"),
        (("exit:two",), "unknown drafter"),
        (("prediction",), "unknown drafter"),
        (("dflash:",), "unknown drafter 'dflash:'"),
        (("router(auto,lm)",), r"'router\(auto,lm\)': name the drafters inside; auto is a choice"),
        (("nested(auto,chain:2,match)",), "name the drafters inside; auto is a choice for all"),
        (("router(lm)",), "a router needs two drafters or more"),
        (("nested(lm)",), r"write nested\(D,S,R\)"),
        (("lm", "star:3"), "unknown shape"),
        (("lm", "chain"), r"write chain:auto or chain:N with N in \[1, 256\]"),
        (("lm", "chain:0"), r"N in \[1, 256\]"),
        (("lm", "chain:257"), r"N in \[1, 256\]"),
        (("lm", "tree"), "tree:FILE.json"),
        (("lm", "tree:3x0"), "widths of its levels"),
        (("lm", "tree:9x9x9"), "has 819 nodes: at most 256"),
        (("lm", "auto", "close enough"), "unknown rule 'close enough'; available: auto, match"),
        (("lm", "auto", "auto", "later"), "unknown schedule 'later'; available: auto, sequential"),
        (("lm", "auto", "auto", "parallel:2"), "unknown schedule 'parallel:2'"),
        (("lm", "auto", "auto", "auto:1"), "unknown schedule 'auto:1'"),
        *[
            (("lm", "auto", "auto", text), r"ahead:B with B outcomes in \[1, 256\], or ahead:B:C")
            for text in (
                "ahead:",
                "ahead:0",
                "ahead:257",
                "ahead:-1",
                "ahead:many",
                "ahead:8:",
                "ahead::0.5",
                "ahead:8:0",
                "ahead:8:1.5",
                "ahead:8:nan",
                "ahead:8:0.5:1",
                "ahead:8:less",
            )
        ],
    ],
)
def test_given_a_wrong_name_then_the_refusal_says_what_there_is(names, message):
    with pytest.raises(OptionError, match=message):
        Speculation(*names)


REFUSED = [
    *[
        (("lm", "tree:8:top", rule), f"rule {rule} cannot use siblings drawn as `:top`")
        for rule in ("match", "block", "traversal", "kseq")
    ],
    *[
        (("lm", "tree:8:likeliest", rule), "siblings drawn as `:likeliest` have none")
        for rule in ("block", "traversal", "kseq")
    ],
    (("lm", "tree:8", "block"), "rule block judges one chain, not a tree: use traversal"),
    *[
        ((drafter, "chain:4", rule), f"rule {rule} needs the law its drafts were sampled from")
        for rule in ("block", "traversal", "kseq")
        for drafter in ("lookup", "lookup:corpus", "prediction:out.py", "router(lm,lookup)")
    ],
    *[
        (("exit:2", "chain:4", rule), "exit drafts with the target's own noise")
        for rule in ("rejection", "block", "traversal", "kseq")
    ],
    *[
        ((f"nested({drafter},chain:2,match)",), f"{drafter} reads hidden states of the target")
        for drafter in ("dflash", "dspark", "eagle3")
    ],
    (("nested(router(lookup,dflash),chain:2,match)",), "dflash reads hidden states of the target"),
    *[
        ((drafter, "chain:4", "rejection"), "a nested decoder's tokens are choices")
        for drafter in ("nested(lm,chain:2,match)", "router(lm,nested(lookup,chain:4,match))")
    ],
    *[
        ((drafter, "auto", "match", schedule), f"busy while schedule {schedule.partition(':')[0]}")
        for drafter in ("exit:2", "router(lookup,exit:1)")
        for schedule in ("parallel", "ahead", "ahead:24")
    ],
    *[
        (("lm", shape, rule, "ahead:8:0.5"), "damped draws .* serve rules that judge by laws")
        for shape in ("chain:4", "tree:8")
        for rule in ("auto", "match")
    ],
]


@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_given_an_impossible_pair_then_it_is_refused_with_a_reason_and_a_way_out(names, message):
    with pytest.raises(IncompatibleSpeculation, match=message) as caught:
        Speculation(*names)

    assert any(way in str(caught.value) for way in (": use", ": drop", ": write"))


WITH_LAWS = pytest.mark.parametrize("drafter", ["lm", "dflash", "dspark", "eagle3"])


@WITH_LAWS
@pytest.mark.parametrize("rule", ["match", "rejection", "block", "traversal", "kseq"])
def test_given_a_chain_of_a_drafter_with_laws_then_every_rule_takes_it(drafter, rule):
    assert compose(drafter, "chain:4", rule, "auto").rule == rule


@WITH_LAWS
@pytest.mark.parametrize("rule", ["match", "rejection", "traversal", "kseq"])
def test_given_a_tree_of_a_drafter_with_laws_then_every_rule_for_trees_takes_it(drafter, rule):
    assert compose(drafter, "tree:8", rule, "auto").rule == rule


@pytest.mark.parametrize("schedule", ["auto", "sequential"])
def test_given_a_schedule_that_does_not_overlap_then_the_targets_own_layers_may_draft(schedule):
    assert compose("exit:2", "chain:4", "match", schedule).schedule.num_branches == 0


@WITH_LAWS
@pytest.mark.parametrize("rule", ["rejection", "block", "traversal", "kseq"])
def test_given_a_rule_that_judges_by_laws_then_draws_may_be_damped(drafter, rule):
    assert compose(drafter, "chain:4", rule, "ahead:8:0.5").schedule.damping == 0.5
