"""A small model of another vocabulary under rule `match`: its words, in the target's tokens.

String-level exact match (Timor et al. 2025, arXiv:2502.05202, algorithm 4): the target's text is
told in the drafter's tokens, the drafter goes on, and what it says is encoded with the target's
tokenizer. Any proposal is exact under `match`; nothing here needs a law, or any common token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.intersect import Intersected
from forerun.drafters.plain import plain_draft
from forerun.drafters.translate_reading import Reading, Readings
from forerun.drafters.translate_text import continuation
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, ProposalPlan, Sampler
from forerun.tree import TokenTree

_POINT = Draw.POINT  # looked up once: an enum's member is found by a slow call
# Noise cannot be shared across vocabularies, and unshared noise only scatters a draft: the
# likeliest tokens are kept more often than sampled ones.
_GREEDY = Sampler(SamplingParams(), 0)
MOST_STEPS_PER_TOKEN = 2.0  # drafter tokens for one of the target's; beyond it drafts are shorter


class Translated:
    """Drafts point chains of at most `num_drafted` target tokens. Where `coupled`, a drafter of
    shared tokens on the same `readings`, is given, it drafts for requests with a temperature:
    noise that is shared is worth more than tokens that are not."""

    def __init__(
        self, readings: Readings, num_drafted: int, coupled: Intersected | None = None
    ) -> None:
        self._readings = readings
        self._num_drafted = num_drafted
        self._coupled = coupled

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Tell the prompt in the drafter's tokens and read it.

        Raises:
            CapacityError: it does not fit the drafter's context or K/V memory.
        """
        self._readings.admit(sequence_id, prompt, self._num_drafted)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One draft a row; nothing for rows without room, in one backend call for all others."""
        told = [row for row in rows if self._coupled is None or not row.sampler.params.temperature]
        drafts = self._tell(told) if told else {}
        if self._coupled is not None and len(told) < len(rows):
            others = [row for row in rows if row.sampler.params.temperature]
            found = self._coupled.propose(others)
            drafts |= {row.sequence_id: draft for row, draft in zip(others, found, strict=True)}
        return [drafts.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def _tell(self, rows: Sequence[DraftRow]) -> dict[int, Draft]:
        drafting: list[tuple[DraftRow, Reading]] = []
        num_steps = 0
        for row in rows:
            if min(row.max_drafted, row.max_depth) < 1:
                continue
            reading = self._readings.ready(row.sequence_id, row.tokens, self._most_steps)
            if reading is not None:
                drafting.append((row, reading))
                num_steps = max(num_steps, self._num_steps(row, reading))
        if not drafting:
            return {}
        with self._readings.span:
            proposed = self._readings.backend.propose(self._plan(drafting, num_steps))
        drafts: dict[int, Draft] = {}
        for (row, reading), line in zip(drafting, proposed.tolist(), strict=True):
            reading.keep(len(reading.catch_up))
            reading.drafted += line[:-1]
            drafts[row.sequence_id] = self._draft(row, reading, line)
        return drafts

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """The next proposal reads the text itself."""

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """The next proposal reads the text itself."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Go back to a text that may go on otherwise."""
        self._readings.rewind(sequence_id, tokens)

    def release(self, sequence_id: int) -> None:
        """Give back the sequence's blocks."""
        self._readings.release(sequence_id)
        if self._coupled is not None:
            self._coupled.release(sequence_id)

    def close(self) -> None:
        """Close the small model."""
        self._readings.close()

    @property
    def _most_steps(self) -> int:
        return int(self._num_drafted * MOST_STEPS_PER_TOKEN) + 1

    def _num_steps(self, row: DraftRow, reading: Reading) -> int:
        """Drafter tokens that spell about as much text as the row may draft."""
        ratio = len(reading.text.ids) / len(row.tokens)
        most = min(row.max_drafted, row.max_depth, self._num_drafted)
        return max(1, round(most * min(ratio, MOST_STEPS_PER_TOKEN)))

    def _plan(self, drafting: list[tuple[DraftRow, Reading]], num_steps: int) -> ProposalPlan:
        catch_up: list[int] = []
        starts = [0]
        for _row, reading in drafting:
            catch_up += reading.catch_up
            starts.append(len(catch_up))
        return ProposalPlan(
            np.array(catch_up, np.int32),
            np.array(starts, np.int32),
            np.array([reading.num_kept for _row, reading in drafting], np.int32),
            self._readings.table([row.sequence_id for row, _reading in drafting]),
            [_GREEDY] * len(drafting),
            num_steps,
        )

    def _draft(self, row: DraftRow, reading: Reading, line: list[int]) -> Draft:
        """The text of a line as far as it has one, in the target's tokens; then its end, if any."""
        own, target = self._readings.own, self._readings.target
        num_text = next(
            (at for at, token in enumerate(line) if token < 0 or not own[token]), len(line)
        )
        # A character that could not be read as far as it is known must be drafted from its start.
        held = b"" if reading.half else reading.text.held
        spelled = own.join(line[:num_text])
        tokens: list[int] = []
        if spelled.startswith(held):
            tokens = continuation(target, row.tokens, spelled[len(held) :])
        is_end = num_text < len(line) and line[num_text] in own.tokenizer.eos_ids
        if is_end and target.tokenizer.eos_ids and (tokens or spelled == held):
            tokens.append(target.tokenizer.eos_ids[0])
        most = min(row.max_drafted, row.max_depth)
        return Draft(TokenTree.made_chain([row.tokens[-1], *tokens[:most]]), _POINT)
