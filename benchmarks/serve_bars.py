"""What the turns of `serve.py` come to: rates and drafts by load, each rate against its bars.

Pure arithmetic, and the table of it. Must not measure anything.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from forerun.tools.bench_serve_show import composed

LEAST_OF_BEST = 0.97
LEAST_OF_PEER = {1: 4.0, 4: 3.5, 32: 2.0}
# tokens/s of vLLM 0.32 on two cores, random weights of this size, by requests at a time.
NOTED_PEER = {1: 19.6, 4: 68.5, 8: 135.0, 16: 246.0, 32: 375.0}
NOTED_SIZE = (220e6, 300e6)  # parameters of models that it may be compared with
PEER = "peer"
_HEADS = (
    "at a time", "off", "fixed", "auto", "of best", "bar", "of peer", "bar", "drafts", "kept",
)  # fmt: skip


def rates_of(runs: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Tokens a second by concurrency and composition, the median of its turns."""
    found: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[int(run["concurrency"])][run["composition"]].append(run["tokens_per_s"])
    return {
        load: {name: median(rates) for name, rates in own.items()} for load, own in found.items()
    }


def drafts_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Was anything drafted? For each composition and concurrency, over all turns: tokens drafted in
    a round of a request, and the share of them that was kept. No row for who does not tell."""
    told: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        if run["acceptance"] is not None:
            told[run["composition"], int(run["concurrency"])].append(run["acceptance"])
    rows = []
    for (composition, load), turns in told.items():
        num_rounds, num_drafted, num_kept = (
            sum(one[name] for one in turns)
            for name in ("num_steps", "num_draft_tokens", "num_accepted_tokens")
        )
        rows.append(
            {
                "composition": composition,
                "concurrency": load,
                "drafted_a_round": num_drafted / num_rounds if num_rounds else None,
                "kept": num_kept / num_drafted if num_drafted else None,
            }
        )
    return rows


def peer_of(path: Path | None, num_parameters: int) -> Mapping[int, float]:
    """Tokens a second of the engine compared with, by concurrency; none known of other sizes."""
    if path is None:
        return NOTED_PEER if NOTED_SIZE[0] <= num_parameters <= NOTED_SIZE[1] else {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {int(row["concurrency"]): row["tokens_per_s"] for row in rows}


def judged(
    rates: Mapping[int, Mapping[str, float]], peer: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Each concurrency against its bars; a ratio is None where there is nothing to compare with."""
    rows = []
    for load, own in rates.items():
        best = max(own["off"], own["fixed"])
        of_best = own["auto"] / best if best else None
        other = own.get(PEER) or peer.get(load)
        of_peer = own["auto"] / other if other else None
        least = LEAST_OF_PEER.get(load) if of_peer is not None else None
        rows.append(
            {
                "concurrency": load,
                **own,
                "of_best": of_best,
                "best_is_met": of_best is not None and of_best >= LEAST_OF_BEST,
                "of_peer": of_peer,
                "least_of_peer": least,
                "peer_is_met": None if of_peer is None or least is None else of_peer >= least,
            }
        )
    return rows


def show(report: Mapping[str, Any]) -> None:
    """Print the bars as a table, and what stands beside them."""
    print(f"{report['machine']}, {report['parameters'] / 1e6:.0f}M parameters, tokens/s")
    for name, told in report["served"].items():
        print(f"{name}: {'not told' if told is None else composed(told)}")
    print("{:10}{:>9}{:>9}{:>9}{:>9}{:>8}{:>9}{:>8}{:>8}{:>6}".format(*_HEADS))
    words = {True: "met", False: "MISSED", None: "-"}
    drafts = {one["concurrency"]: one for one in report["drafts"] if one["composition"] == "auto"}
    for row in report["bars"]:
        own = drafts.get(row["concurrency"], {})
        figures = row["of_best"], row["of_peer"], own.get("drafted_a_round"), own.get("kept")
        of_best, of_peer, drafted, kept = ("-" if one is None else f"{one:.2f}" for one in figures)
        print(
            f"{row['concurrency']:<10}{row['off']:9.1f}{row['fixed']:9.1f}{row['auto']:9.1f}"
            f"{of_best:>9}{words[row['best_is_met']]:>8}{of_peer:>9}{words[row['peer_is_met']]:>8}"
            f"{drafted:>8}{kept:>6}"
        )
    print("drafts: tokens that `auto` drafted in a round of a request; kept: the share of them")
    busiest = max(run["others"]["cores"] for run in report["runs"])
    print(f"other processes kept up to {busiest:.1f} cores busy meanwhile")
    check = report["check"]
    print(
        f"identical: {'yes' if check['identical'] else 'NO'}, {check['num_compared']} prompts, of"
        f" which {check['num_everywhere']} were answered by every server at every load"
    )
    for kind, sentence in report["errors"].items():
        print(f"{kind}: {sentence}")
