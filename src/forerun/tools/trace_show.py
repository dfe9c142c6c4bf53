"""`forerun trace show`: one round as a tree in the terminal, or all of them as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from forerun.errors import ForerunError, OptionError
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.tools.terminal import say, write_json
from forerun.tools.trace import NodeLaw, Round, Summary, Trace, summary_of
from forerun.tools.trace_reader import local_model, read_trace

_ACCEPTED, _BONUS, _REJECTED = "green underline", "bold", "dim"
_NUM_SHOWN = 3  # tokens of a law beside a node

Spell = Callable[[int], str]


def run(path: Path, number: int | None, request: int, *, as_json: bool) -> int:
    """Show a trace, or one round of one of its requests."""
    trace = read_trace(path)
    chosen = None if number is None else _round(trace, request, number)
    spell = _spelling(trace.header.model)
    if as_json:
        write_json(_round_dict(chosen, spell) if chosen else _trace_dict(trace))
        return 0
    console = Console()
    if chosen is None:
        _show_all(console, trace, spell)
    else:
        console.print(_head(chosen), soft_wrap=True, markup=False, highlight=False)
        console.print(drawn(chosen, spell))
        console.print(_verdict(chosen, spell), soft_wrap=True, markup=False, highlight=False)
    return 0


def totals(trace: Trace) -> Summary:
    """The figures of a trace, also of one that was cut."""
    return trace.summary or summary_of(len(trace.requests), list(trace.rounds), "")


def drawn(one: Round, spell: Spell) -> Tree:
    """The round's tree: the kept path underlined, the bonus below its end."""
    on_path = dict.fromkeys(one.path[: one.kept + 1])
    branches = {0: Tree(Text.assemble(spell(one.tokens[0]), (" pending", _REJECTED)))}
    laws = {law.node: law for law in one.draft_laws or ()}
    for node, parent in enumerate(one.parents[1:], start=1):
        style = _ACCEPTED if node in on_path else _REJECTED
        text = spell(one.tokens[node])
        mark = " \N{CHECK MARK}" if node in on_path else ""
        label = Text.assemble((text, style), mark, (_figures(one, node), _REJECTED))
        branches[node] = branches[parent].add(label)
    for node, law in laws.items():
        branches[node].label.append(f"  q: {_top(law, spell)}", _REJECTED)  # type: ignore[union-attr]
    if one.bonus >= 0:
        is_kept = one.kept == len(one.path)
        said = " bonus" if is_kept else " bonus, after the end"
        bonus = Text.assemble((spell(one.bonus), _BONUS if is_kept else _REJECTED), said)
        branches[one.path[-1]].add(bonus)
    return branches[0]


def _figures(one: Round, node: int) -> str:
    """What the drafter knew of a node, and what the target says instead where they part."""
    parts = []
    if one.ranks is not None:
        parts.append(f"rank {one.ranks[node]}")
    for name, values in (("margin", one.margins), ("score", one.scores)):
        value = values[node] if values is not None else None
        if value is not None:
            parts.append(f"{name} {value:.2f}")
    law = next((law for law in one.draft_laws or () if law.node == one.parents[node]), None)
    asked = [chance for token, chance in law.children if token == one.tokens[node]] if law else []
    parts += [f"q {chance:.2f}" for chance in asked[:1]]
    return f"  {', '.join(parts)}" if parts else ""


def _top(law: NodeLaw, spell: Spell) -> str:
    return " ".join(f"{spell(token)} {chance:.2f}" for token, chance in law.top[:_NUM_SHOWN])


def _head(one: Round) -> str:
    return (
        f"request {one.request}, round {one.round}: {one.known} tokens known,"
        f" {one.num_drafted} drafted ({one.draw}), {one.num_accepted} accepted"
    )


def _verdict(one: Round, spell: Spell) -> str:
    lines = [f"emitted {' '.join(spell(token) for token in one.emitted)}"]
    lines += [f"target at node {law.node}: {_top(law, spell)}" for law in one.target_laws or ()]
    shared = f", shared by {one.num_rows} rows" if one.num_rows > 1 else ""
    lines.append(
        f"draft {one.draft_s * 1e3:.2f} ms, verify {one.verify_s * 1e3:.2f} ms,"
        f" round {one.round_s * 1e3:.2f} ms{shared}"
        + (f"; ended: {one.finish_reason}" if one.finish_reason else "")
    )
    return "\n".join(lines)


def _show_all(console: Console, trace: Trace, spell: Spell) -> None:
    header, found = trace.header, totals(trace)
    console.print(
        f"{header.model} · {header.drafter}, {header.shape}, {header.rule} · {header.numerics} ·"
        f" {header.machine}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("request", "round", "known", "drafted", "accepted", "    ms"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("emitted", no_wrap=True, overflow="ellipsis")
    for one in trace.rounds:
        figures = (one.request, one.round, one.known, one.num_drafted, one.num_accepted)
        text = Text()
        for at, token in enumerate(one.emitted):
            text.append(spell(token), _ACCEPTED if at < one.num_accepted else "")
            text.append(" ")
        table.add_row(*map(str, figures), f"{one.round_s * 1e3:.1f}", text)
    console.print(table)
    rounds = max(found.num_rounds, 1)
    console.print(
        f"{found.num_tokens} tokens in {found.num_rounds} rounds,"
        f" {found.num_tokens / rounds:.2f} a round; {found.num_accepted} of {found.num_drafted}"
        f" drafts accepted; {found.round_s * 1e3:.1f} ms, of it draft {found.draft_s * 1e3:.1f},"
        f" verify {found.verify_s * 1e3:.1f}"
        + ("" if trace.summary else "; the trace was cut before its end"),
        soft_wrap=True,
    )


def _round(trace: Trace, request: int, number: int) -> Round:
    rounds = trace.rounds_of(request)
    if not 0 <= number < len(rounds):
        raise OptionError(
            f"request {request} has {len(rounds)} rounds, counted from 0; the trace has"
            f" {len(trace.requests)} requests: choose with --request and --round"
        )
    return rounds[number]


def _spelling(model: str) -> Spell:
    """Token texts in quotes where the model's tokenizer is here, else ids."""
    try:
        directory = local_model(model)
        if directory is None:
            return str
        tokenizer = load_tokenizer(directory, read_spec(directory))
    except ForerunError as error:
        say(f"token ids are shown, not texts: {error}")
        return str
    return lambda token: repr(tokenizer.token_bytes(token).decode("utf-8", "replace"))


def _round_dict(one: Round, spell: Spell) -> dict[str, Any]:
    return {**asdict(one), "texts": [spell(token) for token in one.tokens]}


def _trace_dict(trace: Trace) -> dict[str, Any]:
    names = ("request", "round", "known", "num_drafted", "num_accepted", "kept", "round_s")
    return {
        "header": asdict(trace.header),
        "is_cut": trace.summary is None,
        "totals": {
            name: value for name, value in asdict(totals(trace)).items() if name != "sha256"
        },
        "rounds": [{name: getattr(one, name) for name in names} for one in trace.rounds],
    }
