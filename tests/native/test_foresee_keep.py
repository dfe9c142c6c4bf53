"""What was computed of a draft that was grown further can be kept, and is text then."""

from __future__ import annotations

import pytest
from builders import EVERY_PATH, opened, require_same_bits
from test_foresee import WIDE, below_of, forecast_of, random_tree
from test_grow import CHECKPOINT, KEPT, NEW, known_text, plainly, read_texts

from forerun.draft import Draft


def deepest_read(draft: Draft, num_verified: int) -> list[int]:
    """The path to the deepest node below a guess whose K/V was computed."""
    assert draft.expanded is not None
    depths = draft.tree.depths()
    below = [node for node in draft.expanded.tolist() if node >= num_verified]
    return draft.tree.path(max(below, key=lambda node: int(depths[node])))[1:]


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_kept_path_is_text(isa: str, threads: int) -> None:
    # given three rows whose drafts were grown further
    rows = [1, 2, 3]
    trees = [random_tree(row, (0, 1, 1), 3) for row in rows]
    with opened(CHECKPOINT, isa=isa, threads=threads) as backend:
        texts = read_texts(backend, rows)
        plan = forecast_of(below_of(rows, WIDE), trees)
        drafts = backend.foresee(plan)
        paths = [deepest_read(draft, 4) for draft in drafts]
        assert all(len(path) > 2 for path in paths)
        # when a path through a draft, a guess and what is below is kept
        for index, path in enumerate(paths):
            assert backend.keep(plan.below, index, path)
        # then what follows has the bits of plain reading
        for row, text, draft, path in zip(rows, texts, drafts, paths, strict=True):
            text.committed = KEPT[row] + NEW[row] + len(path)
            found = text.decode([3])[0]
            made = draft.tree.tokens[path].tolist()
            require_same_bits(found, plainly(known_text(row) + made, isa), f"row {row}")
        # ... and once another pass came between, nothing can be kept
        assert not backend.keep(plan.below, 0, paths[0])


def test_nothing_kept_leaves_the_text_that_was_unread() -> None:
    with opened(CHECKPOINT) as backend:
        texts = read_texts(backend, [2, 3])
        trees = [random_tree(row, (0, 1, 1), 3) for row in (2, 3)]
        backend.foresee(forecast_of(below_of([2, 3], WIDE), trees))
        for row, text in zip((2, 3), texts, strict=True):
            text.committed = KEPT[row] + NEW[row]
            require_same_bits(text.decode([3])[0], plainly(known_text(row)), f"row {row}")


def test_control_a_path_that_was_not_kept_is_not_text() -> None:
    with opened(CHECKPOINT) as backend:
        (text,) = read_texts(backend, [1])
        (draft,) = backend.foresee(forecast_of(below_of([1], WIDE), [random_tree(1, (0, 1), 3)]))
        path = deepest_read(draft, 3)
        text.committed = KEPT[1] + NEW[1] + len(path)
        made = draft.tree.tokens[path].tolist()
        with pytest.raises(AssertionError):
            require_same_bits(text.decode([3])[0], plainly(known_text(1) + made), "forgotten")
