"""Who may import whom; names and sizes are the business of test_style."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import forerun

ROOT = Path(forerun.__file__).parent
# A file imports only from its own room and from rooms of lower rank.
RANKS = {
    "errors": 0,
    "composition": 1,
    "options": 2,
    "tree": 1,
    "draft": 2,
    "models": 3,
    "noise": 3,
    "protocols": 4,
    "stats": 4,
    "forecast": 5,
    "sampling": 5,
    "shapes": 6,
    "rules": 6,
    "schedules": 6,
    "backends": 7,
    "drafters": 8,
    "control": 8,
    "engine": 9,
    "serve": 10,
    "tools": 10,
    "train": 11,
    "tools.commands": 12,  # what typer sees: it opens every room
    "cli": 13,
}
FILES = sorted(ROOT.rglob("*.py"))


def room(parts):
    names = [part.removesuffix(".py") for part in parts]
    whole = ".".join(names[:2])
    return whole if whole in RANKS else names[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_given_a_file_then_it_imports_only_downwards(path):
    own = room(path.relative_to(ROOT).parts)
    if own in {"__init__", "__main__"}:
        return

    for module in imported(path):
        other = room(module.split(".")[1:])
        assert other in RANKS, f"{path} imports {module}: give its room a rank"
        assert other == own or RANKS[other] < RANKS[own], f"{path} imports {module}"


def imported(path):
    """Modules of this package that a file imports, but for the core's own extension."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            deeper = node.module == "forerun"
            names = [f"forerun.{alias.name}" for alias in node.names] if deeper else [node.module]
        for name in names:
            if name.startswith("forerun.") and name != "forerun._native":
                yield name


@pytest.mark.parametrize("folder", ["shapes", "rules", "schedules", "drafters", "engine"])
def test_given_the_middle_then_it_never_imports_a_tensor_library(folder):
    for path in (ROOT / folder).glob("*.py"):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.MULTILINE), path
