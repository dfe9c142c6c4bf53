"""An echoed prompt with log-probabilities, as completions write them.

Pure. The first token has none: nothing came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forerun.engine.detokenize import Detokenizer
from forerun.engine.sequence import TokenLogprobs
from forerun.models.tokenizer import Tokenizer


def with_prompt(
    prompt: Sequence[int],
    rows: Sequence[TokenLogprobs],
    tokenizer: Tokenizer,
    write: Callable[[Sequence[TokenLogprobs], Sequence[str], int], dict[str, Any] | None],
) -> dict[str, Any]:
    """The `logprobs` object of a prompt's tokens, `rows` being those behind the first.

    `write(rows, texts, offset)` gives that of generated tokens.
    """
    detokenizer = Detokenizer(tokenizer.token_bytes, ())
    texts = [detokenizer.push(token) for token in prompt]
    first = TokenLogprobs(prompt[0], 0.0)
    scores = write([first, *rows], texts, 0) or {}
    scores["token_logprobs"][0] = scores["top_logprobs"][0] = None
    return scores


def joined(first: dict[str, Any] | None, then: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two such objects, one behind the other; None where there are none."""
    if first is None or then is None:
        return then if first is None else first
    return {name: [*values, *then[name]] for name, values in first.items()}
