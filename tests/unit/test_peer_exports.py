"""What is said of our exports in vLLM: which layouts, and how two engines' texts are compared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drafter_cases import DFLASH, DSPARK, EAGLE, SHIFTED

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module", autouse=True)
def peers_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(PEERS))
    yield
    sys.path.remove(str(PEERS))


@pytest.mark.parametrize(
    ("spec", "kind", "layouts", "num_draft"),
    [
        (DFLASH, "dflash", ("z-lab", "speculators"), 5),
        (DSPARK, "dspark", ("deepspec", "speculators"), 6),
        (SHIFTED, "dspark", ("deepspec", "speculators"), 6),
        (EAGLE, "eagle3", ("eagle3", "speculators"), 5),
    ],
)
def test_given_a_drafter_then_the_layouts_that_can_say_it_and_all_of_its_block(
    spec: Any, kind: str, layouts: tuple[str, str], num_draft: int
) -> None:
    from exports import kind_of, layouts_of, num_drafted

    assert (kind_of(spec), layouts_of(spec), num_drafted(spec)) == (kind, layouts, num_draft)


def test_given_three_texts_each_then_what_differs_is_counted_and_left_out_of_the_last_figures() -> (
    None
):
    from exports import Written, compared, sentence

    plain = [Written((1, 2, 3, 4), (1, 1, 1)), Written((5, 6, 7, 8), (1, 1, 1))]
    drafted = [Written((1, 2, 3, 4), (3,)), Written((5, 6, 9, 8), (2, 1))]
    own = [Written((1, 2, 3, 4), (2, 1)), Written((5, 6, 7, 8), (3,))]
    counts = {"num_drafts": 4, "num_accepted": 6, "num_by_slot": [3, 2, 1]}

    figures = compared(plain, drafted, own, counts)

    assert figures["num_same"] == 1
    assert figures["first_differences"] == [None, 2]
    assert (figures["vllm"], figures["vllm_reported"], figures["forerun"]) == (2.0, 2.5, 2.0)
    assert figures["reached"] == [0.75, 0.5, 0.25]
    assert figures["num_prompts_of_one_text"] == 1
    assert (figures["vllm_of_one_text"], figures["forerun_of_one_text"]) == (3.0, 1.5)
    row = {"drafter": "d", "layout": "z-lab", "num_draft": 3, "reason": None, **figures}
    assert sentence(row).startswith("d as z-lab, 3 tokens a draft: 1 of 2 texts as plain; 2.00")
    # control: forerun's own text being another, no figures on texts that are all alike are left
    other = compared(plain, drafted, own[::-1], counts)
    assert (other["num_prompts_of_one_text"], other["vllm_of_one_text"]) == (0, None)


def test_given_a_layout_that_is_not_taken_then_the_row_is_the_engines_words() -> None:
    from exports import sentence

    row = {"drafter": "d", "layout": "deepspec", "num_draft": 8, "forerun": 3.0}
    said = sentence(row | {"reason": "no such runner"})
    assert said.endswith("vLLM does not run it: no such runner (forerun: 3.00)")
