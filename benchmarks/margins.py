"""How often a drafted child of a rank and margin is the target's choice, and the curves fitted.

    python benchmarks/margins.py --out margins.json

The starting figures of `forerun.drafters.margins` are these curves. Wide fixed trees are drafted on
the suite, so that children are seen whatever their margin; no figure here depends on a clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun import Engine, SamplingParams, Speculation
from forerun.draft import Draft, Verdict
from forerun.engine.sequence import Sequence
from forerun.protocols import LEAST_MARGIN, MARGIN_STEP, NUM_MARGINS, NUM_RANKS
from forerun.stats import RoundStats
from forerun.tools.bench_decode import progress
from forerun.tools.prompt_files import read_suite, spread

_OWN_CURVE = 3  # ranks
TREE = "tree:8x2x2x1"  # every rank below the pending token, two below the likeliest paths


class Counts:
    """A witness that counts children of kept nodes by rank and margin: `[kept or seen, R, M]`."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, NUM_RANKS, NUM_MARGINS), np.int64)

    def saw(
        self,
        rows: Rows[Sequence],
        drafts: Rows[Draft],
        said: Any,
        starts: Rows[int],
        verdicts: Rows[Verdict],
    ) -> None:
        """Count what became of every child of a kept node."""
        del rows
        for draft, start, verdict in zip(drafts, starts, verdicts, strict=False):
            if draft.margins is None or draft.ranks is None:
                continue
            for node in range(1, len(draft.tree)):
                parent = int(draft.tree.parents[node])
                if parent not in verdict.path:
                    continue
                is_kept = int(draft.tree.tokens[node]) == int(said[start + parent])
                at = _place(int(draft.ranks[node]), float(draft.margins[node]))
                self.counts[0][at] += is_kept
                self.counts[1][at] += 1

    def settled(self, stats: RoundStats) -> None:
        """Nothing is timed."""


def _place(rank: int, margin: float) -> tuple[int, int]:
    at = int((min(max(margin, -1e9), 1e9) - LEAST_MARGIN) // MARGIN_STEP)
    return min(rank, NUM_RANKS - 1), min(max(at, 0), NUM_MARGINS - 1)


def fitted(kept: NDArray[np.int64], seen: NDArray[np.int64]) -> tuple[float, float, float, float]:
    """`low, high, middle, width` of the likeliest logistic curve over margins, by a grid."""
    margins = LEAST_MARGIN + MARGIN_STEP * (np.arange(NUM_MARGINS) + 0.5)
    best, found = -np.inf, (0.0, 1.0, 0.0, 1.0)
    for width in (0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0):
        for middle in np.arange(-5.0, 5.1, 0.5):
            curve = 1 / (1 + np.exp(-(margins - middle) / width))
            for low in (0.0, 0.05, 0.1, 0.2, 0.3):
                for high in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
                    if high <= low:
                        continue
                    p = np.clip(low + (high - low) * curve, 1e-4, 1 - 1e-4)
                    likelihood = float(kept @ np.log(p) + (seen - kept) @ np.log(1 - p))
                    if likelihood > best:
                        best, found = likelihood, (low, high, float(middle), width)
    return found


def main() -> int:
    """Count, fit, print the lines of `margins.py`, write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="forerun-code")
    parser.add_argument("--drafter", default="lm")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    prompts = [prompt.text for prompt in spread(read_suite("all"), options.limit)]
    report = {}
    for name, temperatures in (("sampled", (0.5, 0.7, 1.0)), ("greedy", (0.0,))):
        counts = Counts()
        speculation = Speculation(options.drafter, TREE)
        with Engine(
            options.model, speculate=speculation, witness=counts, threads=options.threads
        ) as engine:
            for temperature in temperatures:
                for at, prompt in enumerate(prompts):
                    progress(f"T={temperature} prompt {at + 1} of {len(prompts)}")
                    params = SamplingParams(
                        temperature=temperature, seed=1, max_tokens=options.max_tokens
                    )
                    engine.generate(prompt, params)
        progress("")
        kept, seen = counts.counts
        # Later ranks are rare: they share one curve.
        pooled = [(kept[r], seen[r]) for r in range(_OWN_CURVE)]
        pooled.append((kept[_OWN_CURVE:].sum(0), seen[_OWN_CURVE:].sum(0)))
        lines = [fitted(*one) for one in pooled]
        report[name] = {"kept": kept.tolist(), "seen": seen.tolist(), "curves": lines}
        shares = ", ".join(f"{kept[r].sum() / max(1, seen[r].sum()):.3f}" for r in range(NUM_RANKS))
        print(f"{name}: kept by rank {shares}")
        for line in lines:
            print("   ", line)
    options.out.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
