"""Suite prompts out of held-out source: headers, docstrings, edits, inventories.

Pure: documents in, candidates out, in an order fixed by a seed. Which of them are used is decided
by `make_suite.py`. Lines are counted from 1, as `ast` does.
"""

from __future__ import annotations

import ast
import builtins
import csv
import io
import json
import keyword
import random
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Count = Callable[[str], int]  # tokens of a text
TARGETS = {"64": 66, "1k": 1040, "4k": 3700}
_WORD = re.compile(r"[A-Za-z_]\w*")
_ORDINARY = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "self", "cls"}
_PREFIXES = ("own_", "known_", "given_", "current_", "first_", "plain_")


@dataclass(frozen=True, slots=True)
class Document:
    """A held-out file."""

    package: str
    path: str
    text: str
    license: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that could be used: `key` names the place it is from, for use only once."""

    document: Document
    key: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Place:
    """A documented function or class: where it starts, and where its docstring is."""

    document: Document
    name: str
    start: int
    doc_start: int
    doc_end: int
    end: int
    is_indented: bool


def places(documents: Sequence[Document], seed: int) -> list[Place]:
    """Every documented definition, shuffled."""
    found = [place for document in documents for place in _places_of(document)]
    random.Random(seed).shuffle(found)
    return found


def headers(found: Sequence[Place], context: str, count: Count) -> Iterator[Candidate]:
    """Everything up to the end of a docstring: what comes next is a body nobody has seen."""
    for place in found:
        prompt = _window(place, place.doc_end, context, count)
        if prompt is not None:
            yield Candidate(place.document, f"{place.name}", prompt)


def halves_of_docstrings(found: Sequence[Place], context: str, count: Count) -> Iterator[Candidate]:
    """Everything up to the middle of a docstring of some length."""
    for place in found:
        lines = place.document.text.splitlines()[place.doc_start - 1 : place.doc_end]
        words = " ".join(lines).split()
        if len(lines) < 5 or len(words) < 40:
            continue
        middle = place.doc_start + len(lines) // 2
        line = place.document.text.splitlines()[middle - 1]
        if len(line.split()) < 5 or ">>>" in line or "::" in line:
            continue
        start = max(place.start, middle - 6) if context == "64" else None
        prompt = _window(place, middle, context, count, start)
        if prompt is not None:
            # In the middle of a line too: the next word is the model's.
            yield Candidate(place.document, place.name, prompt.rstrip("\n").rsplit(" ", 2)[0])


def edits(documents: Sequence[Document], context: str, count: Count) -> Iterator[Candidate]:
    """A piece of a file, an instruction, and the start of the piece as the instruction wants it."""
    target = TARGETS[context]
    for number, document in enumerate(documents):
        piece = _statements(document, int(target * 0.62), count, number)
        if piece is None:
            continue
        for shift in range(len(_EDITS)):
            edit = _EDITS[(number + shift) % len(_EDITS)]
            edited = edit(piece, number)
            if edited is None:
                continue
            instruction, copy = edited
            prompt = _begun(f"{piece}\n\n{instruction}\n", copy, target, count)
            if prompt is not None:
                yield Candidate(document, f"{document.path}:{edit.__name__.strip('_')}", prompt)
                break


def inventories(documents: Sequence[Document], context: str, count: Count) -> Iterator[Candidate]:
    """What is defined where in a package, as JSON, CSV and TOML, cut in the middle."""
    by_package: dict[str, list[Document]] = {}
    for document in documents:
        by_package.setdefault(document.package, []).append(document)
    forms = (_as_json, _as_csv, _as_toml)
    for number, (package, own) in enumerate(sorted(by_package.items())):
        form = forms[number % len(forms)]
        rows = [row for document in own for row in _definitions(document)]
        text = _begun("", form(package, rows), TARGETS[context], count)
        if text is not None:
            whole = Document(package, package, "", own[0].license)
            yield Candidate(whole, f"{package}:{form.__name__.strip('_')}", text)


def _places_of(document: Document) -> Iterator[Place]:
    for node in ast.walk(ast.parse(document.text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = node.body[0]
        if ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        yield Place(
            document,
            node.name,
            start,
            first.lineno,
            first.end_lineno or first.lineno,
            node.end_lineno or node.lineno,
            node.col_offset > 0,
        )


def _window(
    place: Place, last: int, context: str, count: Count, start: int | None = None
) -> str | None:
    """The lines before and including `last`: the definition's own at 64, what fits otherwise."""
    lines = place.document.text.splitlines(keepends=True)
    if context == "64":
        return textwrap.dedent("".join(lines[(start or place.start) - 1 : last]))
    target, first = TARGETS[context], place.start
    size = count("".join(lines[first - 1 : last]))
    while first > 1 and size <= target:
        first -= 1
        size += count(lines[first - 1])
    tops = [
        number
        for number in range(first + 1, place.start)
        if not lines[number - 2].strip() and lines[number - 1][:1].strip() not in ("", "#", ")")
    ]
    wanted = next(iter(tops), first + 1) if first > 1 else 1
    near = [n for n in (wanted, first + 1) if count("".join(lines[n - 1 : last])) >= target * 0.85]
    return "".join(lines[near[0] - 1 : last]) if near else None


def _statements(document: Document, target: int, count: Count, number: int) -> str | None:
    """Neighbouring top-level definitions of about `target` tokens."""
    lines = document.text.splitlines(keepends=True)
    body = [node for node in ast.parse(document.text).body if not isinstance(node, ast.Import)]
    firsts = [
        min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        for node in body
    ]
    for begin in range(number % 3, len(body)):
        for end in range(begin, len(body)):
            text = "".join(lines[firsts[begin] - 1 : body[end].end_lineno])
            size = count(text)
            if size > target * 1.15:
                break
            if size > target * 0.8 and "def " in text:
                return text
    return None


def _begun(before: str, copy: str, target: int, count: Count) -> str | None:
    """`before`, and as many lines of `copy` as fit while a good part of it is left to write."""
    lines, size, taken = copy.splitlines(keepends=True), count(before), 0
    while taken < len(lines) and size + count(lines[taken]) <= target:
        size += count(lines[taken])
        taken += 1
    rest = count("".join(lines[taken:]))
    if size < target * 0.85 or taken < 3 or rest < 60:
        return None
    return before + "".join(lines[:taken])


def _renamed(piece: str, number: int) -> tuple[str, str] | None:
    names = Counter(name for name in _WORD.findall(piece) if name not in _ORDINARY)
    often = [name for name, times in names.most_common(8) if times >= 4 and len(name) >= 4]
    if not often:
        return None
    old = often[number % min(3, len(often))]
    new = _PREFIXES[number % len(_PREFIXES)] + old.lstrip("_")
    return (
        f"# The same code with `{old}` renamed to `{new}`:",
        re.sub(rf"\b{old}\b", new, piece),
    )


def _requoted(piece: str, _number: int) -> tuple[str, str] | None:
    plain = piece.replace('"""', "")
    if "'" in plain or plain.count('"') < 12:
        return None
    return (
        "# The same code with single quotes around strings:",
        re.sub(r'(?<!")"(?!")', "'", piece),
    )


def _uncommented(piece: str, _number: int) -> tuple[str, str] | None:
    lines = piece.splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("#")]
    if len(lines) - len(kept) < 4:
        return None
    return "# The same code without comments:", "".join(kept)


def _narrowed(piece: str, _number: int) -> tuple[str, str] | None:
    lines = piece.splitlines(keepends=True)
    if any((len(line) - len(line.lstrip(" "))) % 4 for line in lines if line.strip()):
        return None
    halved = [" " * ((len(line) - len(line.lstrip(" "))) // 2) + line.lstrip(" ") for line in lines]
    return "# The same code, indented by two spaces:", "".join(halved)


def _undocumented(piece: str, _number: int) -> tuple[str, str] | None:
    lines = piece.splitlines(keepends=True)
    found = list(_places_of(Document("", "", piece, "")))
    if len(found) < 2:
        return None
    dropped = {n for place in found for n in range(place.doc_start, place.doc_end + 1)}
    kept = [line for n, line in enumerate(lines, start=1) if n not in dropped]
    return "# The same code without docstrings:", "".join(kept)


_EDITS = (_renamed, _narrowed, _uncommented, _requoted, _undocumented)


def _definitions(document: Document) -> Iterator[dict[str, object]]:
    for node in ast.walk(ast.parse(document.text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            says = (ast.get_docstring(node) or "").strip().split("\n")[0]
            yield {
                "name": node.name,
                "file": document.path,
                "line": node.lineno,
                "arguments": [one.arg for one in node.args.args],
                "is_async": isinstance(node, ast.AsyncFunctionDef),
                "returns": ast.unparse(node.returns) if node.returns else None,
                "doc": says,
            }


def _as_json(package: str, rows: Sequence[dict[str, object]]) -> str:
    return json.dumps({"package": package, "functions": rows}, indent=2)


def _as_csv(_package: str, rows: Sequence[dict[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "file", "line", "num_arguments", "is_async", "returns", "doc"])
    for row in rows:
        writer.writerow([len(v) if isinstance(v, list) else v for v in row.values()])
    return out.getvalue()


def _as_toml(package: str, rows: Sequence[dict[str, object]]) -> str:
    parts = [f"[package]\nname = {json.dumps(package)}\n"]
    for row in rows:
        pairs = "".join(f"{k} = {json.dumps(v)}\n" for k, v in row.items() if v not in (None, ""))
        parts.append(f"[[function]]\n{pairs}")
    return "\n".join(parts)
