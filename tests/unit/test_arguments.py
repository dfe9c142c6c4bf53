"""Values of the command line that forerun reads itself, lanes and prompt files, and its help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_type_hints

import pytest

from forerun import composition
from forerun.errors import OptionError
from forerun.tools.arguments import EngineArguments, parse_lanes
from forerun.tools.prompt_files import BUILT_IN, read_prompts


@pytest.mark.parametrize(
    ("text", "lanes"),
    [
        ("target=0,draft=1", {"target": (0,), "draft": (1,)}),
        ("target=0-2", {"target": (0, 1, 2)}),
        (" draft=3 , target=1 ", {"draft": (3,), "target": (1,)}),
    ],
)
def test_lanes_are_read(text: str, lanes: dict[str, tuple[int, ...]]) -> None:
    assert parse_lanes(text) == lanes


@pytest.mark.parametrize("text", ["", "target", "target=", "target=a", "target=0,target=1", "x=1"])
def test_lanes_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="must be like target=0-1,draft=1"):
        parse_lanes(text)


def test_the_built_in_prompts() -> None:
    prompts = read_prompts(BUILT_IN)
    assert len({prompt.name for prompt in prompts}) == len(prompts) >= 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompts"),
        ("{", r":1 is not JSON"),
        ('{"prompt": "a"}\n{"text": "b"}', r':2 must be an object with a text "prompt"'),
        ("[]", r":1 must be an object"),
    ],
)
def test_prompt_files_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_prompts(path)


# --- lanes that are to be parallel ----------------------------------------------------------------


@pytest.mark.parametrize("lanes", ["target=0,draft=0", "target=0-1,draft=1"])
@pytest.mark.parametrize("schedule", ["ahead", "ahead:8", "parallel"])
def test_given_lanes_that_share_a_core_then_drafting_beside_verification_is_refused(
    lanes: str, schedule: str
) -> None:
    asked = EngineArguments(lanes=lanes, schedule=schedule)
    with pytest.raises(OptionError, match=r"both lanes have core [01], .* use --schedule seq"):
        asked.cores()
    with pytest.raises(OptionError, match="both lanes have core"):
        asked.open()


@pytest.mark.parametrize(
    ("lanes", "schedule"),
    [
        ("target=0,draft=0", "sequential"),
        ("target=0,draft=0", "auto"),
        ("target=0,draft=1", "ahead"),
    ],
)
def test_control_given_nothing_that_overlaps_or_lanes_apart_then_they_are_taken(
    lanes: str, schedule: str
) -> None:
    assert EngineArguments(lanes=lanes, schedule=schedule).cores() == parse_lanes(lanes)


# --- what the help teaches ------------------------------------------------------------------------


def help_of(axis: str) -> str:
    """What `--help` says of an option."""
    return str(get_type_hints(EngineArguments, include_extras=True)[axis].__metadata__[0].help)


def untaught(words: Mapping[str, str]) -> set[str]:
    """Of words by axis those that the help of their axis does not name."""
    return {
        word for word, axis in words.items() if word not in re.findall(r"[^\W_]+", help_of(axis))
    }


def forms(sentence: str) -> set[str]:
    """Words with a number or a name behind a colon or in parentheses, as the parser lists them."""
    return {word.rstrip(",") for word in re.findall(r"\S*[:(]\S+", sentence)}


def test_given_the_parser_then_the_help_names_all_its_words() -> None:
    assert untaught(composition._AXES) == set()
    for axis in ("drafter", "shape", "rule", "schedule"):
        assert "auto" in help_of(axis)


@pytest.mark.parametrize("axis", ["drafter", "shape", "schedule"])
def test_given_the_parser_then_the_help_names_all_its_forms(axis: str) -> None:
    listed = forms(getattr(composition, f"_{axis}s".upper()))

    assert len(listed) >= 2
    assert {form for form in listed if form not in help_of(axis)} == set()


def test_control_given_a_word_without_help_then_it_is_found() -> None:
    assert untaught({**composition._AXES, "oracle": "drafter", "ring": "shape"}) == {
        "oracle",
        "ring",
    }
    assert "tree:heap" in forms(f"{composition._SHAPES}, tree:heap") - forms(help_of("shape"))
