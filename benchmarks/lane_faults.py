"""A drafter's lane that breaks: what is left of the speed, and are the tokens the same?

    python benchmarks/lane_faults.py --json benchmarks/results/faults.json

Each fault strikes a real `lm` drafter on its own core from its third forecast on: it raises, its
thread dies, it hangs for two seconds, it talks nonsense, its logits hold NaN, it speaks another
vocabulary, or it answers for another text. Beside it, in turns, plain decoding on the target's core
and the same drafter unharmed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lane_limits import lm_of

from forerun import Engine, SamplingParams, Speculation
from forerun.draft import Draft, Draw
from forerun.errors import DrafterError
from forerun.protocols import DraftRow, Outlook
from forerun.tools.bench_decode import progress, run_of
from forerun.tools.machine import machine_name
from forerun.tools.pairs import tokens_per_s
from forerun.tools.prompt_files import read_suite, spread
from forerun.tree import TokenTree

_UNHARMED = 2  # forecasts before a fault strikes
Fault = Callable[[list[Draft], int], list[Draft]]


def _raises(_made: list[Draft], _vocab: int) -> list[Draft]:
    raise DrafterError("a fault was asked for")


def _dies(_made: list[Draft], _vocab: int) -> list[Draft]:
    raise SystemExit


def _hangs(made: list[Draft], _vocab: int) -> list[Draft]:
    time.sleep(2.0)
    return made


def _is_garbage(made: list[Draft], vocab: int) -> list[Draft]:
    """Tokens at random, but for the draft's own: all branches are wrong."""
    generator = np.random.default_rng(0)
    return [_with_tokens(one, generator.integers(vocab, size=len(one.tree))) for one in made]


def _is_foreign(made: list[Draft], vocab: int) -> list[Draft]:
    return [_with_tokens(one, one.tree.tokens.astype(np.int64) + vocab) for one in made]


def _is_stale(made: list[Draft], vocab: int) -> list[Draft]:
    """What would follow another text: every token moved by one."""
    return [_with_tokens(one, (one.tree.tokens + 1) % vocab) for one in made]


def _is_empty(made: list[Draft], _vocab: int) -> list[Draft]:
    """What NaN logits leave: no branch at all."""
    return [Draft(TokenTree.made_chain([int(one.tree.tokens[0])]), Draw.POINT) for one in made]


def _with_tokens(draft: Draft, tokens: Any) -> Draft:
    own = np.asarray(tokens, np.int32)
    own[0] = draft.tree.tokens[0]
    return Draft(TokenTree.made(own, draft.tree.parents), Draw.POINT)


FAULTS: dict[str, Fault | None] = {
    "none": None,
    "raises": _raises,
    "its thread dies": _dies,
    "hangs for 2 s": _hangs,
    "garbage": _is_garbage,
    "NaN": _is_empty,
    "wrong vocabulary": _is_foreign,
    "another text's": _is_stale,
}


class Faulty:
    """A drafter that does its work and then fails at it."""

    def __init__(self, drafter: Any, fault: Fault, vocab: int) -> None:
        self._drafter = drafter
        self._fault = fault
        self._vocab = vocab
        self._num_calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """A forecast, spoilt."""
        return self._spoilt(self._drafter.foresee(rows, drafts, outlook))

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """A proposal, spoilt."""
        return self._spoilt(self._drafter.propose(rows))

    def _spoilt(self, made: list[Draft]) -> list[Draft]:
        self._num_calls += 1
        return made if self._num_calls <= _UNHARMED else self._fault(made, self._vocab)


def main() -> int:
    """Measure and print; 1 if a token differs."""
    options = _parser().parse_args()
    prompts = spread([one for one in read_suite("all") if one.context != "4k"], options.limit)
    rows = []
    for name, fault in FAULTS.items():
        progress(name)
        rows.append({"fault": name} | _measured(options, fault, [one.text for one in prompts]))
        row = rows[-1]
        hits = f"{row['num_hits']} hits in {row['num_rounds']} rounds"
        print(f"{name:18} {row['ratio']:.2f} × plain, {hits}, same tokens: {row['identical']}")
    report = {
        "what": "faults",
        "date": date.today().isoformat(),
        "command": "python benchmarks/lane_faults.py " + shlex.join(sys.argv[1:]),
        "machine": machine_name(),
        "model": str(options.model),
        "num_prompts": len(prompts),
        "max_tokens": options.max_tokens,
        "rows": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["identical"] for row in rows))


def _measured(
    options: argparse.Namespace, fault: Fault | None, prompts: Sequence[str]
) -> dict[str, Any]:
    lanes = {"target_cores": (0,), "draft_cores": (1,)}
    ahead = Speculation("lm", "chain:4", "match", "ahead:8")
    with (
        Engine(options.model, speculate=Speculation("none"), target_cores=(0,)) as plain,
        Engine(options.model, speculate=ahead, **lanes) as faulty,
    ):
        side: Any = faulty._parts.drafter._drafter._side  # type: ignore[attr-defined]
        if fault is not None:
            side._drafter = Faulty(lm_of(faulty), fault, plain._parts.target.spec.vocab)
        pairs = []
        for number, prompt in enumerate(prompts):
            params = SamplingParams(
                temperature=options.temperature, seed=0, choice=number,
                max_tokens=options.max_tokens, ignore_eos=True,
            )  # fmt: skip
            order = [plain, faulty] if number % 2 else [faulty, plain]
            done = {one: one.generate(prompt, params)[0] for one in order}
            pairs.append((done[plain], done[faulty]))
    ratios = [
        tokens_per_s([[run_of(after)]]) / tokens_per_s([[run_of(before)]])
        for before, after in pairs
    ]
    lanes_seen = [one.lane for _, done in pairs for one in done.stats.rounds if one.lane]
    return {
        "ratio": median(ratios),
        "worst_ratio": min(ratios),
        "identical": all(before.token_ids == after.token_ids for before, after in pairs),
        "num_hits": sum(one.num_hits for one in lanes_seen),
        "num_rounds": len(lanes_seen),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=Path("build/260M-matched"))
    add("--limit", type=int, default=6, help="prompts, spread over the suite without its longest")
    add("--max-tokens", type=int, default=96)
    add("--temperature", type=float, default=0.7)
    add("--json", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
