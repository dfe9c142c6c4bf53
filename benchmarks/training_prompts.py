"""Prompts of other kinds than a random place in Python: what a drafter is to learn besides.

    python benchmarks/training_prompts.py --corpus CORPUS --out prompts.jsonl
    forerun train text --data prompts.jsonl --prompt-len 384 --out text-kinds --minutes 8

CORPUS is what `forerun train corpus` wrote. From its training part: function bodies that nobody has
written yet, behind their docstrings, and docstrings cut in the middle. From the same packages'
other files: documentation, settings, web pages, other languages. No held-out package, and neither
the texts nor the made-up forms (edits, inventories) of the prompt suite, so that what is measured
there stays something not trained for.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import Distribution, distributions
from itertools import islice, zip_longest
from pathlib import Path

import suite_from_code as from_code

from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.train.corpus import HELD_OUT, default_roots, licence_of

KINDS = {
    "documentation": (".md", ".rst", ".txt"),
    "settings": (".json", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".xml", ".csv"),
    "web": (".html", ".css", ".js", ".ts", ".svg"),
    "other languages": (".c", ".h", ".cpp", ".hpp", ".cu", ".rs", ".go", ".sh", ".sql", ".pyx"),
}
MAX_BYTES, MAX_LINE_LEN = 200_000, 400  # longer is minified, or a table
MAX_OF_A_FILE, MAX_SHARE_OF_PACKAGE = 4, 0.2
CUT_LEN = 1500  # bytes of a file before the cut: more than a prompt keeps
SELDOM = 40  # documents of a package that are read for definitions

Count = Callable[[str], int]


def main() -> int:
    options = _arguments()
    directory = resolve_model(options.model)
    tokenizer = load_tokenizer(directory, read_spec(directory))

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    kinds = {
        **_from_code(options.corpus, options.seed, count),
        **{kind: _from_files(options.root, ends, options.seed) for kind, ends in KINDS.items()},
    }
    lines = list[str]()
    for kind, found in kinds.items():
        chosen = list(islice(_spread(found, options.of_each), options.of_each))
        print(f"{kind}: {len(chosen)} prompts")
        lines += [json.dumps({"prompt": prompt}) + "\n" for prompt in chosen]
    random.Random(options.seed).shuffle(lines)
    options.out.write_text("".join(lines), encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="from `forerun train corpus`")
    parser.add_argument("--out", type=Path, required=True, help="JSONL, for `--data`")
    parser.add_argument("--of-each", type=int, default=600, help="prompts of a kind, at most")
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        default=None,
        help="of installed packages; repeat it; all that are found if not given",
    )
    parser.add_argument("--model", default=EMBEDDED_NAME, help="whose tokenizer counts")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _from_code(corpus: Path, seed: int, count: Count) -> dict[str, Iterator[tuple[str, str]]]:
    documents = list(_seldom(corpus))
    random.Random(seed).shuffle(documents)
    found = from_code.places(documents, seed)

    def kind(makers: Sequence[Iterator[from_code.Candidate]]) -> Iterator[tuple[str, str]]:
        for candidates in zip_longest(*makers):
            yield from ((one.document.package, one.prompt) for one in candidates if one)

    bodies = [from_code.headers(found[at::2], size, count) for at, size in enumerate(("64", "1k"))]
    halves = [
        from_code.halves_of_docstrings(found[at::2], size, count)
        for at, size in enumerate(("64", "1k"))
    ]
    return {"bodies": kind(bodies), "docstrings": kind(halves)}


def _seldom(corpus: Path) -> Iterator[from_code.Document]:
    """Training documents, a few of every package."""
    of_package = Counter[str]()
    with (corpus / "train.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            value = json.loads(line)
            of_package[value["package"]] += 1
            if of_package[value["package"]] <= SELDOM:
                yield from_code.Document(value["package"], value["path"], value["text"], "")


def _from_files(
    roots: Sequence[Path] | None, ends: tuple[str, ...], seed: int
) -> Iterator[tuple[str, str]]:
    """Package and text up to a random line, from files with these ends, shuffled."""
    generator = random.Random(seed)
    files = [
        (one.name, path)
        for one in _distributions(roots or default_roots())
        for path in _files_of(one)
        if path.suffix in ends
    ]
    generator.shuffle(files)
    for name, path in files:
        text = _readable(path)
        for _ in range(MAX_OF_A_FILE if text else 0):
            cut = text.find("\n", generator.randrange(200, len(text))) + 1
            if cut:
                yield name, text[max(0, cut - CUT_LEN) : cut]


def _distributions(roots: Sequence[Path]) -> Iterator[Distribution]:
    """Permissively licensed ones that are not held out, each once."""
    seen = {name.lower() for name in HELD_OUT}
    for root in roots:
        for one in distributions(path=[str(root)]):
            name = (one.name or "").lower()
            if name and name not in seen and licence_of(one.read_text("METADATA") or ""):
                seen.add(name)
                yield one


def _files_of(one: Distribution) -> Iterator[Path]:
    for path in one.files or ():
        yield Path(str(one.locate_file(path)))


def _readable(path: Path) -> str:
    """The text of a file worth going on from; else nothing."""
    try:
        if not 400 <= path.stat().st_size <= MAX_BYTES or "licen" in path.name.lower():
            return ""
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if max(map(len, text.splitlines())) > MAX_LINE_LEN else text


def _spread(found: Iterator[tuple[str, str]], wanted: int) -> Iterator[str]:
    """Each prompt once, with no package giving much more than its share."""
    of_package, most, seen = Counter[str](), max(1, int(wanted * MAX_SHARE_OF_PACKAGE)), set[str]()
    for package, prompt in found:
        if prompt not in seen and of_package[package] < most:
            seen.add(prompt)
            of_package[package] += 1
            yield prompt


if __name__ == "__main__":
    raise SystemExit(main())
