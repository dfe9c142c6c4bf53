"""Soak: with speculation and without, every token must be equal. 100 %, or exit status 1.

    python benchmarks/same_tokens.py                     # the embedded model, 200 prompts
    python benchmarks/same_tokens.py --model DIR --prompts 400 --tokens 256

Prompts are beginnings of the standard library's own files (and some of 4k tokens); parameters
cycle through temperatures, truncations, penalties and stop strings, mixed in each batch. The
reference decodes plainly and alone, one prompt at a time; the speculative runs batch eight rows.
A control must differ: the same run with another seed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from forerun import Completion, Engine, SamplingParams, Speculation

PARAMETERS = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 40},
    {"temperature": 0.7, "min_p": 0.05, "frequency_penalty": 0.4},
    {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    {"temperature": 0.0, "repetition_penalty": 1.1, "stop": ("\n\n\n", "return None")},
    {"temperature": 0.7, "logit_bias": {10: 2.0, 11: -5.0}, "stop": ("raise ",)},
)
SPECULATIONS = (
    Speculation(drafter="lookup", shape="chain:8"),
    Speculation(drafter="lm", shape="chain:3"),
    Speculation(drafter="lm", shape="chain:6"),
    Speculation(drafter="lm", shape="chain:13"),
)


def main() -> int:
    options = _arguments()
    prompts = list(_prompts(options))
    params = [
        SamplingParams(max_tokens=options.tokens, seed=index, ignore_eos=True, **which)
        for index, which in zip(range(len(prompts)), _cycle(PARAMETERS), strict=False)
    ]
    with Engine(options.model, speculate=Speculation(drafter="none")) as engine:
        ids = [_tokens(engine, prompt) for prompt in prompts]
        print(f"{len(ids)} prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens")
        started = time.perf_counter()
        reference = [engine.generate(p, q)[0] for p, q in zip(ids, params, strict=True)]
        _report("none, one by one", reference, reference, started)
        control = [
            engine.generate(p, SamplingParams(temperature=1.0, max_tokens=64, seed=seed))[0]
            for seed, p in enumerate(ids[:8], start=10**6)
        ]
    if all(a.token_ids[:64] == b.token_ids for a, b in zip(reference, control, strict=False)):
        print("the control did not differ: this comparison proves nothing", file=sys.stderr)
        return 1
    wrong = 0
    for speculation in SPECULATIONS:
        with Engine(options.model, speculate=speculation) as engine:
            started = time.perf_counter()
            found: list[Completion] = []
            for first in range(0, len(ids), 8):
                found += engine.generate(ids[first : first + 8], params[first : first + 8])
            name = f"{speculation.drafter} {speculation.shape}, batches of 8"
            wrong += _report(name, reference, found, started)
    print("every token equal" if wrong == 0 else f"{wrong} completions differ")
    return 1 if wrong else 0


def _report(name: str, reference: list[Completion], found: list[Completion], started: float) -> int:
    wrong = [
        index
        for index, (a, b) in enumerate(zip(reference, found, strict=True))
        if (a.token_ids, a.text, a.finish_reason) != (b.token_ids, b.text, b.finish_reason)
    ]
    num_tokens = sum(len(one.token_ids) for one in found)
    rounds = sum(one.stats.num_rounds for one in found)
    print(
        json.dumps(
            {
                "speculation": name,
                "completions": len(found),
                "tokens": num_tokens,
                "tokens_per_round": round(num_tokens / rounds, 2),
                "different": wrong[:10],
                "seconds": round(time.perf_counter() - started, 1),
                "exactness": found[0].exactness,
            }
        ),
        flush=True,
    )
    return len(wrong)


def _tokens(engine: Engine, prompt: tuple[str, int]) -> list[int]:
    text, most = prompt
    return engine.tokenizer.encode(text)[:most]


def _prompts(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Texts and how many of their tokens to keep: most short, every 25th as long as asked."""
    chance = random.Random(options.seed)
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.glob("*.py") if path.stat().st_size > 20_000)
    for index in range(options.prompts):
        text = chance.choice(files).read_text(encoding="utf-8", errors="replace")
        is_long = index % 25 == 24
        start = 0 if is_long else chance.randrange(max(1, len(text) - 8_000))
        yield text[start:], options.long if is_long else chance.randrange(1, 200)


def _cycle(values: tuple[dict[str, object], ...]) -> Iterator[dict[str, object]]:
    while True:
        yield from values


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="forerun-code")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--long", type=int, default=3800, help="tokens of every 25th prompt")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
