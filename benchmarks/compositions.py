"""Which ways of speculating a table compares: sets of them, and triples by hand. Only names.

A triple is `name=drafter;shape;rule`, its rule `auto` where it is left out. As drafters, `shipped`
and `matched` stand for the small models of a table; all else is as in `Speculation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

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
DEFAULT_SETS = ("chains", "trees")


@dataclass(frozen=True, slots=True)
class Method:
    """A composition, its name in the table, and the small model whose weights it reads."""

    name: str
    drafter: str
    shape: str
    rule: str = "auto"
    weights: Path | None = None

    @property
    def speculation(self) -> Speculation:
        return Speculation(self.drafter, self.shape, self.rule)

    @property
    def kind(self) -> str:
        """`auto`, `chain` or `tree`."""
        return self.speculation.composition().shape.kind

    @property
    def keeps_tokens(self) -> bool:
        """Whether its tokens are plain decoding's; the sampled rules keep only their law."""
        return self.speculation.composition().rule == "match"

    @property
    def is_counted(self) -> bool:
        """Whether rounds say what its drafter computed; a nested decoder's do not."""
        plain = self.drafter.partition(":")[0] in ("none", "lookup", "prediction")
        return plain or self.weights is not None


PLAIN = Method("plain", "none", "auto")


def methods_of(words: Sequence[str], drafters: Mapping[str, Path]) -> list[Method]:
    """Plain decoding first, then what the words say: names of sets (each with lookup), or triples.

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
    if drafter in ("shipped", "matched") and drafter not in drafters:
        raise OptionError(f"--methods {word!r}: there is no {drafter} drafter in this table")
    weights = drafters.get("shipped" if drafter == "lm" else drafter)
    if weights is not None:
        drafter = f"lm:{weights}"
    elif drafter.startswith("lm:"):
        weights = Path(drafter.removeprefix("lm:"))
    return Method(name, drafter, shape, rule, weights)


def _shaped(shapes: Sequence[str]) -> Callable[[Mapping[str, Path]], Iterator[Method]]:
    def methods(drafters: Mapping[str, Path]) -> Iterator[Method]:
        for name, weights in drafters.items():
            for shape in shapes:
                yield Method(f"lm {name} {shape}", f"lm:{weights}", shape, weights=weights)

    return methods


def _ruled(drafters: Mapping[str, Path]) -> Iterator[Method]:
    for name, weights in drafters.items():
        for shape, rule in RULES:
            yield Method(f"lm {name} {shape} {rule}", f"lm:{weights}", shape, rule, weights)


_SETS: Mapping[str, Callable[[Mapping[str, Path]], Iterator[Method]]] = {
    "chains": _shaped(CHAINS),
    "trees": _shaped(TREES),
    "rules": _ruled,
}
