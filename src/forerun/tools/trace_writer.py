"""Writes a trace while an engine runs: a line a row and round, each flushed at once.

A process that is killed leaves a file that can be read to its last whole line.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draft, Verdict
from forerun.engine.sequence import Sequence
from forerun.options import SamplingParams
from forerun.stats import RoundStats
from forerun.tools.trace import NUM_TOP, Header, NodeLaw, Request, Round, line_of, summary_of

_DIGITS = 7  # of a probability or margin: what a float32 holds
Figures: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """One row of a round that is not settled yet; `said` is what the rule read of its nodes."""

    row: Sequence
    known: int
    draft: Draft
    said: Any
    verdict: Verdict


class TraceWriter:
    """A witness that writes; use it in a `with` statement around its engine.

    The file is opened, and emptied, at once; `begin` must come before the first round.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._digest = hashlib.sha256()
        self._seen: list[_Seen] = []
        self._requests: dict[int, int] = {}  # by the engine's own id of a sequence
        self._num_of: dict[int, int] = {}
        self._rounds: list[Round] = []
        self._num_steps = 0
        self._has_begun = False

    def begin(self, header: Header) -> None:
        """Write the first line."""
        self._write(line_of(header))
        self._has_begun = True

    def saw(
        self,
        rows: Rows[Sequence],
        drafts: Rows[Draft],
        said: Any,
        starts: Rows[int],
        verdicts: Rows[Verdict],
    ) -> None:
        """Keep references: what is shown is part of the measured round."""
        self._seen = [
            _Seen(row, len(row.tokens), draft, said[starts[at] : starts[at + 1]], verdict)
            for at, (row, draft, verdict) in enumerate(zip(rows, drafts, verdicts, strict=True))
        ]

    def settled(self, stats: RoundStats) -> None:
        """Write a line for each row of the round that was seen."""
        for seen in self._seen:
            request = self._number(seen.row)
            number = self._num_of[request]
            self._num_of[request] += 1
            one = _round(seen, request, number, self._num_steps, stats)
            self._rounds.append(_without_laws(one))
            self._write(line_of(one))
        self._seen = []
        self._num_steps += 1

    def close(self) -> None:
        """Write the summary; more than once is fine."""
        if self._has_begun and not self._file.closed:
            digest = self._digest.hexdigest()
            self._write(line_of(summary_of(len(self._requests), self._rounds, digest)))
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _number(self, row: Sequence) -> int:
        found = self._requests.get(row.id)
        if found is not None:
            return found
        number = self._requests[row.id] = len(self._requests)
        self._num_of[number] = 0
        prompt = tuple(row.tokens[: row.prompt_len])
        params = params_dict(row.params)
        self._write(line_of(Request(number, prompt, params, row.seed, row.limit)))
        return number

    def _write(self, line: str) -> None:
        self._digest.update(line.encode())
        self._file.write(line)
        self._file.flush()


def params_dict(params: SamplingParams) -> dict[str, Any]:
    """The parameters as JSON has them; the seed is the request's own."""
    values = {one.name: getattr(params, one.name) for one in fields(params) if one.name != "seed"}
    values["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return values


def _round(seen: _Seen, request: int, number: int, step: int, stats: RoundStats) -> Round:
    draft, verdict, row = seen.draft, seen.verdict, seen.row
    emitted = tuple(row.tokens[seen.known :])
    said = np.asarray(seen.said)
    reads_laws = said.ndim == 2
    return Round(
        request=request,
        round=number,
        step=step,
        num_rows=stats.num_rows,
        known=seen.known,
        tokens=tuple(draft.tree.tokens.tolist()),
        parents=tuple(draft.tree.parents.tolist()),
        draw=draft.draw.value,
        margins=_figures(draft.margins),
        ranks=None if draft.ranks is None else tuple(draft.ranks.tolist()),
        scores=_figures(draft.scores),
        draft_laws=_draft_laws(draft, verdict, emitted),
        choices=None if reads_laws else tuple(said.tolist()),
        target_laws=_laws(draft, verdict, emitted, dict(enumerate(said))) if reads_laws else None,
        path=tuple(map(int, verdict.path)),
        bonus=int(verdict.bonus),
        kept=len(emitted),
        finish_reason=row.finish_reason,
        draft_s=stats.draft_s,
        verify_s=stats.verify_s,
        round_s=stats.round_s,
    )


def _without_laws(one: Round) -> Round:
    """What the summary needs of a round: a long trace must not be kept in memory."""
    nothing = dict.fromkeys(("margins", "ranks", "scores", "draft_laws", "choices", "target_laws"))
    kept = {field.name: getattr(one, field.name) for field in fields(one)}
    return Round(**{**kept, **nothing})


def _draft_laws(
    draft: Draft, verdict: Verdict, emitted: tuple[int, ...]
) -> tuple[NodeLaw, ...] | None:
    if draft.law is None or draft.expanded is None:
        return None
    laws = draft.law
    if draft.damping is not None:  # damped rows do not sum to one
        laws = laws / laws.sum(axis=1, keepdims=True)
    return _laws(draft, verdict, emitted, dict(zip(draft.expanded.tolist(), laws, strict=True)))


def _laws(
    draft: Draft, verdict: Verdict, emitted: tuple[int, ...], laws: dict[int, Figures]
) -> tuple[NodeLaw, ...]:
    """The laws at the nodes of the kept path, where there are any."""
    tokens, parents = draft.tree.tokens, draft.tree.parents
    found = []
    for depth, node in enumerate(verdict.path):
        law = laws.get(node)
        if law is None:
            continue
        top = _likeliest(law)
        children = tokens[np.flatnonzero(parents == node)].tolist()
        kept = [_token(law, token) for token in emitted[depth : depth + 1]]
        found.append(
            NodeLaw(
                int(node),
                tuple(_token(law, token) for token in top),
                tuple(_token(law, token) for token in children),
                kept[0] if kept else None,
            )
        )
    return tuple(found)


def _likeliest(law: Figures) -> list[int]:
    """The best tokens, lowest id first among equals; sorts no whole vocabulary."""
    least = np.partition(law, -NUM_TOP)[-NUM_TOP] if len(law) > NUM_TOP else 0.0
    ids = np.flatnonzero(law >= least)
    best: list[int] = ids[np.argsort(-law[ids], kind="stable")[:NUM_TOP]].tolist()
    return best


def _token(law: Figures, token: int) -> tuple[int, float]:
    return int(token), _short(float(law[token])) or 0.0


def _figures(values: Figures | None) -> tuple[float | None, ...] | None:
    return None if values is None else tuple(_short(one) for one in values.tolist())


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
