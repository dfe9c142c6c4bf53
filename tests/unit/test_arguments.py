"""Values of the command line that forerun reads itself: lanes and prompt files."""

from __future__ import annotations

from pathlib import Path

import pytest

from forerun.errors import OptionError
from forerun.tools.arguments import parse_lanes
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
