"""What two lanes can do at best: both models' loops side by side, and rounds that always hit.

Both do the same work, so that one divided by the other is what handing over costs: the same text
from the same prompt on, drafts as long and as many branches, each forecast whole, the winner of the
one before it carried where it was among the guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from forerun import Engine, SamplingParams, Speculation
from forerun.backends.native import NativeBackend
from forerun.backends.prefill import chain_batch
from forerun.control.lane_trial import looping
from forerun.draft import Commit, Draft, Draw
from forerun.drafters.lm import LM
from forerun.errors import OptionError
from forerun.models.weights import open_checkpoint
from forerun.protocols import DraftRow, Outlook, Sampler
from forerun.stats import Span, timed
from forerun.tree import TokenTree

_MARGIN = 4  # rounds at a text's beginning and end that are not counted
_PROMPT = list(range(5, 69))
_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """How long drafts are, and for how many outcomes one is prepared."""

    length: int
    branches: int


@dataclass(frozen=True, slots=True)
class Whole:
    """Wait until all that was planned is there."""

    num_levels: int = 0
    longest_s: float = 60.0


class Patient:
    """Waits for everything and learns nothing."""

    def learn_forecast(self, num_passes: int, seconds: float) -> None: ...
    def learn_redraft(self, seconds: float) -> None: ...
    def learn_outcome(self, *, is_hit: bool) -> None: ...
    def learn_yield(self, source: str, num_accepted: int) -> None: ...

    def wait_for(self, num_levels: int, elapsed_s: float, num_rows: int) -> Whole:
        """As long as it takes."""
        del num_levels, elapsed_s, num_rows
        return Whole()

    def prefers_redraft(self, other: str, num_missed: int) -> bool:
        """Always."""
        del other, num_missed
        return True

    def longest_redraft_s(self) -> float:
        """As long as it takes."""
        return 60.0

    def reach(self) -> list[float]:
        """What is assumed where nobody saw any."""
        return [1.0]


class SizedDrafter(Protocol):
    """A drafter's directory, and how often each of its passes is run."""

    @property
    def directory(self) -> Path: ...

    @property
    def num_times(self) -> int: ...


class Repeated:
    """A backend that runs so many passes for each pass of a proposal, all but one for nothing, on
    a block of its own: as a model of more layers with shared weights would."""

    def __init__(self, backend: Any, num_times: int) -> None:
        self._backend = backend
        self._num_more = num_times - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def propose(self, plan: Any) -> Any:
        """A proposal, in the time of several."""
        self._waste(plan.num_steps, 1)
        return self._backend.propose(plan)

    def grow(self, plan: Any, num_layers: int = 0) -> Any:
        """A proposal of trees, in the time of several."""
        self._waste(int(plan.depths.max()), plan.growth.frontier)
        return self._backend.grow(plan, num_layers)

    def foresee(self, plan: Any) -> Any:
        """A forecast, in the time of several; what is carried is read by none of them."""
        num_branches = int(plan.num_branches.sum())
        carried = plan.carried or [None] * len(plan.trees)
        unread = [
            len(tree) if one is None else int(np.count_nonzero(one.nodes < 0))
            for tree, one in zip(plan.trees, carried, strict=True)
        ]
        self._waste(min(1, max(unread)), max(unread))
        self._waste(int(plan.below.depths.max()), num_branches)
        return self._backend.foresee(plan)

    def _waste(self, num_passes: int, num_nodes: int) -> None:
        table = np.full((1, 1 + num_nodes // 32), self._backend.num_blocks - 1, np.int32)
        batch = chain_batch(np.zeros(min(num_nodes, 32), np.int32), 0, table, num_logits=1)
        for _ in range(num_passes * self._num_more):
            self._backend.forward(batch)


class Told:
    """A drafter that works as it would and then says what it was told: every outcome is a hit."""

    def __init__(self, drafter: Any, text: Sequence[int]) -> None:
        self._drafter = drafter
        self._text = text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """As long a chain as was proposed, of the right tokens."""
        made = self._drafter.propose(rows)
        return [self._chain(row, len(one.tree)) for row, one in zip(rows, made, strict=True)]

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """Each draft and what follows when all of it is kept; nothing below one that is not the
        text's, as a verifier makes do with that does not wait."""
        self._drafter.foresee(rows, drafts, outlook)
        told = []
        for row, draft, depth in zip(rows, drafts, outlook.depths.tolist(), strict=True):
            chain = self._chain(row, len(draft.tree) + 1 + depth)
            own = chain.tree.tokens[: len(draft.tree)]
            told.append(chain if np.array_equal(own, draft.tree.tokens) else draft)
        return told

    def _chain(self, row: DraftRow, num_nodes: int) -> Draft:
        return told_chain(self._text, len(row.tokens), num_nodes)


def told_chain(text: Sequence[int], num_known: int, num_nodes: int) -> Draft:
    """So many tokens of a text, the last known one first, as a draft."""
    start = num_known - 1
    tokens = list(text[start : start + num_nodes])
    return Draft(TokenTree.made_chain(tokens), Draw.COUPLED, num_passes=1 + num_nodes)


def replace_backend(engine: Engine, num_times: int) -> None:
    """Have every pass of an engine's `lm` run several times."""
    if num_times > 1:
        drafter = lm_of(engine)
        drafter._backend = Repeated(drafter._backend, num_times)


def lm_of(engine: Engine) -> LM:
    """The small model behind an engine's guard, and its lane if it has one."""
    drafter: Any = engine._parts.drafter._drafter
    side = getattr(drafter, "_side", None)
    found = drafter if side is None else side._drafter
    if not isinstance(found, LM):
        raise OptionError("lanes are measured with an lm drafter")
    return found


def limits_of(
    model: Path, sized: SizedDrafter, settings: Settings, num_rounds: int
) -> dict[str, Any]:
    """Seconds of a verification and of a forecast, apart and at once, and rounds that all hit."""
    text = _text_of(model, settings, num_rounds)
    target = NativeBackend(open_checkpoint(model), cores=(0,), num_blocks=_BLOCKS)
    small = NativeBackend(open_checkpoint(sized.directory), cores=(1,), num_blocks=_BLOCKS)
    backend: Any = Repeated(small, sized.num_times) if sized.num_times > 1 else small
    try:
        verify = Verifying(target, text, settings, num_rounds)
        draft = Drafting(LM(backend, settings.length, Span()), text, settings, num_rounds)
        alone = [_median_s(verify, num_rounds), _median_s(draft, num_rounds)]
        with looping(draft):
            beside = [_median_s(verify, num_rounds)]
        with looping(verify):
            beside.append(_median_s(draft, num_rounds))
    finally:
        target.close()
        small.close()
    limit = 1.0 / max(beside)
    hits = _all_hits(model, sized, text, settings, num_rounds)
    return {
        "limit_settings": [settings.length, settings.branches],
        "drafter_bytes": small_bytes(sized.directory),
        "verify_alone_s": alone[0], "forecast_alone_s": alone[1],
        "verify_beside_s": beside[0], "forecast_beside_s": beside[1],
        "limit_rounds_per_s": limit, "all_hits_rounds_per_s": hits, "all_hits_ratio": hits / limit,
    }  # fmt: skip


def small_bytes(directory: Path) -> int:
    """Bytes of a drafter's weights."""
    return sum(one.stat().st_size for one in directory.glob("*.safetensors"))


class Verifying:
    """Each call verifies the next draft of a text all of whose drafts are kept; then from anew."""

    def __init__(
        self, target: NativeBackend, text: Sequence[int], settings: Settings, num_rounds: int
    ) -> None:
        self._target = target
        self._width = settings.length + 1
        self._table = np.arange(_BLOCKS, dtype=np.int32)[None]
        self._text = np.array(text, np.int32)
        self._starts = _cycle(self._width, num_rounds)
        known = self._text[: len(_PROMPT)]
        target.forward(chain_batch(known, 0, self._table, num_logits=1))

    def __call__(self) -> object:
        """One verification."""
        start = next(self._starts) - 1
        tokens = self._text[start : start + self._width]
        return self._target.forward(chain_batch(tokens, start, self._table, num_logits=self._width))


class Drafting:
    """Each call is a forecast of the next draft of such a text, and the verdict on it."""

    def __init__(
        self, drafter: LM, text: Sequence[int], settings: Settings, num_rounds: int
    ) -> None:
        self._drafter = drafter
        self._text = list(text)
        self._settings = settings
        self._starts = _cycle(settings.length + 1, num_rounds)
        self._sampler = Sampler(SamplingParams(), 0)

    def __call__(self) -> object:
        """One forecast; what was read of what came stays for the next one."""
        num_known, length = next(self._starts), self._settings.length
        if num_known == len(_PROMPT):
            self._drafter.release(0)
            self._drafter.admit(0, self._text[:num_known])
        row = DraftRow(0, self._text[:num_known], num_known, self._sampler, length)
        draft = told_chain(self._text, num_known, 1 + length)
        made = self._drafter.foresee([row], [draft], self._outlook())
        kept = self._text[num_known : num_known + length + 1]
        self._drafter.observe(0, Commit(tuple(kept)))
        return made

    def _outlook(self) -> Outlook:
        length = self._settings.length
        return Outlook(
            exits=[np.arange(1 + length, dtype=np.int32)],
            num_branches=self._settings.branches,
            most=np.array([length], np.int32),
            depths=np.array([length], np.int32),
            deepest=np.zeros(1, np.int32),
        )


def _cycle(width: int, num_rounds: int) -> Iterator[int]:
    """How many tokens are known at each round of a text, over and over."""
    return cycle(range(len(_PROMPT), len(_PROMPT) + num_rounds * width, width))


def _median_s(call: Callable[[], object], num_times: int) -> float:
    call()
    return median(timed(call) for _ in range(num_times))


def _num_tokens(settings: Settings, num_rounds: int) -> int:
    return (num_rounds + _MARGIN) * (settings.length + 1)


def _text_of(model: Path, settings: Settings, num_rounds: int) -> list[int]:
    """What the target says for so many rounds that keep all, and something behind it."""
    params = SamplingParams(max_tokens=_num_tokens(settings, num_rounds), ignore_eos=True)
    with Engine(model, speculate=Speculation("none")) as engine:
        text = [*_PROMPT, *engine.generate(_PROMPT, params)[0].token_ids]
    return text + [0] * (2 * settings.length + 2)


def _all_hits(
    model: Path, sized: SizedDrafter, text: Sequence[int], settings: Settings, num_rounds: int
) -> float:
    """Rounds a second of the real loop when whatever comes was prepared, to its full depth."""
    num_tokens = _num_tokens(settings, num_rounds)
    shape, schedule = f"chain:{settings.length}", f"ahead:{settings.branches}"
    speculation = Speculation(f"lm:{sized.directory}", shape, "match", schedule)
    with Engine(model, speculate=speculation, target_cores=(0,), draft_cores=(1,)) as engine:
        replace_backend(engine, sized.num_times)
        overlapped: Any = engine._parts.drafter._drafter  # type: ignore[attr-defined]
        overlapped._waits = Patient()
        overlapped._side._drafter = Told(overlapped._side._drafter, text)
        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        done = engine.generate(_PROMPT, params)[0]
    if list(done.token_ids) != text[len(_PROMPT) : len(_PROMPT) + num_tokens]:
        raise OptionError("told drafts changed the text: that must not happen")
    rounds = [one.round_s for one in done.stats.rounds[_MARGIN - 1 : -2]]
    return 1.0 / median(rounds)
