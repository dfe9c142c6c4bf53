"""Are the logits of a position the same bits in every company?

The yardstick is plain decoding, one token a pass. The same positions are then computed in prompts
cut in several ways, in a random tree, in a batch with other rows, and, where the backend has them,
on one thread and on every instruction path. Knows forward passes; must not know engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import chain_batch
from forerun.protocols import Backend, ForwardBatch
from forerun.tools.certify.checks import Budget, Findings, Turns
from forerun.tools.certify.subject import Subject

Logits = NDArray[np.float32]

_TEXT_LEN, _NUM_NODES = 40, 32  # past the first K/V block; the tree crosses into the third
_OWN, _BESIDE, _SINGLE = [0, 1, 2], [3, 4, 5], [6, 7, 7]  # K/V blocks of the rows of a batch
_BESIDE_LEN, _SINGLE_LEN = 5, 9
_NUM_TREES = 2  # that are computed before anything else: one, and the control of it


@dataclass(frozen=True, slots=True)
class Sample:
    """A text and a tree of tokens behind it; position of text i is i, node n comes after them."""

    text: list[int]
    nodes: list[int]
    parents: list[int]

    @staticmethod
    def drawn(text: Sequence[int], vocab: int, seed: int) -> Sample:
        """The beginning of a text, repeated if it is short, and a random tree."""
        rng = np.random.default_rng(seed)
        reach = int(rng.integers(3, 12))
        parents = [-1] + [int(rng.integers(max(0, n - reach), n)) for n in range(1, _NUM_NODES)]
        tokens = (list(text) or [0]) * (_TEXT_LEN // max(1, len(text)) + 1)
        return Sample(tokens[:_TEXT_LEN], rng.integers(0, vocab, _NUM_NODES).tolist(), parents)

    def moved(self) -> Sample:
        """The same tree but for its last node that can move, which is given another parent."""
        node = max(n for n, parent in enumerate(self.parents) if parent > 0)
        parents = [0 if n == node else parent for n, parent in enumerate(self.parents)]
        return Sample(self.text, self.nodes, parents)


@dataclass(frozen=True, slots=True)
class Company:
    """Positions `at` of a sample; `logits` computes them together with others."""

    name: str
    at: NDArray[np.intp]
    logits: Callable[[], Logits]


def check_bits(subject: Subject, budget: Budget, findings: Findings) -> None:
    """A tree and the controls in any case; other companies, then other threads and instruction
    paths, as far as the time for each is there."""
    text = [token for ids in subject.token_ids() for token in ids]
    with subject.backend() as backend:
        sample = Sample.drawn(text, backend.spec.vocab, subject.seed)
        exact = backend.exactness
        if exact == "law":
            findings.skip(
                "bits",
                f"{backend.numerics} promises only the law on this machine: its probe found bits"
                " that depend on the company",
            )
            return
        bench = _Bench(findings, sample, decoded(backend, sample), exact)
        bench.look_at(backend, budget)
        paths = _other_paths(backend)
    turns = Turns(budget, findings, budget.spent_s)
    for isa, threads in paths:
        name = f"bits: {isa}" + (", one thread" if threads == 1 else "")
        turns.take(name, partial(bench.look_elsewhere, name, subject, isa, threads))


@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    """A sample, what plain decoding says of it, and how exact the rest must be."""

    findings: Findings
    sample: Sample
    expected: Logits
    exact: str

    def look_at(self, backend: Backend, budget: Budget) -> None:
        """Each company by itself; the tree first, for a certificate must have something."""
        began_s = budget.spent_s
        tree = _tree(backend, self.sample)
        self._judge(f"{self.exact}: {tree.name}", [tree])
        self._control(backend)
        turns = Turns(budget, self.findings, (budget.spent_s - began_s) / _NUM_TREES)
        for one in (*_prompts(backend, self.sample), _mixed(backend, self.sample)):
            name = f"{self.exact}: {one.name}"
            turns.take(name, partial(self._judge, name, [one]))

    def look_elsewhere(
        self, name: str, subject: Subject, isa: str | None, threads: int | None
    ) -> None:
        """All companies on another number of threads or instruction path, as one check."""
        with subject.backend(isa=isa, threads=threads) as backend:
            one = self.sample
            prompts, tree = _prompts(backend, one), _tree(backend, one)
            self._judge(name, [*prompts, tree, _mixed(backend, one)])

    def _judge(self, name: str, companies: Sequence[Company]) -> None:
        found = [(one.logits(), self.expected[one.at]) for one in companies]
        held = all(_holds(*pair, self.exact) for pair in found)
        num = sum(logits.size for logits, _ in found)
        different = sum(num_different(*pair) for pair in found)
        worst = max(float(np.abs(logits - expected).max()) for logits, expected in found)
        detail = f"{different:,} of {num:,} logits differ from plain decoding in any bit"
        more = f", by at most {worst:.2g}" if different else ""
        self.findings.add(name, held, detail + more)

    def _control(self, backend: Backend) -> None:
        """One bit of one logit turned, and one node hung below the wrong parent, must be seen."""
        turned, add = self.expected.copy(), self.findings.add
        if self.exact != "bits":
            turned[0, int(turned[0].argmax())] = -np.inf
            seen = not _holds(turned, self.expected, self.exact)
            add("control: one winning logit removed", seen, _noticed(seen))
            return
        turned.view(np.uint32)[len(self.sample.text), 0] ^= 1
        seen = num_different(turned, self.expected) == 1
        add("control: one bit of one logit turned", seen, _noticed(seen))
        moved = _tree(backend, self.sample.moved())
        different = num_different(moved.logits(), self.expected[moved.at])
        add("control: one node below the wrong parent", different > 0, f"{different:,} differ")


def decoded(backend: Backend, sample: Sample) -> Logits:
    """`[P + N, V]` logits of text and nodes, each computed alone."""
    rows = [_single(backend, [token], at) for at, token in enumerate(sample.text)]
    rows += [np.zeros(0, np.float32)] * len(sample.nodes)
    committed = len(sample.text)

    def descend(node: int, depth: int) -> None:
        # What a node's siblings left at its position and below is overwritten before it is read.
        rows[committed + node] = _single(backend, [sample.nodes[node]], committed + depth)
        for child, parent in enumerate(sample.parents):
            if parent == node:
                descend(child, depth + 1)

    descend(0, 0)
    return np.stack([row.reshape(-1) for row in rows])


def _prompts(backend: Backend, sample: Sample) -> list[Company]:
    """The text, read in several ways; its K/V is kept, and is what the tree stands on."""
    num = len(sample.text)

    def read(cuts: Sequence[int]) -> Logits:
        parts = [_single(backend, sample.text[a:b], a) for a, b in pairwise(cuts)]
        return np.concatenate(parts)

    return [
        Company(name, np.arange(num), partial(read, cuts))
        for name, cuts in (
            ("prompt in one pass", [0, num]),
            ("prompt in chunks of 1, 7 and the rest", [0, 1, 8, num]),
            ("prompt in chunks of 13", [*range(0, num, 13), num]),
        )
    ]


def _tree(backend: Backend, sample: Sample) -> Company:
    """The nodes behind a text whose K/V is there."""
    num = len(sample.text)
    batch = _batch([(sample.nodes, sample.parents, num, _OWN)])
    at = np.arange(num, num + len(sample.nodes))
    return Company(f"a tree of {len(at)} nodes", at, partial(_logits, backend, batch))


def _mixed(backend: Backend, sample: Sample) -> Company:
    """The tree between a short prompt that begins and a text that gains one token."""
    num, text = len(sample.text), sample.text
    rows = [
        (text[:_BESIDE_LEN], list(range(-1, _BESIDE_LEN - 1)), 0, _BESIDE),
        (sample.nodes, sample.parents, num, _OWN),
        ([text[_SINGLE_LEN - 1]], [-1], _SINGLE_LEN - 1, _SINGLE),
    ]

    def together() -> Logits:
        _single(backend, text[: _SINGLE_LEN - 1], 0, _SINGLE)
        return _logits(backend, _batch(rows))

    at = np.array(
        [*range(_BESIDE_LEN), *range(num, num + len(sample.nodes)), _SINGLE_LEN - 1], np.intp
    )
    return Company("a batch of three rows", at, together)


def _single(
    backend: Backend, tokens: Sequence[int], committed: int, blocks: Sequence[int] = tuple(_OWN)
) -> Logits:
    """Logits of one row of tokens without forks; their K/V is kept."""
    table = np.array([blocks], np.int32)
    batch = chain_batch(np.array(tokens, np.int32), committed, table, len(tokens))
    logits = _logits(backend, batch)
    backend.commit(batch, [range(len(tokens))])
    return logits


def _batch(rows: Sequence[tuple[list[int], list[int], int, list[int]]]) -> ForwardBatch:
    """Rows of (tokens, parents, committed, blocks) for one pass, all logits wanted."""
    tokens = [token for row in rows for token in row[0]]
    starts = np.cumsum([0, *[len(row[0]) for row in rows]])
    return ForwardBatch(
        token_ids=np.array(tokens, np.int32),
        parents=np.array([parent for row in rows for parent in row[1]], np.int32),
        row_starts=starts.astype(np.int32),
        committed=np.array([row[2] for row in rows], np.int32),
        block_table=np.array([row[3] for row in rows], np.int32),
        logit_nodes=np.arange(len(tokens), dtype=np.int32),
    )


def _logits(backend: Backend, batch: ForwardBatch) -> Logits:
    """A copy in numpy of whatever array the backend has, valid until its next forward."""
    logits: Any = backend.forward(batch).logits
    if hasattr(logits, "detach"):
        logits = logits.detach().float().cpu().numpy()
    return np.array(logits, np.float32)


def _other_paths(backend: Backend) -> list[tuple[str | None, int | None]]:
    """(instruction path, threads) the native core has beside those in use; the emulation is for
    our own tests, nobody generates with it."""
    isa = getattr(backend, "isa", None)
    if isa is None:
        return []
    from forerun.backends.native import equal_paths

    others = [path for path in equal_paths(isa) if path not in (isa, "amx-emulated")]
    alone = [(isa, 1)] if getattr(backend, "num_threads", 1) > 1 else []
    return [*alone, *[(path, None) for path in others]]


def num_different(found: Logits, expected: Logits) -> int:
    """How many values differ in at least one bit."""
    return int(np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32)))


def _holds(found: Logits, expected: Logits, exact: str) -> bool:
    if exact == "bits":
        return num_different(found, expected) == 0
    return bool(np.array_equal(found.argmax(-1), expected.argmax(-1)))


def _noticed(seen: bool) -> str:  # noqa: FBT001  what is said of it
    return "noticed" if seen else "NOT noticed"
