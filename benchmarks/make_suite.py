"""The prompt suite: assembled from held-out packages and from texts written for it.

    python benchmarks/make_suite.py --corpus CORPUS      # writes the files, then the tiers
    python benchmarks/make_suite.py --retier             # only the tiers: after a new model

CORPUS is what `forerun train corpus` writes: `heldout.jsonl`, `manifest.json` and `train.jsonl`.
Texts of our own lie in `suite_sources/`. Everything is seeded: the same corpus, sources and
tokenizer give the same prompts. A prompt most of whose lines also occur in training text is left
out; packages whose licences ask for more than their notice are too.

The tier of a prompt is a third of the suite by the bits a token that the model itself spends on
its own continuations at temperature 1: an unbiased estimate of the mean entropy of its law there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import suite_from_code as from_code
from suite_from_code import TARGETS, Candidate, Document

from forerun import Engine, SamplingParams, Speculation
from forerun.models.resolve import EMBEDDED_NAME
from forerun.tools.prompt_files import CONTEXT_LENS, SUITE, TIERS, suite_categories

SOURCES = Path(__file__).resolve().parent / "suite_sources"
OWN_LICENSE = "Apache-2.0"
# As the manifest of the corpus names them, and what the packages themselves say (SPDX).
LICENSES = {
    "MIT": "MIT",
    "BSD": "BSD-3-Clause",
    "BSD-3-Clause": "BSD-3-Clause",
    "Apache-2.0": "Apache-2.0",
    "Apache-2.0 AND MIT": "MIT OR Apache-2.0",
}
# From the corpus, on top of the texts of our own.
QUOTAS = {
    "novel_code": {"64": 32, "1k": 14, "4k": 5},
    "edit": {"1k": 13, "4k": 6},
    "docstrings": {"64": 20, "1k": 8, "4k": 3},
    "structured": {"1k": 3, "4k": 3},
}
MAX_SHARE_OF_PACKAGE = 0.34
MAX_SHARE_IN_TRAINING = 0.2
NUM_DRAWS, DRAW_LEN = 2, 128


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the suite."""

    name: str
    prompt: str
    category: str
    context: str
    entropy: str
    source: str
    license: str

    def line(self) -> str:
        keys = ("name", "prompt", "category", "context", "entropy", "source", "license")
        return json.dumps({key: getattr(self, key) for key in keys}, ensure_ascii=False) + "\n"


def main() -> int:
    options = _arguments()
    plain = Speculation(drafter="none")
    with Engine(options.model, speculate=plain, threads=options.threads) as engine:
        if options.corpus is not None:
            _write(options.out, _assembled(options.corpus, options.seed, engine))
        _write(options.out, _tiered(engine, _written(options.out)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", type=Path, help="folder that `forerun train corpus` wrote")
    what.add_argument("--retier", action="store_true", help="rewrite only the key `entropy`")
    parser.add_argument("--model", default=EMBEDDED_NAME)
    parser.add_argument("--threads", type=int, help="cores to use; all allowed ones if not given")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=SUITE)
    return parser.parse_args()


# --- prompts -----------------------------------------------------------------------------------


def _assembled(corpus: Path, seed: int, engine: Engine) -> list[Row]:
    def count(text: str) -> int:
        return len(engine.tokenizer.encode(text))

    rows = [*_own(count, seed), *_held_out(corpus, count, seed)]
    lens = {row.name: (count(row.prompt), *CONTEXT_LENS[row.context]) for row in rows}
    wrong = [
        f"{name} has {num_tokens} tokens, not {low} to {high}"
        for name, (num_tokens, low, high) in lens.items()
        if not low <= num_tokens <= high
    ]
    if wrong:
        raise SystemExit("\n".join(wrong))
    return sorted(rows, key=lambda row: (row.category, list(CONTEXT_LENS).index(row.context)))


def _own(count: Callable[[str], int], seed: int) -> Iterator[Row]:
    """The texts of `suite_sources/`: sections `=== name context`, cut where they are too long."""
    for path in sorted(SOURCES.glob("*.txt")):
        sections = re.split(
            r"^=== (\w+) (\w+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        for name, context, body in zip(*(iter(sections[1:]),) * 3, strict=True):
            text, source = _resolved(body, seed + list(TARGETS).index(context))
            prompt = _cut(text, context, count, is_prose=path.stem == "prose")
            yield Row(name, prompt, path.stem, context, "", source, OWN_LICENSE)


def _resolved(body: str, seed: int) -> tuple[str, str]:
    if body.startswith("@file "):
        name = body.split()[1]
        return (SOURCES / "files" / name).read_text(encoding="utf-8"), f"forerun, {name}"
    if body.startswith("@random"):
        return _random_ids(random.Random(seed)), "drawn at random"
    return body, "written for forerun"


def _random_ids(generator: random.Random) -> str:
    forms = (
        lambda: f"{generator.getrandbits(128):032x}",
        lambda: f"{generator.getrandbits(32):08X}-{generator.getrandbits(16):04X}",
        lambda: "".join(generator.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=20)),
        lambda: f"{generator.random():.15f}",
    )
    return "".join(f"{generator.choice(forms)()}\n" for _ in range(400))


def _cut(text: str, context: str, count: Callable[[str], int], *, is_prose: bool) -> str:
    """As much as fits, whole lines of code or whole words of prose.

    A backslash at the end of a text stands for no line break there.
    """
    whole = text.rstrip("\n") if is_prose else text
    whole = whole.removesuffix("\\\n")
    if count(whole) <= CONTEXT_LENS[context][1]:
        return whole
    parts = re.findall(r"\s*\S+" if is_prose else r".*\n", whole)
    kept, size = [], 0
    for part in parts:
        size += count(part)
        if size > TARGETS[context]:
            break
        kept.append(part)
    return "".join(kept)


def _held_out(corpus: Path, count: Callable[[str], int], seed: int) -> Iterator[Row]:
    documents = _documents(corpus)
    random.Random(seed).shuffle(documents)
    found = from_code.places(documents, seed)
    makers: dict[str, Callable[[str], Iterator[Candidate]]] = {
        "novel_code": lambda context: from_code.headers(found, context, count),
        "docstrings": lambda context: from_code.halves_of_docstrings(found, context, count),
        "edit": lambda context: from_code.edits(documents, context, count),
        "structured": lambda context: from_code.inventories(documents, context, count),
    }
    trained = _long_lines((corpus / "train.jsonl").open(encoding="utf-8"))
    used: set[tuple[str, str]] = set()
    for category, quota in QUOTAS.items():
        for context, wanted in quota.items():
            fitting = (
                one
                for one in makers[category](context)
                if _fits(one, context, count) and not _is_trained(one.prompt, trained)
            )
            for one in _chosen(fitting, wanted, used):
                key = one.key.rsplit("/", 1)[-1].replace(".py", "")
                name = re.sub(r"\W+", "-", f"{one.document.package}-{key}-{context}")
                source = f"{one.document.package}, {one.document.path}"
                yield Row(
                    f"{category}-{name}".lower(),
                    one.prompt,
                    category,
                    context,
                    "",
                    source,
                    one.document.license,
                )


def _documents(corpus: Path) -> list[Document]:
    packages = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))["packages"]
    licenses = {one["name"]: LICENSES.get(one["licence"]) for one in packages if one["held_out"]}
    with (corpus / "heldout.jsonl").open(encoding="utf-8") as lines:
        values = [json.loads(line) for line in lines]
    return [
        Document(value["package"], value["path"], value["text"], license)
        for value in values
        if (license := licenses.get(value["package"])) is not None
    ]


def _fits(one: Candidate, context: str, count: Callable[[str], int]) -> bool:
    low, high = CONTEXT_LENS[context]
    return low <= count(one.prompt) <= high


def _long_lines(lines: Iterator[str]) -> set[int]:
    """Hashes of all training lines that are long enough to say something."""
    return {
        hash(line.strip())
        for document in lines
        for line in json.loads(document)["text"].splitlines()
        if len(line.strip()) >= 32
    }


def _is_trained(prompt: str, trained: set[int]) -> bool:
    own = [line.strip() for line in prompt.splitlines() if len(line.strip()) >= 32]
    known = sum(hash(line) in trained for line in own)
    return known > MAX_SHARE_IN_TRAINING * max(len(own), 1)


def _chosen(
    candidates: Iterator[Candidate], wanted: int, used: set[tuple[str, str]]
) -> Iterator[Candidate]:
    """The first that are new, with no package taking much more than its share."""
    packages: Counter[str] = Counter()
    most = max(1, round(wanted * MAX_SHARE_OF_PACKAGE))
    left = wanted
    for one in candidates:
        place = (one.document.path, one.key)
        if left == 0:
            return
        if place in used or packages[one.document.package] >= most:
            continue
        used.add(place)
        packages[one.document.package] += 1
        left -= 1
        yield one
    if left:
        print(f"{left} of {wanted} wanted prompts were not found", file=sys.stderr)


# --- tiers and files ---------------------------------------------------------------------------


def _tiered(engine: Engine, rows: Sequence[Row]) -> list[Row]:
    bits = _bits_a_token(engine, [row.prompt for row in rows])
    order = sorted(range(len(rows)), key=bits.__getitem__)
    tier_of = {index: TIERS[len(TIERS) * at // len(rows)] for at, index in enumerate(order)}
    for tier in TIERS:
        own = sorted(bits[index] for index in order if tier_of[index] == tier)
        print(f"{tier}: {len(own)} prompts, {own[0]:.2f} to {own[-1]:.2f} bits a token")
    return [replace(row, entropy=tier_of[index]) for index, row in enumerate(rows)]


def _bits_a_token(engine: Engine, prompts: Sequence[str]) -> list[float]:
    """Mean of minus log2 of the probability of each drawn token, over all draws of a prompt."""
    found = []
    params = [
        SamplingParams(temperature=1.0, max_tokens=DRAW_LEN, seed=seed, logprobs=0)
        for seed in range(NUM_DRAWS)
    ]
    for prompt in prompts:
        draws = engine.generate([prompt] * NUM_DRAWS, params)
        values = [each.logprob for one in draws for each in one.logprobs or ()]
        found.append(-sum(values) / len(values) / log(2))
        print(f"\r{len(found)}/{len(prompts)} ", end="", file=sys.stderr, flush=True)
    return found


def _written(folder: Path) -> list[Row]:
    return [
        Row(**json.loads(line))
        for category in suite_categories(folder)
        for line in (folder / f"{category}.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def _write(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for category in sorted({row.category for row in rows}):
        text = "".join(row.line() for row in rows if row.category == category)
        (folder / f"{category}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
