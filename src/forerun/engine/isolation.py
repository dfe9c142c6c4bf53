"""What goes wrong for one row stays with that row: a round in which nobody shares an error.

A round that raises is undone and run once more, row by row. Rows that raise alone end with their
own error; of the others nothing is lost, for a round undone and repeated gives the same tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from forerun.draft import Commit
from forerun.engine.parts import Parts
from forerun.engine.round import run_round
from forerun.engine.sequence import Sequence
from forerun.errors import BackendError, ForerunError
from forerun.stats import RoundMeter

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Before:
    """How a row was when a round began."""

    num_tokens: int
    committed_len: int
    num_logprobs: int
    num_drafted: int
    num_accepted: int


def rounds_apart(rows: Rows[Sequence], parts: Parts, meter: RoundMeter) -> list[Commit | None]:
    """As `run_round`, but an error ends the row it belongs to, and no other."""
    before = [_before(row) for row in rows]
    try:
        return run_round(rows, parts, meter)
    except Exception as error:  # noqa: BLE001  a backend may raise anything
        _log.warning("a round of %d rows failed: %s: %s", len(rows), type(error).__name__, error)
        for row, state in zip(rows, before, strict=True):
            _undo(row, state)
        if len(rows) == 1:
            rows[0].fail(own_error(error))
            return [None]
    return [commit for row in rows for commit in rounds_apart([row], parts, meter)]


def own_error(error: Exception) -> ForerunError:
    """The error of a request that could not be computed."""
    if isinstance(error, ForerunError):
        return error
    own = BackendError(
        f"this request could not be computed ({type(error).__name__}: {error}); others go on, send"
        " it again"
    )
    own.__cause__ = error
    return own


def _before(row: Sequence) -> _Before:
    tally, num_logprobs = row.tally, len(row.logprobs)
    return _Before(
        len(row.tokens), row.committed_len, num_logprobs, tally.num_drafted, tally.num_accepted
    )


def _undo(row: Sequence, before: _Before) -> None:
    """What was kept beyond is computed again, to the same places."""
    del row.tokens[before.num_tokens :]
    del row.logprobs[before.num_logprobs :]
    row.committed_len = before.committed_len
    row.tally.num_drafted, row.tally.num_accepted = before.num_drafted, before.num_accepted
    row.finish_reason, row.error = None, None
