"""Log-probabilities of what is known or chosen: of a prompt's tokens, as its pass reads them.

A prompt whose log-probabilities are asked for is read in shorter chunks, for every node then has
logits, and is read from its beginning: what an earlier text left behind has none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import chain_batch
from forerun.engine.sequence import Sequence, TokenLogprobs
from forerun.protocols import Backend

CHUNK = 64  # nodes of a pass in which all have logits: bounds memory where vocabularies are large


def scored(token: int, line: NDArray[np.float32], num_top: int) -> TokenLogprobs:
    """A token's entry out of the raw log-softmax `[V]` at its place, and the best of that place."""
    best = np.argsort(-line, kind="stable")[:num_top].tolist()
    return TokenLogprobs(token, float(line[token]), tuple((one, float(line[one])) for one in best))


def read_and_score(
    row: Sequence, end: int, target: Backend, table: NDArray[np.int32], taps: tuple[int, ...]
) -> NDArray[np.float32] | None:
    """Read a row's next tokens up to `end`, at most `CHUNK`, and note what each made of the next.

    Returns what was tapped of them, as `prefill`.
    """
    start = row.committed_len
    tokens = np.array(row.tokens[start:end], np.int32)
    batch = replace(chain_batch(tokens, start, table, num_logits=len(tokens)), tap_layers=taps)
    output = target.forward(batch)
    skipped = max(0, len(row.prompt_logprobs) - start)  # of a row that was put back
    nodes = np.arange(skipped, len(tokens), dtype=np.int32)
    lines = target.logprobs(output.logits, nodes) if len(nodes) else ()
    num_left, num_top = row.prompt_len - 1 - len(row.prompt_logprobs), row.params.logprobs or 0
    following = row.tokens[start + skipped + 1 : start + len(tokens) + 1]
    for token, line in list(zip(following, lines, strict=True))[:num_left]:
        row.prompt_logprobs.append(scored(token, line, num_top))
    target.commit(batch, [range(len(tokens))])
    return output.taps


def has_scores(row: Sequence) -> bool:
    """Whether nothing of its prompt is left to be scored."""
    return not row.scores_prompt or len(row.prompt_logprobs) == row.prompt_len - 1
