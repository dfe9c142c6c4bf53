"""What the style guide can say in numbers and names; the rest is for readers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
EVERYTHING = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
NATIVE = sorted(chain.from_iterable((ROOT / "native").rglob(f"*.{end}") for end in ("cpp", "h")))
BANNED = {"utils", "util", "helper", "helpers", "misc", "manager"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MEAN_FUNCTION_LINES = 400, 45, 12


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef))


def num_lines(function: ast.FunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def names_of(path: Path) -> Iterator[str]:
    """Every name the file gives to something of its own."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*EVERYTHING, *NATIVE], ids=relative)
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_fit_on_a_screen(path: Path) -> None:
    long = {one.name: num_lines(one) for one in functions_of(path)}
    assert not {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES}


def test_functions_are_small_on_average() -> None:
    assert mean(num_lines(one) for path in SOURCES for one in functions_of(path)) <= (
        MAX_MEAN_FUNCTION_LINES
    )


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_names_say_what_a_thing_is(path: Path) -> None:
    words = {word for name in (path.stem, *names_of(path)) for word in name.lower().split("_")}
    assert not words & BANNED


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_library_does_not_print(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_module_says_what_it_knows(path: Path) -> None:
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree_of(path))


def test_the_core_never_imports_torch() -> None:
    allowed = ("src/forerun/backends/torch/", "src/forerun/train/")
    importing = [path for path in SOURCES if "torch" in set(imported_by(path))]
    assert [relative(one) for one in importing if not relative(one).startswith(allowed)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_code_of_a_checkpoint_is_never_trusted(path: Path) -> None:
    assert "trust_remote_code" not in path.read_text(encoding="utf-8")


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=relative)
def test_the_map_of_the_tree_has_every_file(path: Path) -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    is_named = path.name == "__init__.py" or path.name in text
    assert is_named or (path.parent.name == "kernels" and f"`{path.stem}`" in text)
