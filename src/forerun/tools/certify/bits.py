"""Are the logits of a position the same bits in every company?

The yardstick is plain decoding, one token a pass. The same positions are then computed in prompts
cut in several ways, in a random tree, in a batch with other rows, and, where the backend has them,
on one thread and on every instruction path. Knows forward passes; must not know engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import chain_batch
from forerun.protocols import Backend, ForwardBatch
from forerun.tools.certify.checks import TIME_WAS_SPENT, Budget, Findings
from forerun.tools.certify.subject import Subject

Logits = NDArray[np.float32]

_TEXT_LEN, _NUM_NODES = 40, 32  # past the first K/V block; the tree crosses into the third
_OWN, _BESIDE, _SINGLE = [0, 1, 2], [3, 4, 5], [6, 7, 7]  # K/V blocks of the rows of a batch
_BESIDE_LEN, _SINGLE_LEN = 5, 9


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
    """Positions `at` of a sample, computed together with others."""

    name: str
    at: NDArray[np.intp]
    logits: Logits


def check_bits(subject: Subject, budget: Budget, findings: Findings) -> None:
    """All companies on the backend as asked for, then other threads and instruction paths."""
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
        expected = decoded(backend, sample)
        for company in companies(backend, sample):
            _judge(findings, f"{exact}: {company.name}", [company], expected, exact)
        _control(findings, backend, sample, expected, exact)
        paths = _other_paths(backend)
    last_s = budget.spent_s
    for isa, threads in paths:
        name = f"bits: {isa}" + (", one thread" if threads == 1 else "")
        if not budget.num_fitting(last_s, 1):
            findings.skip(name, TIME_WAS_SPENT)
            continue
        findings.show(name)
        began_s = budget.spent_s
        with subject.backend(isa=isa, threads=threads) as backend:
            _judge(findings, name, list(companies(backend, sample)), expected, exact)
        last_s = budget.spent_s - began_s


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


def companies(backend: Backend, sample: Sample) -> Iterator[Company]:
    """The sample's positions in every company."""
    num = len(sample.text)
    for name, cuts in (
        ("prompt in one pass", [0, num]),
        ("prompt in chunks of 1, 7 and the rest", [0, 1, 8, num]),
        ("prompt in chunks of 13", [*range(0, num, 13), num]),
    ):
        parts = [_single(backend, sample.text[a:b], a) for a, b in pairwise(cuts)]
        yield Company(name, np.arange(num), np.concatenate(parts))
    tree = (sample.nodes, sample.parents, num, _OWN)
    at = np.arange(num, num + len(sample.nodes))
    yield Company(f"a tree of {len(at)} nodes", at, _logits(backend, _batch([tree])))
    yield _mixed(backend, sample)


def _mixed(backend: Backend, sample: Sample) -> Company:
    """The tree between a short prompt that begins and a text that gains one token."""
    num, text = len(sample.text), sample.text
    _single(backend, text[: _SINGLE_LEN - 1], 0, _SINGLE)
    rows = [
        (text[:_BESIDE_LEN], list(range(-1, _BESIDE_LEN - 1)), 0, _BESIDE),
        (sample.nodes, sample.parents, num, _OWN),
        ([text[_SINGLE_LEN - 1]], [-1], _SINGLE_LEN - 1, _SINGLE),
    ]
    at = np.array(
        [*range(_BESIDE_LEN), *range(num, num + len(sample.nodes)), _SINGLE_LEN - 1], np.intp
    )
    return Company("a batch of three rows", at, _logits(backend, _batch(rows)))


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
    from forerun import _native

    others = [path for path in _native.available_paths() if path not in (isa, "amx-emulated")]
    alone = [(isa, 1)] if getattr(backend, "num_threads", 1) > 1 else []
    return [*alone, *[(path, None) for path in others]]


def num_different(found: Logits, expected: Logits) -> int:
    """How many values differ in at least one bit."""
    return int(np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32)))


def _holds(found: Logits, expected: Logits, exact: str) -> bool:
    if exact == "bits":
        return num_different(found, expected) == 0
    return bool(np.array_equal(found.argmax(-1), expected.argmax(-1)))


def _judge(
    findings: Findings, name: str, found: Sequence[Company], expected: Logits, exact: str
) -> None:
    held = all(_holds(one.logits, expected[one.at], exact) for one in found)
    num = sum(one.logits.size for one in found)
    different = sum(num_different(one.logits, expected[one.at]) for one in found)
    worst = max(float(np.abs(one.logits - expected[one.at]).max()) for one in found)
    detail = f"{different:,} of {num:,} logits differ from plain decoding in any bit"
    findings.add(name, held, detail + (f", by at most {worst:.2g}" if different else ""))


def _control(
    findings: Findings, backend: Backend, sample: Sample, expected: Logits, exact: str
) -> None:
    """One bit of one logit turned, and one node hung below the wrong parent, must be seen."""
    if exact == "bits":
        turned = expected.copy()
        turned.view(np.uint32)[len(sample.text), 0] ^= 1
        seen = num_different(turned, expected) == 1
        findings.add("control: one bit of one logit turned", seen, _noticed(seen))
        moved = list(companies(backend, sample.moved()))[3]
        different = num_different(moved.logits, expected[moved.at])
        findings.add(
            "control: one node below the wrong parent", different > 0, f"{different:,} differ"
        )
        return
    turned = expected.copy()
    turned[0, int(expected[0].argmax())] = -np.inf
    seen = not _holds(turned, expected, exact)
    findings.add("control: one winning logit removed", seen, _noticed(seen))


def _noticed(seen: bool) -> str:  # noqa: FBT001  what is said of it
    return "noticed" if seen else "NOT noticed"
