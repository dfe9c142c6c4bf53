"""What the four strings of a `Speculation` say, and which combinations cannot be exact.

The only parser of these names. Knows words and numbers, no live part; a pair that would be inexact
or impossible is refused here, before any model is loaded, in one sentence with a way out.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from forerun.errors import IncompatibleSpeculation, OptionError

LONGEST = 256  # a longer draft costs more to verify than any drafter can win back

RULES = ("match", "rejection", "block", "traversal", "kseq")
SCHEDULES = ("sequential", "parallel", "ahead")
_DRAFTERS = (
    "auto, none, lookup, lookup:DIR, prediction:FILE, lm, dflash, dspark, eagle3, each of these"
    " four also with :DIR, exit:LAYER, router(D,D,…), nested(D,S,R)"
)
_SCHEDULES = "auto, sequential, parallel, ahead, ahead:B, ahead:B:C"
_SHAPES = (
    "auto, chain:K, chain:auto, tree:N, tree:auto, tree:3x2x1, tree:FILE.json, each tree also with"
    " :top or :likeliest"
)

_AXES = {
    **dict.fromkeys(
        ("none", "lookup", "prediction", "lm", "dflash", "dspark", "eagle3"), "drafter"
    ),
    **dict.fromkeys(("exit", "router", "nested"), "drafter"),
    **dict.fromkeys(("chain", "tree"), "shape"),
    **dict.fromkeys(RULES, "rule"),
    **dict.fromkeys(SCHEDULES, "schedule"),
}

# Drafters whose proposals are tokens without a law; those that read the target's hidden states.
POINT_DRAFTERS = ("none", "lookup", "prediction")
FEATURE_DRAFTERS = ("dflash", "dspark", "eagle3")


@dataclass(frozen=True, slots=True)
class DrafterName:
    """A drafter as written: its name, its argument, and the drafters inside its parentheses.

    `nested(D,S,R)` has one part and its own `shape` and `rule`; `router(D,D,…)` has its members.
    """

    name: str
    argument: str | None = None
    parts: tuple[DrafterName, ...] = ()
    shape: ShapeName | None = None
    rule: str = "auto"

    def leaves(self) -> tuple[DrafterName, ...]:
        """Every drafter named in it that has no parts of its own."""
        return tuple(leaf for part in self.parts for leaf in part.leaves()) or (self,)


@dataclass(frozen=True, slots=True)
class ShapeName:
    """A shape as written.

    `kind`: `auto`, `chain` or `tree`. `size`: the most drafted nodes, 0 where it is ours to choose.
    `widths`: children of every node, level by level. `file`: parents in a JSON file.
    `siblings`: `top`, the likeliest tokens and one sampled from the rest; `likeliest`, all of them
    the likeliest; empty, as the rule prefers.
    """

    kind: str = "auto"
    size: int = 0
    widths: tuple[int, ...] = ()
    file: str | None = None
    siblings: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleName:
    """A schedule as written.

    `kind`: `auto`, `sequential`, `parallel` or `ahead`. `num_branches`: outcomes that `ahead`
    prepares, 0 where it is ours to choose. `damping`: what the likeliest tokens' chances are
    multiplied with as drafts are drawn, so that a rejection more often ends in one of them.
    """

    kind: str = "auto"
    num_branches: int = 0
    damping: float = 1.0


@dataclass(frozen=True, slots=True)
class Composition:
    """The four answers, parsed; `rule` is never `auto`."""

    drafter: DrafterName
    shape: ShapeName
    rule: str
    schedule: ScheduleName


def compose(drafter: str, shape: str, rule: str, schedule: str) -> Composition:
    """Parse the four names and refuse what cannot be.

    Raises:
        OptionError: a name that is unknown.
        IncompatibleSpeculation: parts that would not be exact, or not possible, together.
    """
    composition = Composition(
        read_drafter(drafter),
        read_shape(shape),
        _read_word("rule", rule, RULES),
        read_schedule(schedule),
    )
    refuse_impossible(composition)
    return composition


def read_words(text: str) -> dict[str, str]:
    """The names in `lm + tree:8 + match`, in any order, by axis; those not given are left out.

    Raises:
        OptionError: a word that is no name of any axis, or two of one.
    """
    names: dict[str, str] = {}
    for word in _split(text, "+"):
        axis = _AXES.get(word.partition("(")[0].partition(":")[0])
        if axis is None or axis in names:
            raise OptionError(
                f"composition {text!r}: write one drafter, shape, rule and schedule at most, with +"
                " between them, as lm + tree:8 + match"
            )
        names[axis] = word
    return names


def refuse_impossible(composition: Composition) -> None:
    """Refuse parts that cannot be together.

    Raises:
        IncompatibleSpeculation: they would not be exact, or not possible.
    """
    _refuse_unjudged(composition.drafter, composition.shape, composition.rule)
    _refuse_untimely(composition)


def read_drafter(text: str) -> DrafterName:
    """A drafter's name, with what its parentheses hold."""
    name, is_open, inside = text.partition("(")
    if is_open:
        if name not in ("nested", "router") or not inside.endswith(")"):
            raise _unknown("drafter", text, _DRAFTERS)
        return _read_parts(name, _split(inside[:-1]), text)
    name, colon, argument = text.partition(":")
    if name in ("auto", "none") and not colon:
        return DrafterName(name)
    if name in ("lookup", "lm", *FEATURE_DRAFTERS) and not (colon and not argument):
        return DrafterName(name, argument or None)
    if name == "prediction" and argument:
        return DrafterName(name, argument)
    if name == "exit" and argument.isascii() and argument.isdigit() and int(argument) > 0:
        return DrafterName(name, argument)
    raise _unknown("drafter", text, _DRAFTERS)


def read_shape(text: str) -> ShapeName:
    """A shape's name with its numbers."""
    kind, _, rest = text.partition(":")
    if text == "auto":
        return ShapeName()
    if kind == "chain" and rest == "auto":
        return ShapeName("chain")
    if kind == "chain" and _is_count(rest):
        return ShapeName("chain", int(rest))
    if kind == "tree" and rest:
        size, _, siblings = rest.partition(":")
        if siblings in ("", "top", "likeliest"):
            return _read_tree(size, text, siblings)
    if kind in ("chain", "tree"):
        raise OptionError(
            f"shape {text!r}: write {kind}:auto or {kind}:N with N in [1, {LONGEST}]"
            + (", widths as tree:3x2x1, or tree:FILE.json" if kind == "tree" else "")
        )
    raise _unknown("shape", text, _SHAPES)


def _read_tree(size: str, text: str, siblings: str) -> ShapeName:
    if size == "auto":
        return ShapeName("tree", siblings=siblings)
    if size.endswith(".json"):
        return ShapeName("tree", file=size, siblings=siblings)
    if _is_count(size):
        return ShapeName("tree", int(size), siblings=siblings)
    widths = size.split("x")
    if len(widths) > 1 and all(_is_count(width) for width in widths):
        levels = tuple(int(width) for width in widths)
        total = num_nodes(levels)
        if total <= LONGEST:
            return ShapeName("tree", total, levels, siblings=siblings)
        raise OptionError(f"shape {text!r} has {total} nodes: at most {LONGEST} can be verified")
    raise OptionError(
        f"shape {text!r}: write tree:auto, tree:N with N in [1, {LONGEST}], widths of its levels"
        " as tree:3x2x1, or tree:FILE.json"
    )


def read_schedule(text: str) -> ScheduleName:
    """A schedule's name with its numbers."""
    kind, colon, rest = text.partition(":")
    if kind in ("auto", *SCHEDULES) and not colon:
        return ScheduleName(kind)
    if kind != "ahead":
        raise _unknown("schedule", text, _SCHEDULES)
    size, colon, damping = rest.partition(":")
    if _is_count(size) and not colon:
        return ScheduleName(kind, int(size))
    with suppress(ValueError):
        if _is_count(size) and 0.0 < float(damping) <= 1.0:
            return ScheduleName(kind, int(size), float(damping))
    raise OptionError(
        f"schedule {text!r}: write ahead, ahead:B with B outcomes in [1, {LONGEST}], or ahead:B:C"
        " with C in (0, 1], by which the likeliest tokens are drawn more rarely"
    )


def num_nodes(widths: tuple[int, ...]) -> int:
    """Drafted nodes of a full tree whose levels have so many children a node."""
    total, level = 0, 1
    for width in widths:
        level *= width
        total += level
    return total


def _read_parts(name: str, words: list[str], text: str) -> DrafterName:
    if name == "router":
        if len(words) < 2:
            raise OptionError(f"drafter {text!r}: a router needs two drafters or more, by commas")
        return DrafterName(name, parts=tuple(_read_part(word, text) for word in words))
    if len(words) != 3:
        raise OptionError(
            f"drafter {text!r}: write nested(D,S,R), the drafter, shape and rule of the inner"
            " decoder behind its model, as nested(lm,chain:4,match)"
        )
    inner = _read_part(words[0], text)
    _refuse_bound_to_target(inner, text)
    return DrafterName(
        name,
        parts=(inner,),
        shape=read_shape(words[1]),
        rule=_read_word("rule", words[2], RULES),
    )


def _refuse_bound_to_target(inner: DrafterName, text: str) -> None:
    """Refuse what only the target itself can feed, below another model."""
    for leaf in inner.leaves():
        if leaf.name == "exit":
            raise IncompatibleSpeculation(
                f"drafter {text!r}: exit drafts with the layers and K/V of the target alone, not of"
                " a model inside nested(…): use lm:DIR or lookup there"
            )
        if leaf.name in FEATURE_DRAFTERS:
            raise IncompatibleSpeculation(
                f"drafter {text!r}: {leaf.name} reads hidden states of the target it was trained"
                " for, not of a model inside nested(…): use lm:DIR or lookup there"
            )


def _read_part(word: str, text: str) -> DrafterName:
    part = read_drafter(word)
    if part.name == "auto":
        raise OptionError(
            f"drafter {text!r}: name the drafters inside; auto is a choice for all of them, as"
            " --drafter auto"
        )
    return part


def _split(text: str, separator: str = ",") -> list[str]:
    """At the commas, or another separator, outside parentheses."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == separator and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]


def _read_word(axis: str, text: str, known: tuple[str, ...]) -> str:
    if text == "auto":
        return known[0]
    if text in known:
        return text
    raise _unknown(axis, text, f"auto, {', '.join(known)}")


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= LONGEST


def _unknown(axis: str, text: str, available: str) -> OptionError:
    name = text.partition("(")[0].partition(":")[0]
    if (axis, name) == ("drafter", "grammar"):
        return OptionError(
            f"drafter {text!r} is not to be named: what a grammar forces is drafted wherever one"
            f" binds a text; available: {available}"
        )
    return OptionError(f"unknown {axis} {text!r}; available: {available}")


def _refuse_unjudged(drafter: DrafterName, shape: ShapeName, rule: str) -> None:
    """The table of docs/exactness.md: which rule may judge which draft."""
    if shape.siblings == "likeliest" and rule in ("block", "traversal", "kseq"):
        raise IncompatibleSpeculation(
            f"rule {rule} needs the law its drafts were sampled from, and siblings drawn as"
            " `:likeliest` have none: drop `:likeliest`, or use match or rejection"
        )
    if shape.siblings == "top" and rule in ("match", "block", "traversal", "kseq"):
        raise IncompatibleSpeculation(
            f"rule {rule} cannot use siblings drawn as `:top` (the likeliest tokens and one from"
            " the rest), which only rejection has a law for: drop `:top`, or use rejection"
        )
    if rule == "match":
        return
    if rule == "block" and shape.kind == "tree":
        raise IncompatibleSpeculation(
            "rule block judges one chain, not a tree: use traversal, its form for trees, or chain:K"
        )
    for leaf in drafter.leaves():
        if leaf.name in POINT_DRAFTERS and leaf.name != "none" and rule != "rejection":
            raise IncompatibleSpeculation(
                f"rule {rule} needs the law its drafts were sampled from, and {leaf.name} proposes"
                " tokens without one: use match, or rejection"
            )
        if leaf.name == "exit":
            raise IncompatibleSpeculation(
                f"exit drafts with the target's own noise, which rule {rule} may not share: use"
                " match"
            )
    if _has_nested(drafter):
        raise IncompatibleSpeculation(
            f"a nested decoder's tokens are choices, not draws with a law that rule {rule} could"
            " read: use match"
        )


def _refuse_untimely(composition: Composition) -> None:
    """What cannot be drafted with while the target verifies."""
    schedule, rule = composition.schedule, composition.rule
    if schedule.kind not in ("parallel", "ahead"):
        return
    if any(leaf.name == "exit" for leaf in composition.drafter.leaves()):
        raise IncompatibleSpeculation(
            f"exit drafts with the target's own layers, which are busy while schedule"
            f" {schedule.kind} would draft: use sequential, or lm"
        )
    if schedule.damping < 1.0 and rule == "match":
        raise IncompatibleSpeculation(
            "damped draws (ahead:B:C) serve rules that judge by laws; under match target and"
            " drafter share their noise and guesses need no such help: write"
            f" ahead:{schedule.num_branches}, or use rejection"
        )
    leaves = composition.drafter.leaves()
    if schedule.damping < 1.0 and composition.shape.siblings == "likeliest":
        raise IncompatibleSpeculation(
            "siblings drawn as `:likeliest` are set, not drawn, so ahead:B:C has nothing to damp:"
            f" drop `:likeliest`, or write ahead:{schedule.num_branches}"
        )
    if schedule.damping < 1.0 and all(leaf.name in POINT_DRAFTERS for leaf in leaves):
        raise IncompatibleSpeculation(
            f"{leaves[0].name} proposes tokens without a law, so ahead:B:C has nothing to damp:"
            f" write ahead:{schedule.num_branches}, or use lm"
        )


def _has_nested(drafter: DrafterName) -> bool:
    return drafter.name == "nested" or any(_has_nested(part) for part in drafter.parts)
