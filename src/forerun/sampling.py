"""From a row of logits to a token: the readable float64 definition every backend agrees with.

Order, target and drafter alike, everything in float64 from the first addition on:

1. *bias*: `z[t] += logit_bias[t]`; then ids outside `allowed_tokens` become -inf.
2. *repetition penalty* r, for every id in prompt, output or path, once:
   `z[t] = z[t] / r` if `z[t] > 0` else `z[t] * r`.
3. *presence and frequency*, for every id in output or path with count c (the prompt does not
   count): `z[t] -= frequency * c + presence`.
4. *temperature 0*: the argmax of z, lowest id on ties; nothing below applies.
   Else `s = z / temperature`. Where some s is +inf, those become 0 and all others -inf.
5. *top-k* keeps the k first in the order (s descending, id ascending).
6. *top-p* over what is left: `w = exp(s - max s)`, summed in that same order one by one; an id is
   kept iff the sum before it is `< top_p * Z`, Z being the last sum.
7. *min-p* keeps `w >= min_p` (the greatest w is 1).
8. *choice*: `argmax(s + gumbel(word))`, lowest id on ties.

-inf is never chosen; NaN, or nothing left to choose from, is a `BackendError`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forerun.errors import BackendError
from forerun.noise import Purpose, Words, gumbel, words
from forerun.options import SamplingParams
from forerun.protocols import Sampler

Scores = NDArray[np.float64]


def process(
    logits: NDArray[np.float32], sampler: Sampler, path_tokens: Sequence[int] = ()
) -> Scores:
    """`[V]` scores whose softmax is the law of the next token; -inf where a token is removed.

    At temperature 0 the argmax scores 0 and all others -inf.

    Raises:
        BackendError: NaN among the logits, or no token left.
    """
    params = sampler.params
    z = _edited(logits, sampler, path_tokens)
    best = int(np.argmax(z))
    if params.temperature == 0:
        return _one_hot(len(z), best)
    with np.errstate(over="ignore"):
        s = z / params.temperature
    if s[best] == np.inf:
        s = np.where(s == np.inf, 0.0, -np.inf)
    return _filtered(s, params)


def choose(scores: Scores, noise: Words | None, temperature: float) -> int:
    """The argmax of score plus Gumbel noise: an exact sample of the law; lowest id on ties."""
    if temperature == 0 or noise is None:
        return int(np.argmax(scores))
    return int(np.argmax(scores + gumbel(noise)))


def law(scores: Scores) -> NDArray[np.float64]:
    """`[V]` probabilities that `choose` samples from; one-hot at temperature 0."""
    weights = np.exp(scores - scores.max())
    normal: NDArray[np.float64] = weights / weights.sum()
    return normal


def select(
    logits: NDArray[np.float32], sampler: Sampler, position: int, path_tokens: Sequence[int] = ()
) -> int:
    """The token that `sampler` chooses for absolute `position` from one row of logits."""
    params = sampler.params
    scores = process(logits, sampler, path_tokens)
    if params.temperature == 0:
        return choose(scores, None, 0.0)
    noise = words(sampler.seed, params.choice, Purpose.VERDICT, position, len(scores))
    return choose(scores, noise, params.temperature)


def ranked(
    logits: NDArray[np.float32],
    sampler: Sampler,
    position: int,
    path_tokens: Sequence[int],
    count: int,
) -> tuple[list[int], list[float]]:
    """The `count` best of what `select` takes the best of, with their values, best first.

    A value is the score plus noise; at temperature 0 the logit after edits. Fewer where fewer are
    left. Lowest id on ties.
    """
    params = sampler.params
    if params.temperature == 0:
        values = _edited(logits, sampler, path_tokens)
    else:
        noise = words(sampler.seed, params.choice, Purpose.VERDICT, position, len(logits))
        values = process(logits, sampler, path_tokens) + gumbel(noise)
    order = np.argsort(-values, kind="stable")[:count]
    tokens = [int(token) for token in order if values[token] > -np.inf]
    return tokens, [float(values[token]) for token in tokens]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[R V]` raw log-probabilities of rows of logits, before any processor."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide.astype(np.float32)


def _edited(logits: NDArray[np.float32], sampler: Sampler, path_tokens: Sequence[int]) -> Scores:
    """Bias, mask and penalties: everything before temperature."""
    z = _biased(logits.astype(np.float64), sampler.params)
    if sampler.params.has_penalties:
        _penalize(z, sampler, path_tokens)
    best = z[np.argmax(z)]  # argmax of an array that holds NaN is its first NaN
    if np.isnan(best):
        raise BackendError("the model returned NaN logits")
    if best == -np.inf:
        raise BackendError("no token is left to choose from: every logit is -inf")
    return z


def _biased(z: Scores, params: SamplingParams) -> Scores:
    for token, bias in params.logit_bias.items():
        z[token] += bias
    if params.allowed_tokens is None:
        return z
    kept = np.full_like(z, -np.inf)
    allowed = list(params.allowed_tokens)
    kept[allowed] = z[allowed]
    return kept


def _penalize(z: Scores, sampler: Sampler, path_tokens: Sequence[int]) -> None:
    params = sampler.params
    path = np.asarray(path_tokens, np.int32)
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate((sampler.prompt_ids, sampler.output_ids, path)))
        values, penalty = z[seen], params.repetition_penalty
        z[seen] = np.where(values > 0, values / penalty, values * penalty)
    counts = np.zeros(len(z), np.int64)
    counts[sampler.output_ids] = sampler.output_counts
    np.add.at(counts, path, 1)
    made = np.flatnonzero(counts)
    z[made] -= params.frequency_penalty * counts[made] + params.presence_penalty


def _one_hot(vocab: int, token: int) -> Scores:
    scores = np.full(vocab, -np.inf)
    scores[token] = 0.0
    return scores


def _filtered(s: Scores, params: SamplingParams) -> Scores:
    if 0 < params.top_k < len(s) or params.top_p < 1.0:
        order = np.argsort(-s, kind="stable")
        if params.top_k:
            order = order[: params.top_k]
        if params.top_p < 1.0:
            sums = np.cumsum(np.exp(s[order] - s[order[0]]))
            order = order[: 1 + np.count_nonzero(sums[:-1] < params.top_p * sums[-1])]
        kept = np.full_like(s, -np.inf)
        kept[order] = s[order]
        s = kept
    if params.min_p > 0.0:
        s = np.where(np.exp(s - s.max()) < params.min_p, -np.inf, s)
    return s
