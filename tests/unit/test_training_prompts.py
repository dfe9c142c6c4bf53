"""Prompts to train on are of many kinds, and none is from what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "training_prompts.py"
LINES = "\n".join(f"- the {name} of a page that somebody wrote" for name in "abcdefghijklmnopqrst")
CODE = '''def area(width, height):
    """The area of a rectangle, for rectangles whose sides are known and are not negative.

    Both sides are of one unit, and what comes back is of the square of that unit, as anybody
    who has ever bought a carpet knows and as is said here only so that nobody has to ask.
    """
    product = width * height
    return product
'''


def install(root: Path, name: str, licence: str, text: str) -> None:
    """A package with one page and one table, as an installer leaves it."""
    info, package = root / f"{name}-1.0.dist-info", root / name
    info.mkdir(parents=True)
    package.mkdir()
    (package / "README.md").write_text(text)
    (package / "LICENSE.txt").write_text(LINES)
    (package / "wide.json").write_text("[" + "1, " * 400 + "1]\n" * 2)
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: {licence}\n"
    (info / "METADATA").write_text(metadata)
    files = [f"{name}/{one}" for one in ("README.md", "LICENSE.txt", "wide.json")]
    (info / "RECORD").write_text("".join(f"{one},,\n" for one in files))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    work = tmp_path_factory.mktemp("prompts")
    root, corpus, out = work / "packages", work / "corpus", work / "prompts.jsonl"
    install(root, "carpets", "MIT", LINES)
    install(root, "click", "BSD-3-Clause", LINES.replace("page", "held-out page"))
    install(root, "secrets-of-mine", "GPL-3.0-only", LINES.replace("page", "unfree page"))
    corpus.mkdir()
    document = {"package": "carpets", "path": "carpets/area.py", "text": CODE}
    (corpus / "train.jsonl").write_text(json.dumps(document) + "\n")
    command = [sys.executable, str(SCRIPT), "--corpus", str(corpus), "--out", str(out)]
    command += ["--root", str(root), "--of-each", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["prompt"] for line in out.read_text().splitlines()]


def test_given_a_definition_then_its_body_is_left_to_write(prompts: list[str]) -> None:
    assert any(one.endswith('ask.\n    """\n') for one in prompts)
    assert not any("product = width" in one for one in prompts)


def test_given_pages_then_they_are_cut_at_lines_and_each_prompt_is_there_once(
    prompts: list[str],
) -> None:
    pages = [one for one in prompts if "of a page" in one]
    assert pages
    assert all(one.endswith("\n") for one in pages)
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("word", ["held-out page", "unfree page", "1, 1, 1"])
def test_given_what_is_measured_or_not_free_or_a_table_then_it_is_not_there(
    prompts: list[str], word: str
) -> None:
    assert not any(word in one for one in prompts)
