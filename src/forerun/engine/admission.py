"""Who may come in: a prompt and parameters become a request that is known to fit, or an error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Rows
from functools import lru_cache

from forerun.engine.detokenize import Detokenizer
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.errors import CapacityError, OptionError
from forerun.models.tokenizer import Tokenizer
from forerun.noise import draw_seed
from forerun.options import SamplingParams
from forerun.protocols import BLOCK_LEN

_MOST_TOKENS = 1 << 16  # byte strings of tokens kept at hand


class Admission:
    """Checks requests against one model and its K/V memory."""

    def __init__(self, parts: Parts, tokenizer: Tokenizer) -> None:
        self._spec = parts.target.spec
        self._num_positions = parts.slots.num_blocks * BLOCK_LEN
        self._tokenizer = tokenizer
        self._token_bytes = lru_cache(maxsize=_MOST_TOKENS)(tokenizer.token_bytes)
        self._ids = itertools.count()

    def sequence(self, index: int, prompt: str | Rows[int], params: SamplingParams) -> Sequence:
        """A request for the completion of `prompt`, the `index`-th of its call.

        Raises:
            CapacityError: the prompt leaves no room for one token.
            OptionError: no prompt, or ids outside the vocabulary.
        """
        tokens = self._tokens(prompt)
        self._refuse_foreign_ids(tokens, params)
        limit = min(len(tokens) + params.max_tokens, self._limit(len(tokens)))
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= {*self._spec.eos_ids, *self._tokenizer.eos_ids}
        return Sequence(
            id=next(self._ids),
            index=index,
            tokens=tokens,
            prompt_len=len(tokens),
            limit=limit,
            params=params,
            seed=draw_seed() if params.seed is None else params.seed,
            stop_ids=frozenset(stop_ids),
            detokenizer=Detokenizer(self._token_bytes, params.stop),
        )

    def _tokens(self, prompt: str | Rows[int]) -> list[int]:
        if isinstance(prompt, str):
            tokens = self._tokenizer.encode(prompt)
            if not tokens and self._spec.bos_id is not None:
                tokens = [self._spec.bos_id]
        else:
            tokens = [int(token) for token in prompt]
        if not tokens:
            raise OptionError("the prompt is empty: give at least one token to continue from")
        return tokens

    def _limit(self, prompt_len: int) -> int:
        """Most tokens a request may have; the last needs no K/V of its own."""
        for what, most in (
            ("the model's context has", self._spec.max_position),
            ("the engine's K/V memory has", self._num_positions),
        ):
            if prompt_len >= most:
                raise CapacityError(
                    f"the prompt has {prompt_len} tokens, {what} {most} positions, prompt and"
                    " completion together: shorten the prompt"
                )
        return min(self._spec.max_position, self._num_positions)

    def _refuse_foreign_ids(self, tokens: list[int], params: SamplingParams) -> None:
        named = {
            "prompt": tokens,
            "logit_bias": params.logit_bias,
            "allowed_tokens": params.allowed_tokens or (),
            "stop_token_ids": params.stop_token_ids,
        }
        for name, ids in named.items():
            for token in ids:
                if not 0 <= token < self._spec.vocab:
                    raise OptionError(
                        f"{name}: token id {token} is outside the vocabulary [0,"
                        f" {self._spec.vocab})"
                    )
