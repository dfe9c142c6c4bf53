"""The race against other engines as a page: every engine and mode, by category, and the bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from page import Report, header, interval, line, optional, source, verdict

RIVALS = ("Transformers", "vLLM (CPU)", "OpenVINO GenAI")
PLAIN_MODES = ("plain", "compiled")
LEARNED = ("dspark", "dflash", "eagle3")
END_TO_END_GOAL = 4.0


def peers_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Every engine and mode of each file, forward passes where measured, and the bars.

    The picture is of a model's first file.
    """
    drawn = set[str]()
    for report in reports:
        name = Path(report["model"]).name
        yield f"## Other engines on {name}{', another run' if name in drawn else ''}\n"
        yield source(report)
        picture = f"peers-{name}.png"
        if name not in drawn and (folder / picture).exists():
            yield f"![tokens per second of every engine]({picture})\n"
        drawn.add(name)
        yield from header(
            "engine", "mode", "tokens/s", "÷ forerun plain", "95 %", "first token, ms",
            "tokens equal to forerun's", "loops", "settings",
        )  # fmt: skip
        yield from map(peer_line, report["rows"])
        yield ""
        yield from swept(report)
        yield from peer_categories(report)
        yield from forward_table(report)
        yield from peer_bars(report)


def peer_line(row: Report) -> str:
    """One engine and mode; what did not run says why."""
    settings = ", ".join(
        [
            f"{row['threads']} threads",
            *(f"{name} {value}" for name, value in row["options"].items()),
            *([] if row["same_weights"] else ["**other weights**"]),
            *([row["reason"]] if row["reason"] else []),
        ]
    )
    if "tokens_per_s" not in row:
        return line(row["engine"], row["mode"], *["—"] * 6, f"did not run: {row['reason']}")
    return line(
        row["engine"],
        row["mode"],
        f"{row['tokens_per_s']:.1f}",
        f"{row['ratio_to_forerun_plain']:.2f}",
        interval(row["ratio_ci95"]),
        f"{row['first_token_s'] * 1e3:.0f}",
        f"{row['equal_tokens']:.1%}",
        f"{row['loop_share']:.0%}",
        settings,
    )


def swept(report: Report) -> Iterator[str]:
    """What the settings were chosen from, where they were."""
    if "swept" in report:
        threads, lengths = (
            ", ".join(map(str, report["swept"][key])) for key in ("threads", "num_draft")
        )
        yield (
            f"Settings are each engine's fastest of {threads} threads and {lengths} drafted tokens,"
            f" on {report['swept']['num_prompts']} prompts,"
            f" {report['swept']['max_tokens']} tokens each.\n"
        )


def peer_categories(report: Report) -> Iterator[str]:
    """The ratio to our plain decoding in each category, without loops behind the stroke."""
    rows = [row for row in report["rows"] if row.get("categories")]
    names = sorted({name for row in rows for name in row["categories"]})
    if not rows:
        return
    yield from header("÷ forerun plain / without loops", "", *names)
    for row in rows:
        found = [row["categories"].get(name) for name in names]
        cells = [
            "—"
            if one is None
            else f"{one['ratio_to_forerun_plain']:.2f} / {optional(one['ratio_without_loops'])}"
            for one in found
        ]
        yield line(row["engine"], row["mode"], *cells)
    yield ""


def forward_table(report: Report) -> Iterator[str]:
    """Milliseconds of a pass of n tokens, where an engine lets one measure it."""
    rows = [row for row in report["rows"] if row.get("forward_s")]
    counts = sorted({int(count) for row in rows for count in row["forward_s"]})
    if not rows:
        return
    yield from header("forward pass, ms", *(f"n = {count}" for count in counts))
    for row in rows:
        times = [row["forward_s"].get(str(count)) for count in counts]
        yield line(row["engine"], *("—" if one is None else f"{one * 1e3:.1f}" for one in times))
    yield ""


def peer_bars(report: Report) -> Iterator[str]:
    """Our own plain decoding and our best speculation beside the best of the others'.

    Speeds are ratios to our plain decoding of the same prompt in the same turn.
    """
    speeds = {
        (row["engine"], row["mode"]): row["ratio_to_forerun_plain"]
        for row in report["rows"]
        if "tokens_per_s" in row and row["same_weights"]
    }
    own = {mode: speed for (engine, mode), speed in speeds.items() if engine == "forerun"}
    plain = {e: v for (e, mode), v in speeds.items() if e != "forerun" and mode == "plain"}
    guessing = {k: v for k, v in speeds.items() if k[0] != "forerun" and k[1] not in PLAIN_MODES}
    chains = [v for mode, v in own.items() if mode.startswith("lm") and "tree" not in mode]
    lm = max(chains, default=None)
    llama = {engine: speed for engine, speed in plain.items() if "llama" in engine.lower()}
    others = {engine: speed for engine, speed in plain.items() if engine in RIVALS}
    yield from header("bar", "goal", "came out", "")
    for words, goal, ours, theirs in (
        ("plain ÷ the fastest of " + ", ".join(RIVALS), 1.8, own["plain"], others),
        ("plain ÷ llama.cpp at bf16", 1.25, own["plain"], llama),
        ("`lm` chain ÷ the best speculative mode of any other", 2.2, lm, guessing),
    ):
        is_known = ours is not None and theirs
        yield verdict(words, goal, ours / max(theirs.values()) if is_known else None)
    yield from end_to_end(report)
    yield ""


def end_to_end(report: Report) -> Iterator[str]:
    """Our best way of decoding beside the fastest plain decoding of any other; no loops.

    Only where a learned drafter raced: the goal was set for them.
    """
    rates = {
        (row["engine"], row["mode"]): row["ratio_without_loops"]
        for row in report["rows"]
        if row["same_weights"] and row.get("ratio_without_loops") is not None
    }
    own = {mode: rate for (engine, mode), rate in rates.items() if engine == "forerun"}
    plain = {
        engine: rate
        for (engine, mode), rate in rates.items()
        if engine != "forerun" and mode in PLAIN_MODES
    }
    if not plain or not any(mode.startswith(LEARNED) for mode in own):
        return
    best, fastest = max(own, key=own.__getitem__), max(plain, key=plain.__getitem__)
    words = f"end to end without loops: {best} ÷ {fastest} plain"
    yield verdict(words, END_TO_END_GOAL, own[best] / plain[fastest])
