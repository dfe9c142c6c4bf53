"""The tokens that two vocabularies share, and a drafter's law on them.

Token-level intersection (Timor et al. 2025, arXiv:2502.05202, algorithm 5): a token is shared where
both vocabularies have one of the same bytes, and what is drafted is sampled from the drafter's law
on shared tokens alone, `q'(x) = q(x) / sum of q over shared tokens`. That is the law a sampled rule
is given, so every rule stays exact whatever the share is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forerun.errors import IncompatibleSpeculation
from forerun.models.tokenizer import Tokenizer
from forerun.options import SamplingParams
from forerun.tree import Tokens

LEAST_SHARE = 0.1  # of the smaller vocabulary; two byte-level ones share 256 tokens whatever else


@dataclass(frozen=True, slots=True, eq=False)
class Intersection:
    """Shared tokens `own_ids [S]` of a drafter and `target_ids [S]` of the target, pair by pair in
    the target's order; `num_own` and `num_target` tokens have a spelling at all."""

    own_ids: Tokens
    target_ids: Tokens
    num_own: int
    num_target: int
    vocab: int

    @property
    def share(self) -> float:
        """Shared tokens as a part of the smaller vocabulary."""
        return min(1.0, len(self.own_ids) / min(self.num_own, self.num_target))

    def restrict(
        self, laws: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """`[R V_target]` the drafter's laws `[R V_own]` on shared tokens, each summing to one, and
        `[R]` what they had of it before; a law without any stays zero."""
        shared = laws[:, self.own_ids].astype(np.float64)
        mass = shared.sum(axis=1)
        told = np.zeros((len(laws), self.vocab), np.float32)
        told[:, self.target_ids] = shared / np.where(mass > 0.0, mass, 1.0)[:, None]
        return told, mass

    def own_of(self) -> dict[int, int]:
        """The drafter's id of each shared id of the target."""
        return dict(zip(self.target_ids.tolist(), self.own_ids.tolist(), strict=True))

    def params(self, params: SamplingParams, *, is_ranked: bool = False) -> SamplingParams:
        """A request's parameters in the drafter's ids. Bias and allowed tokens keep what is shared;
        penalties, which count tokens the drafter has others for, are left to the target. A greedy
        request's law is one token that need not be shared: `is_ranked` takes the whole law."""
        if is_ranked and params.temperature == 0:
            params = replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        own = self.own_of()
        bias = {own[token]: value for token, value in params.logit_bias.items() if token in own}
        kept = tuple(own[token] for token in params.allowed_tokens or () if token in own)
        return replace(
            params,
            logit_bias=bias,
            allowed_tokens=kept or None,  # none shared: the target's law decides alone
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
        )


def intersect(own: Tokenizer, own_vocab: int, target: Tokenizer, target_vocab: int) -> Intersection:
    """The tokens of equal bytes; both ends of text are a pair too.

    Raises:
        IncompatibleSpeculation: fewer than `LEAST_SHARE` of the smaller vocabulary are shared.
    """
    own_ids, target_ids = _by_bytes(own, own_vocab), _by_bytes(target, target_vocab)
    pairs = [(i, own_ids[spelled]) for spelled, i in target_ids.items() if spelled in own_ids]
    num_own, num_target = len(own_ids), len(target_ids)
    if not pairs or len(pairs) < LEAST_SHARE * min(num_own, num_target):
        raise IncompatibleSpeculation(
            f"the drafter's {num_own} tokens and the target's {num_target} have {len(pairs)} in"
            f" common, and a sampled rule drafts from those alone (at least {LEAST_SHARE:.0%} of"
            " the smaller vocabulary): use rule match, which needs none, or another drafter"
        )
    pairs += zip(target.eos_ids[:1], own.eos_ids[:1], strict=False)
    columns = np.array(sorted(set(pairs)), np.int32).T.copy()
    return Intersection(columns[1], columns[0], num_own, num_target, target_vocab)


def _by_bytes(tokenizer: Tokenizer, vocab: int) -> dict[bytes, int]:
    """Each spelling's token: of several the last, for byte fallbacks come before the tokens that
    are used."""
    spelled = {tokenizer.token_bytes(i): i for i in range(min(vocab, tokenizer.vocab_size))}
    spelled.pop(b"", None)
    return spelled
