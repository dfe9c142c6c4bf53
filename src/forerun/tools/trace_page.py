"""`forerun trace page`: a trace and the page that shows it, as one HTML file that needs no server.

Knows the page's files and both kinds of traces: those of `generate --trace` (docs/trace.md), whose
tokens it gives their texts, and those that the page saved (docs/page.md).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from forerun.errors import ForerunError, OptionError
from forerun.tools.terminal import say
from forerun.tools.trace import NodeLaw, Round, Trace

_MODULES = ("state", "traces", "asking", "drawing", "page")  # each behind those it imports
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) (\w+))", re.MULTILINE)

Spell = Callable[[int], str]


def trace_page(
    file: Annotated[
        Path, typer.Argument(help="A file of generate --trace, or one that the page saved.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="FILE with .html if absent.", show_default=False),
    ] = None,
) -> int:
    """Write one HTML file that shows a trace in any browser, without a server.

    \b
    Examples
      forerun generate "def quicksort(items):" --trace run.jsonl
      forerun trace page run.jsonl -o run.html
    """
    target = output or file.with_suffix(".html")
    if target.resolve() == file.resolve():
        raise OptionError(f"{target} is the trace itself: name another file with --output")
    text = page_of(file.name, shown_text(file), page_sources())
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error.strerror}") from error
    say(f"wrote {target}, {len(text.encode()):,} bytes: open it in a browser")
    return 0


def page_sources() -> Mapping[str, str]:
    """The page's files as they were installed, by name."""
    directory = files("forerun.serve") / "page"
    names = ["index.html", "page.css", "icon.svg", *(f"{name}.js" for name in _MODULES)]
    return {name: (directory / name).read_text(encoding="utf-8") for name in names}


def shown_text(path: Path) -> str:
    """A trace as lines that the page reads, its tokens with their texts where those are known.

    Raises:
        OptionError: no such file, no trace, or lines that contradict each other.
    """
    from forerun.tools.trace_reader import read_trace

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the trace {path} cannot be read: {error}") from error
    kept = saved_text(path, text)
    if kept is not None:
        return kept
    trace = read_trace(path)
    return lines_of(trace, _spelling(trace.header.model))


def saved_text(path: Path, text: str) -> str | None:
    """The whole lines of a file that the page saved; None of a trace of `generate`.

    Raises:
        OptionError: it is neither.
    """
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    try:
        found = [json.loads(line) for line in lines]
        kinds = {one["kind"] for one in found}
    except (ValueError, TypeError, KeyError) as error:
        raise OptionError(
            f"{path} is no trace: its lines are not those of docs/trace.md"
        ) from error
    if "round" not in kinds:
        raise OptionError(f"{path} has no round: there is nothing to show")
    is_saved = all("texts" in one for one in found if one["kind"] == "round")
    return "".join(line + "\n" for line in lines) if is_saved else None


def lines_of(trace: Trace, spell: Spell | None) -> str:
    """A trace of `generate` as the page's lines; ids are shown where nobody can spell them."""
    header = {"kind": "header", **asdict(trace.header)}
    requests = [{"kind": "request", "request": one.request} for one in trace.begun]
    rounds = [_round(one, spell) for one in trace.rounds]
    return "".join(json.dumps(one) + "\n" for one in [header, *requests, *rounds])


def _round(one: Round, spell: Spell | None) -> dict[str, Any]:
    told = asdict(one)
    for name in ("draft_laws", "choices", "target_laws"):
        del told[name]
    if spell is not None:
        told["texts"] = [spell(token) for token in one.tokens]
        told["bonus_text"] = spell(one.bonus)
    chances = {"p": _chances(one, one.target_laws), "q": _chances(one, one.draft_laws)}
    return {"kind": "round", **told, **chances}


def _chances(one: Round, laws: Sequence[NodeLaw] | None) -> list[float | None] | None:
    """What laws give the drafted nodes below theirs."""
    if laws is None:
        return None
    found: list[float | None] = [None] * len(one.tokens)
    for law in laws:
        children = [node for node, parent in enumerate(one.parents) if parent == law.node]
        for node, (_, chance) in zip(children, law.children, strict=True):
            found[node] = chance
    return found


def _spelling(model: str) -> Spell | None:
    """Texts of tokens where the model's tokenizer is on this machine."""
    from forerun.models.spec import read_spec
    from forerun.models.tokenizer import load_tokenizer
    from forerun.tools.trace_reader import local_model

    try:
        directory = local_model(model)
        if directory is None:
            raise OptionError(
                f"{model} is not on this machine: fetch it, then write the page again"
            )
        tokenizer = load_tokenizer(directory, read_spec(directory))
    except ForerunError as error:
        say(f"token ids are shown, not texts: {error}")
        return None

    def spell(token: int) -> str:
        return "" if token < 0 else tokenizer.token_bytes(token).decode("utf-8", "replace")

    return spell


def page_of(name: str, trace: str, sources: Mapping[str, str]) -> str:
    """The page with its trace: nothing in it is fetched, and by its policy nothing else runs."""
    script = bundled(sources)
    style = sources["page.css"]
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    icon = base64.b64encode(sources["icon.svg"].encode()).decode()
    # In JSON `<` stands in strings only, where it may be written so; then no text ends the block.
    block = trace.replace("<", "\\u003c")
    held = (
        f'<script type="application/json" id="trace" data-name="{html.escape(name)}">{block}'
        "</script>\n</body>"
    )
    charset = '<meta charset="utf-8">'
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    parts = {
        charset: f"{charset}\n{meta}",
        'href="/page/icon.svg"': f'href="data:image/svg+xml;base64,{icon}"',
        '<link rel="stylesheet" href="/page/page.css">': f"<style>{style}</style>",
        '<script type="module" src="/page/page.js"></script>': (
            f'<script type="module">{script}</script>'
        ),
        "</body>": held,
    }
    shown = re.compile("|".join(map(re.escape, parts)))
    return shown.sub(lambda found: parts[found[0]], sources["index.html"])


def bundled(sources: Mapping[str, str]) -> str:
    """The page's modules as one, each in a scope of its own."""
    return "".join(_scoped(name, sources[f"{name}.js"]) for name in _MODULES)


def _scoped(name: str, source: str) -> str:
    exports = ", ".join(_EXPORT.findall(source))
    body = _EXPORT.sub("", _IMPORT.sub(r"const \1 = module_\2;", source))
    return f"const module_{name} = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();\n"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
