"""Does this machine compute a position alike in every company? Asked once, at start-up."""

from __future__ import annotations

import numpy as np
import torch

from forerun.protocols import Backend, ForwardBatch

_NUM_TOKENS = 5


def is_independent(backend: Backend) -> bool:
    """Whether a few positions have equal bits decoded one by one, as a chain, beside another row
    and below a fork. Uses blocks 0 and 1 before anyone owns them."""
    if backend.num_blocks < 2:
        return False
    tokens = [(7 * place + 3) % backend.spec.vocab for place in range(_NUM_TOKENS)]
    single = []
    for place, token in enumerate(tokens):
        batch = _batch([token], [-1], [0, 1], [place])
        single.append(backend.forward(batch).logits.clone())
        backend.commit(batch, [[0]])
    alone = torch.cat(single)
    chain = [*range(-1, _NUM_TOKENS - 1)]
    whole = backend.forward(_batch(tokens, chain, [0, _NUM_TOKENS], [0])).logits
    if not torch.equal(whole, alone):
        return False
    pair = _batch(tokens[::-1] + tokens, chain * 2, [0, _NUM_TOKENS, 2 * _NUM_TOKENS], [0, 0])
    if not torch.equal(backend.forward(pair).logits[_NUM_TOKENS:], alone):
        return False
    # The second node is a sibling of the chain's own second token.
    forked = [tokens[0], (tokens[1] + 1) % backend.spec.vocab, *tokens[1:]]
    parents = [-1, 0, 0, *range(2, _NUM_TOKENS)]
    tree = backend.forward(_batch(forked, parents, [0, _NUM_TOKENS + 1], [0])).logits
    return torch.equal(tree[[0, *range(2, _NUM_TOKENS + 1)]], alone)


def _batch(
    tokens: list[int], parents: list[int], row_starts: list[int], committed: list[int]
) -> ForwardBatch:
    return ForwardBatch(
        token_ids=np.array(tokens, np.int32),
        parents=np.array(parents, np.int32),
        row_starts=np.array(row_starts, np.int32),
        committed=np.array(committed, np.int32),
        block_table=np.arange(len(committed), dtype=np.int32)[:, None],
        logit_nodes=np.arange(len(tokens), dtype=np.int32),
    )
