"""docs/exactness.md says what the code says: every refused pair, and its sentence."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from forerun.composition import RULES, compose
from forerun.errors import IncompatibleSpeculation

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
DRAFTERS = (
    "none", "lookup", "prediction:FILE", "lm", "exit:4", "nested(lm,chain:2,match)",
    "router(lookup,lm)", "auto",
)  # fmt: skip
SHAPES = ("auto", "chain:4", "tree:8", "tree:2x2", "tree:2x2:top", "tree:8:likeliest")


def refusals() -> list[tuple[str, str]]:
    """(drafter shape rule, sentence) of every line in the page's block."""
    block = re.search(r"```refused\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [tuple(line.split(": ", 1)) for line in block[1].splitlines()]


@pytest.mark.parametrize(("words", "sentence"), refusals())
def test_given_a_pair_of_the_page_then_it_is_refused_with_that_sentence(words, sentence):
    with pytest.raises(IncompatibleSpeculation) as refused:
        compose(*words.split(), "auto")

    assert str(refused.value) == sentence


def test_given_any_names_then_each_sentence_of_a_refusal_is_on_the_page():
    said = {sentence for _, sentence in refusals()}
    refused = set()
    for words in product(DRAFTERS, SHAPES, RULES):
        try:
            compose(*words, "auto")
        except IncompatibleSpeculation as error:
            refused.add(str(error))

    assert refused == said
