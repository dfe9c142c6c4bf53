"""Is a composition exact? Every outcome of its rounds, with its probability, against the target.

Knows rules and drafts, no model: laws are small tables, and noise is symbolic. A number u that a
counter gives is not drawn but kept as the interval it must lie in; each decision splits it, and
one that asks a counter again is decided by what is already known of its number. So a counter used
for two decisions, or in two rounds, shows as an error. Everything else is the code that decodes:
the rule's own `judge`, `draw_children`, and `noise.pick`'s cumulated weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Damping, Draft, Draw, Verdict
from forerun.noise import Purpose
from forerun.protocols import Noise, Rule
from forerun.shapes.draw import damp, draw_children
from forerun.tree import TokenTree

PENDING = 0  # the token known before the first round

Text: TypeAlias = tuple[int, ...]  # tokens emitted so far
Law: TypeAlias = Callable[[Text], NDArray[np.float32]]  # [V], the law of the token behind a text
Drafting: TypeAlias = Callable[[Text, Noise], Draft]
Key: TypeAlias = tuple[int, ...]
Counter: TypeAlias = Callable[[Purpose, int, int, int], Key]  # of purpose, start, node, index
Seen: TypeAlias = Mapping[Key, tuple[float, float]]  # the interval each number must lie in
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Proof:
    """How far the law of the first tokens is from the target's, at the worst text; the expected
    tokens of the first round, bonus included; how many outcomes of rounds were followed; the most
    rounds on one of them."""

    error: float
    expected_tokens: float
    num_branches: int
    num_rounds: int


@dataclass(frozen=True, slots=True)
class Grower:
    """Drafts from a table of laws below a template tree: `parents` of its drafted nodes, level by
    level as backends grow, nodes numbered as they come. Where `1 - sqrt(0.2 H)` of a law is below
    `least`, nothing is drawn from it; `damped` as in `protocols.Growth`."""

    law: Law
    draw: Draw
    parents: tuple[int, ...]
    least: float = 0.0
    damped: tuple[int, float] | None = None

    def __call__(self, text: Text, noise: Noise) -> Draft:
        """The draft that follows `text`."""
        tokens, parents = [text[-1] if text else PENDING], [-1]
        paths, places = [text], [0]
        laws: dict[int, NDArray[np.float32]] = {}
        draws: dict[int, list[int]] = {}
        lowered: list[list[int]] = []
        node = 0
        while node < len(tokens):
            below = [at for at, parent in enumerate(self.parents, 1) if parent == places[node]]
            law = self.law(paths[node])
            if below and certainty(law) >= self.least:
                laws[node], tokens_damped = damp(law, self.damped, self.draw, len(below))
                lowered.append(tokens_damped)
                draws[node] = draw_children(laws[node], len(below), self.draw, node, noise)
                for token, place in zip(dict.fromkeys(draws[node]), below, strict=False):
                    tokens.append(token)
                    parents.append(node)
                    paths.append((*paths[node], token))
                    places.append(place)
            node += 1
        tree = TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32))
        draft = _draft(tree, self.draw, laws, draws)
        damped = self.damped if draft.law is not None else None
        return replace(draft, damping=Damping.of(lowered, damped))


def _draft(
    tree: TokenTree, draw: Draw, laws: dict[int, NDArray[np.float32]], draws: dict[int, list[int]]
) -> Draft:
    if draw is Draw.POINT or not laws:
        return Draft(tree, draw)
    width = max(map(len, draws.values()))
    padded = [drawn + [-1] * (width - len(drawn)) for drawn in draws.values()]
    return Draft(
        tree,
        draw,
        np.array(list(laws), np.int32),
        np.stack(list(laws.values())),
        np.array(padded, np.int32) if draw is Draw.SAMPLED else None,
    )


def certainty(law: NDArray[np.float32]) -> float:
    """`1 - sqrt(0.2 H)`, a bound on acceptance from the entropy of a law (arXiv:2410.18351)."""
    some = law[law > 0].astype(np.float64)
    return 1.0 - math.sqrt(0.2 * max(0.0, -float(some @ np.log(some))))


def counter_words(purpose: Purpose, start: int, node: int, index: int) -> Key:
    """The words that `noise.uniform` counts by, for choice 0."""
    return index, start, 0, purpose + (node << 8)


def prove(
    rule: Rule,
    drafting: Drafting,
    target: Law,
    *,
    truth: Law | None = None,
    num_tokens: int = 4,
    counter: Counter = counter_words,
) -> Proof:
    """Play rounds until `num_tokens` are emitted, along every outcome.

    `target` is what the rule is told; `truth`, where it is another, what the text is held against.
    """
    told = Table(target)
    rounds = _Rounds(rule, drafting, told, counter)
    try:
        emitted, deepest = _merged(rounds, num_tokens)
    except _CounterAskedAgain:
        rounds = _Rounds(rule, drafting, told, counter)
        emitted, deepest = _followed(rounds, num_tokens)
    held = told if truth is None else Table(truth)
    joint = _joint(held, num_tokens)
    error = max(
        abs(emitted.get(text, 0.0) - joint.get(text, 0.0)) for text in emitted.keys() | joint.keys()
    )
    return Proof(error, rounds.expected_tokens, rounds.num_branches, deepest)


@dataclass(frozen=True, slots=True)
class Table:
    """A law by text, computed once."""

    law: Law
    rows: dict[Text, NDArray[np.float32]] = field(default_factory=dict)

    def __call__(self, text: Text) -> NDArray[np.float32]:
        """The law behind a text."""
        if text not in self.rows:
            self.rows[text] = self.law(text)
        return self.rows[text]


def _joint(law: Law, num_tokens: int) -> dict[Text, float]:
    """The exact probability of every text of so many tokens that has one."""
    joint: dict[Text, float] = {(): 1.0}
    for _ in range(num_tokens):
        longer: dict[Text, float] = {}
        for text, chance in joint.items():
            row = law(text).astype(np.float64)
            for token, share in enumerate((row / row.sum()).tolist()):
                if share > 0.0:
                    longer[(*text, token)] = chance * share
        joint = longer
    return joint


# --- rounds ---------------------------------------------------------------------------------------


class _CounterAskedAgain(Exception):
    """A round asked a counter that an earlier one may have asked."""


@dataclass(slots=True)
class _Rounds:
    """Outcomes of single rounds; remembers what the proof reports."""

    rule: Rule
    drafting: Drafting
    target: Law
    counter: Counter
    num_branches: int = 0
    expected_tokens: float = 0.0  # of the first round

    def outcomes(self, text: Text, seen: Seen) -> Iterator[tuple[Text, float, Seen]]:
        """Every outcome of the round that follows `text`: what it emits, its probability, and what
        is then known of the noise."""
        start = 1 + len(text)
        for draft, drawn, after_draft in branches(
            lambda noise: self.drafting(text, noise), start, seen, self.counter
        ):
            tokens = draft.tree.tokens.tolist()
            laws = np.stack([self.target(text + one) for one in _texts(draft.tree)])
            for verdict, judged, after in branches(
                self._judging(draft, laws), start, after_draft, self.counter
            ):
                self.num_branches += 1
                if verdict.bonus >= 0:
                    kept = tuple(tokens[node] for node in verdict.path[1:])
                    if not text:
                        self.expected_tokens += (len(kept) + 1) * drawn * judged
                    yield (*kept, verdict.bonus), drawn * judged, after

    def _judging(self, draft: Draft, laws: NDArray[np.float32]) -> Callable[[Noise], Verdict]:
        return lambda noise: self.rule.judge(draft, laws, noise)


def _texts(tree: TokenTree) -> list[Text]:
    """What was drafted down to each node."""
    texts: list[Text] = [()]
    for token, parent in itertools.islice(
        zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True), 1, None
    ):
        texts.append((*texts[parent], token))
    return texts


def _merged(rounds: _Rounds, num_tokens: int) -> tuple[dict[Text, float], int]:
    """The law of the first tokens where rounds share no counter: what is behind a text depends on
    the text alone, so its histories are followed once."""
    chances: dict[Text, float] = {(): 1.0}
    depths: dict[Text, int] = {(): 0}
    older: set[Key] = set()
    for length in range(num_tokens):
        asked: set[Key] = set()
        for text in [one for one in chances if len(one) == length]:
            chance, depth = chances.pop(text), depths.pop(text) + 1
            for emitted, share, seen in rounds.outcomes(text, {}):
                asked |= seen.keys()
                longer = (text + emitted)[:num_tokens]
                chances[longer] = chances.get(longer, 0.0) + chance * share
                depths[longer] = max(depths.get(longer, 0), depth)
        if asked & older:
            raise _CounterAskedAgain
        older |= asked
    return chances, max(depths.values())


def _followed(rounds: _Rounds, num_tokens: int) -> tuple[dict[Text, float], int]:
    """The law of the first tokens, each history with its own knowledge of the noise."""
    chances: dict[Text, float] = {}
    histories: list[tuple[Text, float, Seen, int]] = [((), 1.0, {}, 0)]
    deepest = 0
    while histories:
        text, chance, seen, depth = histories.pop()
        deepest = max(deepest, depth)
        if len(text) >= num_tokens:
            chances[text[:num_tokens]] = chances.get(text[:num_tokens], 0.0) + chance
            continue
        for emitted, share, after in rounds.outcomes(text, seen):
            histories.append((text + emitted, chance * share, after, depth + 1))
    return chances, deepest


# --- noise ----------------------------------------------------------------------------------------


def branches(
    play: Callable[[Noise], Result], start: int, seen: Seen, counter: Counter = counter_words
) -> Iterator[tuple[Result, float, Seen]]:
    """Every result of `play`, its probability given `seen`, and what is then known of the noise."""
    script: list[tuple[int, int]] = []  # of each decision: the option taken, of how many
    while True:
        noise = SymbolicNoise(start, counter, dict(seen), script)
        result = play(noise)
        yield result, noise.probability, noise.seen
        script = noise.taken
        while script and script[-1][0] == script[-1][1] - 1:
            script.pop()
        if not script:
            return
        script[-1] = (script[-1][0] + 1, script[-1][1])


@dataclass(slots=True)
class SymbolicNoise:
    """A round's decisions along one branch: `script` says which option each decision takes, the
    first where it says nothing; `taken` is what was done, for the next branch."""

    start: int
    counter: Counter
    seen: dict[Key, tuple[float, float]]
    script: list[tuple[int, int]]
    taken: list[tuple[int, int]] = field(default_factory=list)
    probability: float = 1.0

    def accepts(self, node: int, index: int, p: float, q: float) -> bool:
        """Whether `u * q < p`."""
        edge = min(1.0, p / q) if q > 0.0 else float(p > 0.0)
        return self._decide(Purpose.ACCEPT, node, index, [0.0, max(0.0, edge), 1.0]) == 0

    def picks(self, purpose: Purpose, node: int, index: int, weights: NDArray[np.float64]) -> int:
        """The token in whose share of the cumulated weights u lies."""
        sums = np.cumsum(weights, dtype=np.float64)
        return self._decide(purpose, node, index, [0.0, *(sums / sums[-1]).tolist()])

    def _decide(self, purpose: Purpose, node: int, index: int, edges: list[float]) -> int:
        """Which cell between two `edges` the number of a counter lies in."""
        key = self.counter(purpose, self.start, node, index)
        low, high = self.seen.get(key, (0.0, 1.0))
        cells = [
            (cell, max(low, left), min(high, right))
            for cell, (left, right) in enumerate(itertools.pairwise(edges))
            if max(low, left) < min(high, right)
        ]
        depth = len(self.taken)
        option = self.script[depth][0] if depth < len(self.script) else 0
        self.taken.append((option, len(cells)))
        cell, left, right = cells[option]
        self.seen[key] = (left, right)
        self.probability *= (right - left) / (high - low)
        return cell
