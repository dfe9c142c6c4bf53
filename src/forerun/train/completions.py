"""Do sampled completions of function headers parse?

Knows Python text and token ids. Must not know models.

*Parse share.* A completion counts when the header line plus a prefix of the completion, cut at a
line end or not at all, is valid Python and that prefix keeps at least 80 % of the generated tokens.
A header that is indented stands inside `if True:` blocks, one for each indentation level to its
left, so that a completion may go on after the function where the file would.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forerun.train.corpus import Document

KEPT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Header:
    """A function header in a held-out file and everything in front of its body."""

    source: str
    prefix: str
    indent: int


def function_headers(document: Document) -> list[Header]:
    """Headers of the functions of a file that have a body of at least three lines."""
    lines = document.text.splitlines(keepends=True)
    found = []
    for node in ast.walk(ast.parse(document.text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body_line = node.body[0].lineno
        if body_line <= node.lineno or (node.end_lineno or 0) - body_line < 2:
            continue
        header = "".join(lines[node.lineno - 1 : body_line - 1])
        if header.rstrip().endswith(":") and not header.lstrip().startswith("#"):
            prefix = "".join(lines[: body_line - 1])
            found.append(Header(header, prefix, node.col_offset))
    return found


def parses(
    header: Header, token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> bool:
    """Whether a prefix with at least `KEPT_SHARE` of the completion's tokens is valid Python."""
    least = decode(token_ids[: round(KEPT_SHARE * len(token_ids))])
    whole = decode(token_ids)
    ends = [at for at, letter in enumerate(whole + "\n") if letter == "\n" and at >= len(least)]
    return any(_valid(_nested(header) + whole[:end]) for end in reversed(ends))


def _nested(header: Header) -> str:
    blocks = "".join(f"{' ' * indent}if True:\n" for indent in range(0, header.indent, 4))
    return blocks + header.source


def _valid(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
