"""What two lanes can do at best: both models' loops side by side, and rounds that always hit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from forerun import Engine, SamplingParams, Speculation
from forerun.backends.native import NativeBackend
from forerun.backends.prefill import chain_batch
from forerun.control.lane_trial import looping
from forerun.draft import Draft, Draw
from forerun.drafters.lm import LM
from forerun.errors import OptionError
from forerun.models.weights import open_checkpoint
from forerun.protocols import DraftRow, Outlook, Sampler
from forerun.stats import Span, timed
from forerun.tree import TokenTree

LENGTH, BRANCHES = 4, 8  # what limits are measured with
_PROMPT = list(range(5, 69))
_BLOCKS = 64


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
        start = len(row.tokens) - 1
        tokens = list(self._text[start : start + num_nodes])
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


def limits_of(model: Path, sized: SizedDrafter, num_rounds: int) -> dict[str, Any]:
    """Seconds of a verification and of a forecast, apart and at once, and rounds that all hit."""
    target = NativeBackend(open_checkpoint(model), cores=(0,), num_blocks=_BLOCKS)
    small = NativeBackend(open_checkpoint(sized.directory), cores=(1,), num_blocks=_BLOCKS)
    backend: Any = Repeated(small, sized.num_times) if sized.num_times > 1 else small
    try:
        verify = _verifying(target)
        draft = _drafting(LM(backend, LENGTH, Span()))
        alone = [_median_s(verify, num_rounds), _median_s(draft, num_rounds)]
        with looping(draft):
            beside = [_median_s(verify, num_rounds)]
        with looping(verify):
            beside.append(_median_s(draft, num_rounds))
    finally:
        target.close()
        small.close()
    limit = 1.0 / max(beside)
    hits = _all_hits(model, sized, num_rounds)
    return {
        "drafter_bytes": small_bytes(sized.directory),
        "verify_alone_s": alone[0], "forecast_alone_s": alone[1],
        "verify_beside_s": beside[0], "forecast_beside_s": beside[1],
        "limit_rounds_per_s": limit, "all_hits_rounds_per_s": hits, "all_hits_ratio": hits / limit,
    }  # fmt: skip


def small_bytes(directory: Path) -> int:
    """Bytes of a drafter's weights."""
    return sum(one.stat().st_size for one in directory.glob("*.safetensors"))


def _verifying(target: NativeBackend) -> Callable[[], object]:
    table = np.arange(_BLOCKS, dtype=np.int32)[None]
    tokens = np.array(_PROMPT, np.int32)
    target.forward(chain_batch(tokens, 0, table, num_logits=1))
    batch = chain_batch(np.zeros(1 + LENGTH, np.int32), len(tokens), table, num_logits=1 + LENGTH)
    return lambda: target.forward(batch)


def _drafting(drafter: LM) -> Callable[[], object]:
    """A forecast of the same row over and over: what was read before is read again."""
    drafter.admit(0, _PROMPT)
    params = SamplingParams()
    row = DraftRow(0, _PROMPT, len(_PROMPT), Sampler(params, 0), LENGTH)
    draft = drafter.propose([row])[0]
    outlook = Outlook(
        exits=[np.arange(1 + LENGTH, dtype=np.int32)],
        num_branches=BRANCHES,
        most=np.array([LENGTH], np.int32),
        depths=np.array([LENGTH], np.int32),
        deepest=np.zeros(1, np.int32),
    )
    return lambda: drafter.foresee([row], [draft], outlook)


def _median_s(call: Callable[[], object], num_times: int) -> float:
    call()
    return median(timed(call) for _ in range(num_times))


def _all_hits(model: Path, sized: SizedDrafter, num_rounds: int) -> float:
    """Rounds a second of the real loop when whatever comes was prepared."""
    num_tokens = (num_rounds + 4) * (LENGTH + 1)
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    with Engine(model, speculate=Speculation("none")) as engine:
        text = [*_PROMPT, *engine.generate(_PROMPT, params)[0].token_ids]
    text += [0] * (2 * LENGTH + 2)
    speculation = Speculation(
        f"lm:{sized.directory}", f"chain:{LENGTH}", "match", f"ahead:{BRANCHES}"
    )
    with Engine(model, speculate=speculation, target_cores=(0,), draft_cores=(1,)) as engine:
        replace_backend(engine, sized.num_times)
        side: Any = engine._parts.drafter._drafter._side  # type: ignore[attr-defined]
        side._drafter = Told(side._drafter, text)
        done = engine.generate(_PROMPT, replace(params, max_tokens=num_tokens))[0]
    if list(done.token_ids) != text[len(_PROMPT) : len(_PROMPT) + num_tokens]:
        raise OptionError("told drafts changed the text: that must not happen")
    rounds = [one.round_s for one in done.stats.rounds[3:-2]]
    return 1.0 / median(rounds)
