"""Which ways of speculating a table compares: sets of them, and triples by hand. Only names.

A triple is `name=drafter;shape;rule`, its rule `auto` where it is left out. The small models of a
table have names, as `lm shipped` or `dspark matched`, that stand for them in a triple (`shipped`
and `matched` alone are those of `lm`); all else is as in `Speculation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

from forerun import Speculation
from forerun.errors import OptionError

CHAINS = ("auto", "chain:auto", "chain:2", "chain:3", "chain:4", "chain:6")
TREES = ("tree:auto", "tree:4", "tree:6", "tree:8", "tree:12", "tree:16")
RULES = (
    ("chain:4", "rejection"),
    ("chain:4", "block"),
    ("tree:8", "rejection"),
    ("tree:8", "traversal"),
    ("tree:8", "kseq"),
)
BLOCK_CHAINS = ("auto", "chain:auto", "chain:3", "chain:4", "chain:5", "chain:7")
BLOCK_TREES = ("tree:auto", "tree:6", "tree:8", "tree:12", "tree:16")
EAGLE_SHAPES = ("chain:auto", "chain:3", "chain:4", "tree:auto", "tree:8", "tree:12")
DEFAULT_SETS = ("chains", "trees")
BLOCK_KINDS = ("dspark", "dflash")
FEATURE_KINDS = (*BLOCK_KINDS, "eagle3")  # drafters that read what the target computed
KINDS = ("lm", *FEATURE_KINDS)
SIZES = ("shipped", "matched")

_Set: TypeAlias = Callable[[Mapping[str, Path]], Iterator["Method"]]


@dataclass(frozen=True, slots=True)
class Method:
    """A composition, its name in the table, and the small model whose weights it reads.

    `size` is that model's: `shipped`, `matched`, or empty for another.
    """

    name: str
    drafter: str
    shape: str
    rule: str = "auto"
    weights: Path | None = None
    size: str = ""

    @property
    def speculation(self) -> Speculation:
        return Speculation(self.drafter, self.shape, self.rule)

    @property
    def kind(self) -> str:
        """`auto`, `chain` or `tree`."""
        return self.speculation.composition().shape.kind

    @property
    def drafter_kind(self) -> str:
        """The drafter's name without its argument: `lookup`, `lm`, `dspark`, …"""
        return self.drafter.partition(":")[0].partition("(")[0]

    @property
    def keeps_tokens(self) -> bool:
        """Whether its tokens are plain decoding's; the sampled rules keep only their law."""
        return self.speculation.composition().rule == "match"

    @property
    def is_counted(self) -> bool:
        """Whether rounds say what its drafter computed; a nested decoder's do not."""
        plain = self.drafter_kind in ("none", "lookup", "prediction")
        return plain or self.weights is not None


PLAIN = Method("plain", "none", "auto")


def methods_of(words: Sequence[str], drafters: Mapping[str, Path]) -> list[Method]:
    """Plain decoding first, then what the words say: names of sets (each with lookup), or triples.

    `drafters` are the small models there are, by kind and size: `lm shipped`, `dspark matched`, …

    Raises:
        OptionError: a word that is neither, two methods of one name, or parts that do not exist.
        IncompatibleSpeculation: parts that cannot be exact together.
    """
    found = [PLAIN]
    for word in words:
        if "=" in word:
            found.append(_triple(word, drafters))
        elif word in _SETS:
            found += [Method("lookup", "lookup", "auto"), *_SETS[word](drafters)]
        else:
            raise OptionError(
                f"--methods {word!r} is neither a set ({', '.join(_SETS)}) nor a triple: write"
                " 'name=drafter;shape;rule'"
            )
    unique = list(dict.fromkeys(found))
    names = [one.name for one in unique]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise OptionError(f"--methods has two methods named {twice[0]!r}: give each its own name")
    for one in unique:
        one.speculation.composition()
    return unique


def only(methods: Sequence[Method], patterns: str) -> list[Method]:
    """Those whose name is like one of the patterns, by commas; plain is the measure and stays.

    Raises:
        OptionError: no method is like them.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    kept = [one for one in methods if any(fnmatchcase(one.name, like) for like in wanted)]
    if not kept:
        names = ", ".join(one.name for one in methods)
        raise OptionError(f"--only {patterns!r} is like no method; there are {names}")
    return [one for one in methods if one == PLAIN or one in kept]


def _triple(word: str, drafters: Mapping[str, Path]) -> Method:
    name, _, parts = word.partition("=")
    answers = [part.strip() for part in parts.split(";")]
    if not name or len(answers) not in (2, 3):
        raise OptionError(f"--methods {word!r}: write 'name=drafter;shape', or with ';rule' behind")
    drafter, shape, rule = (*answers, "auto")[:3]
    asked = f"lm {drafter}" if drafter in SIZES else drafter
    if asked.endswith(SIZES) and asked not in drafters:
        raise OptionError(f"--methods {word!r}: there is no {asked} drafter in this table")
    own = asked if asked in drafters else f"{asked} shipped"
    if own in drafters:
        return _named(name, own, drafters[own], shape, rule)
    kind, _, path = drafter.partition(":")
    weights = Path(path) if kind in KINDS and path else None
    return Method(name, drafter, shape, rule, weights)


def _named(name: str, model: str, weights: Path, shape: str, rule: str = "auto") -> Method:
    kind, size = model.split()
    return Method(name, f"{kind}:{weights}", shape, rule, weights, size)


def _shaped(shapes: Sequence[str], kinds: Sequence[str]) -> _Set:
    def methods(drafters: Mapping[str, Path]) -> Iterator[Method]:
        for model, weights in drafters.items():
            if model.split()[0] in kinds:
                for shape in shapes:
                    yield _named(f"{model} {shape}", model, weights, shape)

    return methods


def _ruled(drafters: Mapping[str, Path]) -> Iterator[Method]:
    for model, weights in drafters.items():
        if model.startswith("lm "):
            for shape, rule in RULES:
                yield _named(f"{model} {shape} {rule}", model, weights, shape, rule)


_SETS: Mapping[str, _Set] = {
    "chains": _shaped(CHAINS, ["lm"]),
    "trees": _shaped(TREES, ["lm"]),
    "rules": _ruled,
    "blocks": _shaped((*BLOCK_CHAINS, *BLOCK_TREES), BLOCK_KINDS),
    "eagles": _shaped(EAGLE_SHAPES, ["eagle3"]),
}
