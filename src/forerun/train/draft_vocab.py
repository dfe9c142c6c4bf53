"""Which of its target's tokens a drafter's head knows: those that the target says most often.

Knows texts and counts. Must not know drafters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forerun.errors import OptionError
from forerun.models.tokenizer import Tokenizer
from forerun.train.text import Text

LEAST = 16


def draft_vocab_of(asked: int, vocab: int) -> int:
    """How many of a target's `vocab` tokens a head knows; 0 where it knows all, as the target's.

    Raises:
        OptionError: more than there are, or so few that nothing would be drafted right.
    """
    if asked > vocab:
        raise OptionError(
            f"--draft-vocab {asked}: the model has {vocab} tokens: give fewer, or leave it out to"
            " draft all of them"
        )
    if asked and asked < LEAST:
        raise OptionError(
            f"--draft-vocab {asked} is less than {LEAST}: a token that the head does not know is"
            " never drafted, so give enough for most of the text, a quarter of the vocabulary say"
        )
    return asked if asked < vocab else 0


def frequent_tokens(
    text: Text, num_tokens: int, vocab: int, tokenizer: Tokenizer
) -> NDArray[np.int64]:
    """`[num_tokens]` ids in rising order: those that the target chose most often in a text.

    Prompts are not counted, for they are never drafted. Ids that end a text are always among them,
    and every special one that the target has said. A pure function of the text: of two as frequent
    the lower id is taken, which tokenizers gave to what is more frequent elsewhere.

    Raises:
        OptionError: so few that the special ones alone are more.
    """
    at = np.arange(text.rows.shape[1])
    is_own = (at >= text.spans[:, :1]) & (at < text.spans[:, 1:])
    counts = np.bincount(text.rows[is_own].astype(np.int64), minlength=vocab)
    always = {*tokenizer.eos_ids, *(one for one in tokenizer.special_ids if counts[one])}
    if len(always) > num_tokens:
        raise OptionError(
            f"--draft-vocab {num_tokens}: {len(always)} tokens of the model are special and said in"
            f" the text or end it, and are always drafted: give more than {len(always)}"
        )
    counts[sorted(always)] = counts.max() + 1
    chosen: NDArray[np.int64] = np.argsort(-counts, kind="stable")[:num_tokens]
    return np.sort(chosen)
