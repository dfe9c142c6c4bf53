"""A drafter's lane that breaks: what is left of the speed, and are the tokens the same?

    python benchmarks/lane_faults.py --json benchmarks/results/faults.json

Each fault strikes a real `lm` drafter on its own core behind its second answer and stays. What each
is, and what meets it:

    raises, killed, stopped   the job fails, its thread ends, or it answers 2 s later, each time
    NaN                       the drafter's own model has NaN weights, so its logits are NaN
    wrong vocabulary          what grows below the draft has ids beyond the target's: refused
    another text's draft      what was prepared in an earlier request: it begins otherwise, refused
    stale version             the forecast of the round before: compared with the text from its own
                              version on, so it fits where that text was foreseen, else it is a miss
    garbage below the prefix  ids at random below the very draft, each a token: nothing to refuse

Beside it, in turns, plain decoding on the target's core and the same drafter unharmed. Each row has
what was logged and how often the drafter was let rest. A fault that is refused rests at once, and
longer each time; one with nothing to refuse when none of the last 32 outcomes was in its forecasts.
Until then its lane works for nothing, and takes what it takes of the other's bandwidth.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lane_limits import lm_of

from forerun import Engine, SamplingParams, Speculation
from forerun.backends.native import NativeBackend
from forerun.draft import Draft
from forerun.drafters.lane_side import LaneSide
from forerun.errors import DrafterError
from forerun.models.weights import open_checkpoint
from forerun.protocols import DraftRow, Outlook
from forerun.tools.bench_decode import progress, run_of
from forerun.tools.machine import machine_name
from forerun.tools.pairs import tokens_per_s
from forerun.tools.prompt_files import read_suite, spread
from forerun.tree import TokenTree

_UNHARMED = 2  # answers before a fault strikes
_STOPPED_S = 2.0
_BF16_NAN = b"\xc0\x7f"
_LOGGER = "forerun.drafters.overlapped"
Spoil = Callable[["Answer"], list[Draft]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a drafter made, how many nodes of each tree it was given, what it once made for another
    text, and the target's vocabulary."""

    made: list[Draft]
    num_given: list[int]
    others: list[Draft]
    vocab: int


def _raises(_: Answer) -> list[Draft]:
    raise DrafterError("a fault was asked for")


def _killed(_: Answer) -> list[Draft]:
    raise SystemExit


def _stopped(answer: Answer) -> list[Draft]:
    time.sleep(_STOPPED_S)
    return answer.made


def _garbage(answer: Answer) -> list[Draft]:
    """No two ids alike, and none of the draft: siblings that are would be refused."""
    generator = np.random.default_rng(0)

    def change(given: Any, rest: Any) -> Any:
        others = np.setdiff1d(np.arange(answer.vocab), given)
        return generator.choice(others, len(rest), replace=False)

    return _below(answer, change)


def _foreign(answer: Answer) -> list[Draft]:
    return _below(answer, lambda _given, rest: rest + answer.vocab)


def _anothers(answer: Answer) -> list[Draft]:
    return answer.others[:1] * len(answer.made)


def _below(answer: Answer, change: Callable[[Any, Any], Any]) -> list[Draft]:
    """Drafts with other tokens below what was given, which stays."""
    changed = []
    for draft, given in zip(answer.made, answer.num_given, strict=True):
        tokens = np.array(draft.tree.tokens, np.int32)
        tokens[given:] = change(tokens[:given], tokens[given:])
        # Not `replace`: what else the draft says is of its own tokens.
        tree = TokenTree.made(tokens, draft.tree.parents)
        changed.append(Draft(tree, draft.draw, num_passes=draft.num_passes))
    return changed


SPOILS: dict[str, Spoil] = {
    "raises": _raises,
    "killed": _killed,
    "stopped for 2 s": _stopped,
    "garbage below the prefix": _garbage,
    "wrong vocabulary": _foreign,
    "another text's draft": _anothers,
}
NONE, NAN, STALE = "none", "NaN", "stale version"
FAULTS = (NONE, *SPOILS, STALE, NAN)


class Faulty:
    """A drafter that does its work, and once `strikes` says otherwise than it is."""

    def __init__(self, drafter: Any, spoil: Spoil, vocab: int) -> None:
        self._drafter = drafter
        self._spoil = spoil
        self._vocab = vocab
        self._num_calls = 0
        self._others: list[Draft] = []
        self.strikes = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """A forecast, spoilt below the drafts that it continues."""
        made = self._drafter.foresee(rows, drafts, outlook)
        return self._said(made, [len(one.tree) for one in drafts])

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """A proposal, spoilt below the pending tokens."""
        return self._said(self._drafter.propose(rows), [1] * len(rows))

    def _said(self, made: list[Draft], num_given: list[int]) -> list[Draft]:
        if not self.strikes:
            self._others = made
            return made
        self._num_calls += 1
        answer = Answer(made, num_given, self._others, self._vocab)
        return made if self._num_calls <= _UNHARMED else self._spoil(answer)


class Stale:
    """A lane's side that, once `strikes`, answers with the forecast of the round before."""

    def __init__(self, side: LaneSide) -> None:
        self._side = side
        self._before: dict[int, Any] = {}
        self.strikes = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)

    def foresee(self, *asked: Any) -> dict[int, Any]:
        """What was asked for a round ago, with the version that it had."""
        made = self._side.foresee(*asked)
        said = {at: self._before.get(at, one) for at, one in made.items()}
        self._before = made
        return said if self.strikes else made


class Poisoned:
    """A drafter's backend that, once `strikes`, is one whose weights are NaN."""

    def __init__(self, healthy: Any, ill: Any) -> None:
        self._healthy = healthy
        self._ill = ill
        self._num_calls = 0
        self.strikes = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)

    def foresee(self, plan: Any) -> Any:
        """A forecast of either."""
        self._num_calls += self.strikes
        return self._now.foresee(plan)

    def close(self) -> None:
        """Close both."""
        self._ill.close()
        self._healthy.close()

    @property
    def _now(self) -> Any:
        return self._ill if self._num_calls > _UNHARMED else self._healthy


class Log(logging.Handler):
    """What is logged of a lane."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())

    @property
    def num_rests(self) -> int:
        """How often the drafter was left alone."""
        return sum("rests for" in line for line in self.lines)


def main() -> int:
    """Measure and print; 1 if a token differs."""
    options = _parser().parse_args()
    prompts = spread([one for one in read_suite("all") if one.context != "4k"], options.limit)
    rows = []
    for name in FAULTS:
        progress(name)
        rows.append({"fault": name} | _measured(options, name, [one.text for one in prompts]))
        _print(rows[-1])
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


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['fault']:25} {row['ratio']:.2f} × plain, {row['num_hits']} hits in"
        f" {row['num_rounds']} rounds, lane busy {row['busy_share']:.0%}, rested"
        f" {row['num_rests']} times, same tokens: {row['identical']}"
    )
    for line in row["logged"][:1]:
        print(f"    {line}")


def _measured(options: argparse.Namespace, fault: str, prompts: Sequence[str]) -> dict[str, Any]:
    lanes = {"target_cores": (0,), "draft_cores": (1,)}
    ahead = Speculation("lm", "chain:4", "match", "ahead:8")
    with (
        Engine(options.model, speculate=Speculation("none"), target_cores=(0,)) as plain,
        Engine(options.model, speculate=ahead, **lanes) as faulty,
        _logged() as log,
    ):
        broken = _broken(faulty, fault, options.model / "drafters" / "lm")
        faulty.generate(prompts[-1][: len(prompts[-1]) // 2], _params(options, len(prompts)))
        if broken is not None:
            broken.strikes = True
        pairs = []
        for number, prompt in enumerate(prompts):
            order = [plain, faulty] if number % 2 else [faulty, plain]
            done = {one: one.generate(prompt, _params(options, number))[0] for one in order}
            pairs.append((done[plain], done[faulty]))
    ratios = [
        tokens_per_s([[run_of(after)]]) / tokens_per_s([[run_of(before)]])
        for before, after in pairs
    ]
    rounds = [one for _, done in pairs for one in done.stats.rounds]
    seen = [one.lane for one in rounds if one.lane]
    return {
        "ratio": median(ratios),
        "worst_ratio": min(ratios),
        "identical": all(before.token_ids == after.token_ids for before, after in pairs),
        "num_hits": sum(one.num_hits for one in seen),
        "num_rounds": len(seen),
        "busy_share": sum(one.busy_s for one in seen) / sum(one.round_s for one in rounds),
        "num_rests": log.num_rests,
        "logged": log.lines,
    }


def _params(options: argparse.Namespace, number: int) -> SamplingParams:
    return SamplingParams(
        temperature=options.temperature, seed=0, choice=number,
        max_tokens=options.max_tokens, ignore_eos=True,
    )  # fmt: skip


def _broken(engine: Engine, fault: str, weights: Path) -> Any:
    """What is to strike, put where it does; None for an engine that stays as it is."""
    overlapped: Any = engine._parts.drafter._drafter
    drafter: Any = lm_of(engine)
    if fault in SPOILS:
        overlapped._side._drafter = Faulty(drafter, SPOILS[fault], engine._parts.target.spec.vocab)
        return overlapped._side._drafter
    if fault == STALE:
        overlapped._side = Stale(overlapped._side)
        return overlapped._side
    if fault == NAN:
        drafter._backend = Poisoned(drafter._backend, _ill(weights, drafter._backend))
        return drafter._backend
    return None


def _ill(source: Path, healthy: Any) -> NativeBackend:
    """The drafter's model with NaN for its last norm."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(source, Path(folder) / source.name))
        weights = copy / "model.safetensors"
        held = bytearray(weights.read_bytes())
        (header_bytes,) = struct.unpack("<Q", held[:8])
        norm = json.loads(held[8 : 8 + header_bytes])["model.norm.weight"]
        start, end = (8 + header_bytes + offset for offset in norm["data_offsets"])
        held[start:end] = _BF16_NAN * ((end - start) // len(_BF16_NAN))
        weights.write_bytes(held)
        return NativeBackend(open_checkpoint(copy), cores=(1,), num_blocks=healthy.num_blocks)


@contextmanager
def _logged() -> Iterator[Log]:
    log = Log()
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)


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
