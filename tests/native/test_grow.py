"""A tree grown in one native call is what the readable growth grows over plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import (
    EVERY_PATH,
    Text,
    opened,
    random_checkpoint,
    require_same_bits,
    tiny_spec,
    yardstick,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.backends import growing
from forerun.draft import Draft, Draw
from forerun.noise import RoundNoise
from forerun.options import SamplingParams
from forerun.protocols import NUM_MARGINS, NUM_RANKS, Growth, GrowthPlan, Sampler
from forerun.shapes.draw import damp, draw_children

SPEC = tiny_spec(head_dim=80, num_heads=7, num_kv_heads=1, vocab=50, ffn=75)
CHECKPOINT = random_checkpoint(SPEC, 3)
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.2, top_p=0.8, presence_penalty=1.5),
    SamplingParams(repetition_penalty=3.0, allowed_tokens=tuple(range(10))),
    SamplingParams(temperature=1.0, top_k=2),
]
KEPT, NEW = [0, 29, 31, 64], [1, 5, 33, 2]  # tokens kept, and not yet seen, of each row
BLOCKS = [[4, 0, 9, 2], [1, 8, 3, 10], [5, 13, 6, 12], [7, 11, 15, 14]]
ROWS = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)


def known_text(row: int) -> list[int]:
    rng = np.random.default_rng(row)
    return rng.integers(0, SPEC.vocab, KEPT[row] + NEW[row]).tolist()


def acceptance(seed: int, rows: int) -> Any:
    return np.random.default_rng(seed).random((rows, NUM_RANKS, NUM_MARGINS), np.float32)


def plan_of(
    rows: Sequence[int], growth: Growth, samplers: Sequence[Sampler], **changes: Any
) -> GrowthPlan:
    plan = GrowthPlan(
        catch_up=np.array([t for row in rows for t in known_text(row)[KEPT[row] :]], np.int32),
        catch_up_starts=np.cumsum([0, *(NEW[row] for row in rows)]).astype(np.int32),
        committed=np.array([KEPT[row] for row in rows], np.int32),
        block_table=np.array([BLOCKS[row] for row in rows], np.int32),
        samplers=samplers,
        budgets=np.full(len(rows), 12, np.int32),
        depths=np.full(len(rows), 5, np.int32),
        growth=growth,
        acceptance=acceptance(0, len(rows)),
    )
    return replace(plan, **changes)


def read_texts(backend: Any, rows: Sequence[int]) -> list[Text]:
    texts = [Text(backend, BLOCKS[row]) for row in rows]
    for row, text in zip(rows, texts, strict=True):
        if KEPT[row]:
            text.read(known_text(row)[: KEPT[row]])
    return texts


def readable(plan: GrowthPlan, rows: Sequence[int]) -> list[Draft]:
    with opened(CHECKPOINT, isa="portable") as backend:
        read_texts(backend, rows)
        return growing.grow(plan, growing.rereader(backend.forward, backend.commit, plan))


def require_same(found: Draft, expected: Draft) -> None:
    assert found.draw is expected.draw
    for name in ("expanded", "draws", "ranks"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        if left is not None and left.size + right.size:
            width = min(left.shape[-1], right.shape[-1])
            assert left[..., :width].tolist() == right[..., :width].tolist(), name
    for name in ("margins", "scores", "law", "chances"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        if left is not None and left.size + right.size:
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (found.damping is None) == (expected.damping is None)
    if found.damping is not None and expected.damping is not None and found.damping.tokens.size:
        assert found.damping.tokens.tolist() == expected.damping.tokens.tolist()
        assert found.damping.factor == expected.damping.factor
    assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
    assert found.tree.parents.tolist() == expected.tree.parents.tolist()


@st.composite
def growths(draw: st.DrawFn) -> Growth:
    how = draw(st.sampled_from(list(Draw)))
    is_free = how in (Draw.COUPLED, Draw.POINT)
    parents = draw(given_trees())
    if is_free and draw(st.booleans()):
        parents = None
    least = draw(st.sampled_from([0.0, 0.05, 0.3]))
    damped = None if is_free else draw(st.sampled_from([None, (1, 0.5), (3, 0.25)]))
    return Growth(how, parents, draw(st.integers(1, 4)), draw(st.integers(1, 5)), least, damped)


@st.composite
def given_trees(draw: st.DrawFn) -> tuple[int, ...] | None:
    size = draw(st.integers(1, 9))
    return tuple(draw(st.integers(0, node)) for node in range(size))


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    growth=growths(),
    seed=st.integers(0, 2**40),
    budget=st.integers(0, 14),
    depth=st.integers(0, 6),
    which=st.integers(0, 4),
    prices=st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.3]), min_size=1, max_size=4)
    .map(sorted)
    .map(tuple),
    pass_price=st.sampled_from([0.0, 0.2, 0.9]),
    is_told=st.booleans(),
)
def test_a_native_tree_is_the_readable_one(
    rows: list[int],
    growth: Growth,
    seed: int,
    budget: int,
    depth: int,
    which: int,
    prices: tuple[float, ...],
    pass_price: float,
    is_told: bool,
) -> None:
    # given rows with other parameters, budgets and depths each
    samplers = [Sampler(PARAMS[(which + row) % 5], seed + row) for row in rows]
    plan = plan_of(
        rows,
        growth,
        samplers,
        budgets=np.array([max(0, budget - row) for row in rows], np.int32),
        depths=np.array([max(0, depth - row % 2) for row in rows], np.int32),
        acceptance=acceptance(seed, len(rows)),
        prices=prices,
        pass_price=pass_price,
        is_told=is_told,
    )
    # when both grow
    expected = readable(plan, rows)
    with opened(CHECKPOINT) as backend:
        read_texts(backend, rows)
        found = backend.grow(plan)
    # then the trees, the laws and the figures are the same
    for one, other in zip(found, expected, strict=True):
        require_same(one, other)


@pytest.mark.parametrize("which", range(len(PARAMS)))
@pytest.mark.parametrize("growth", [Growth(Draw.COUPLED), Growth(Draw.COUPLED, None, 3, 2)])
def test_a_told_tree_is_the_same_with_the_readable_chances(growth: Growth, which: int) -> None:
    # given a plan that wants to be told, and one that does not
    rows = [1, 3]
    told = plan_of(rows, growth, [Sampler(PARAMS[which], 5 + row) for row in rows], is_told=True)
    # when the core grows both
    with opened(CHECKPOINT) as backend:
        read_texts(backend, rows)
        found = backend.grow(told)
    with opened(CHECKPOINT) as backend:
        read_texts(backend, rows)
        silent = backend.grow(replace(told, is_told=False))
    # then chances are those of the readable growth, and nothing else differs
    for one, other, expected in zip(found, silent, readable(told, rows), strict=True):
        require_same(one, expected)
        assert one.chances is not None
        assert np.isfinite(one.chances[1:]).all()
        assert other.chances is None
        require_same(replace(one, chances=None), other)


@pytest.mark.parametrize("how", [Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT, Draw.TOP_AND_ONE])
@pytest.mark.parametrize("damped", [(1, 0.5), (4, 0.3)])
def test_a_damped_law_has_the_bits_of_the_readable_one(
    how: Draw, damped: tuple[int, float]
) -> None:
    # given the law of a core that damps nothing
    growth, samplers = Growth(how, (0, 0)), [Sampler(PARAMS[1], 5)]
    with opened(CHECKPOINT) as backend:
        read_texts(backend, [1])
        (own,) = backend.grow(plan_of([1], growth, samplers))
    # when the core damps it
    with opened(CHECKPOINT) as backend:
        read_texts(backend, [1])
        (found,) = backend.grow(plan_of([1], replace(growth, damped=damped), samplers))
    # then it is what the readable function makes of it, bit by bit, and is told back
    assert own.law is not None
    assert found.law is not None
    assert found.damping is not None
    expected, tokens = damp(own.law[0], damped, how, 2)
    assert found.law[0].tobytes() == expected.tobytes()
    assert found.damping.tokens[0].tolist() == tokens
    assert len(tokens) == damped[0]
    np.testing.assert_allclose(found.believed(0), own.law[0], rtol=1e-6)
    # ... and its tokens are draws from that
    noise = RoundNoise(5, PARAMS[1].choice, KEPT[1] + NEW[1])
    drawn = draw_children(expected, 2, how, 0, noise)
    assert found.tree.tokens[1:].tolist() == list(dict.fromkeys(drawn))


def test_a_factor_out_of_range_is_refused() -> None:
    growth = Growth(Draw.SAMPLED, (0,), damped=(2, 0.0))
    with opened(CHECKPOINT) as backend, pytest.raises(ValueError, match="factor above 0"):
        backend.grow(plan_of([0], growth, [Sampler(PARAMS[0], 1)]))


def test_control_another_acceptance_grows_another_tree() -> None:
    samplers = [Sampler(PARAMS[1], 5)]
    growth = Growth(Draw.COUPLED, None, 3, 4)
    plan = plan_of([1], growth, samplers)
    other = replace(plan, acceptance=plan.acceptance[:, ::-1].copy())

    with pytest.raises(AssertionError):
        require_same(readable(plan, [1])[0], readable(other, [1])[0])


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_kept_path_is_text(isa: str, threads: int) -> None:
    # given two rows with a tree each
    rows = [1, 2]
    growth = Growth(Draw.COUPLED, None, 3, 4)
    with opened(CHECKPOINT, isa=isa, threads=threads) as backend:
        texts = read_texts(backend, rows)
        plan = plan_of(rows, growth, [Sampler(PARAMS[1], 5), Sampler(PARAMS[0], 6)])
        drafts = backend.grow(plan)
        paths = [deepest_expanded(draft) for draft in drafts]
        assert all(len(path) > 1 for path in paths)
        # when the path to a node that was computed is kept
        for row, path in enumerate(paths):
            assert backend.keep(plan, row, path)
        # then what follows has the bits of plain reading
        for row, text, draft, path in zip(rows, texts, drafts, paths, strict=True):
            tokens = draft.tree.tokens[path].tolist()
            text.committed = KEPT[row] + NEW[row] + len(path)
            found = text.decode([3])[0]
            require_same_bits(found, plainly(known_text(row) + tokens, isa), f"row {row}")
        # ... and once another pass came between, nothing can be kept
        assert not backend.keep(plan, 0, paths[0])


def test_control_a_path_that_was_not_kept_is_not_text() -> None:
    growth = Growth(Draw.COUPLED, None, 3, 4)
    with opened(CHECKPOINT) as backend:
        (text,) = read_texts(backend, [1])
        plan = plan_of([1], growth, [Sampler(PARAMS[1], 5)])
        (draft,) = backend.grow(plan)
        path = deepest_expanded(draft)
        text.committed = KEPT[1] + NEW[1] + len(path)
        found = text.decode([3])[0]
    tokens = draft.tree.tokens[path].tolist()
    with pytest.raises(AssertionError):
        require_same_bits(found, plainly(known_text(1) + tokens), "forgotten")


def plainly(tokens: list[int], isa: str = "portable") -> Any:
    """What is computed of token 3 behind a text that was decoded token by token."""
    with opened(CHECKPOINT, isa=yardstick(isa)) as backend:
        return Text(backend, range(4)).decode([*tokens, 3])[-1]


def deepest_expanded(draft: Draft) -> list[int]:
    assert draft.expanded is not None
    depths = draft.tree.depths()
    node = max(draft.expanded.tolist(), key=lambda one: int(depths[one]))
    return draft.tree.path(node)[1:]


def test_a_plan_that_does_not_fit_is_refused() -> None:
    growth = Growth(Draw.COUPLED, None, 2, 2)
    with opened(CHECKPOINT) as backend:
        plan = plan_of([0], growth, [Sampler(PARAMS[0], 1)])
        for changes in (
            {"depths": np.array([200], np.int32)},
            {"budgets": np.zeros(2, np.int32)},
            {"growth": Growth(Draw.SAMPLED, None, 2, 2)},
            {"growth": Growth(Draw.COUPLED, (1,), 2, 2)},
            {"catch_up": np.array([50], np.int32)},
        ):
            with pytest.raises(ValueError, match=r"."):
                backend.grow(replace(plan, **changes))
