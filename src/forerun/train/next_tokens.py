"""What a small model would yield as a drafter on a text, without an engine.

Knows decoders and held-out text. A coupled chain is kept as far as it is the text itself, and as
far as it is that, what the small model says next is what it says of the text: one pass over a row
tells how far a chain begun anywhere in it would be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError
from forerun.tools import doctor_small
from forerun.train.drafting import Examination, noise_of
from forerun.train.expected import Expected, expected, matched_runs
from forerun.train.export import load_decoder
from forerun.train.lm import CHECKPOINT_NAME, decoder_from_checkpoint, load_checkpoint
from forerun.train.text import Text


def examine_small(examinations: Mapping[str, Examination], model: Decoder) -> dict[str, Expected]:
    """The figures of each examination, by its name, of a small model that drafts coupled chains.

    No round is spent on the prompt: such a drafter reads it without the target.
    """
    return {
        name: expected(
            [kept_runs(model, one.text, row, one.num_slots) for row in range(len(one.text.rows))],
            one.num_slots,
            plain=0,
        )
        for name, one in examinations.items()
    }


@torch.no_grad()
def kept_runs(model: Decoder, text: Text, row: int, num_drafted: int) -> NDArray[np.int64]:
    """`[N]` tokens kept of a chain of `num_drafted` in front of each of the N tokens of a row's
    span."""
    first, end = text.spans[row].tolist()
    device = model.model.embed_tokens.weight.device
    tokens = torch.from_numpy(text.rows[row, :end].astype(np.int64)).to(device)
    scores = model(tokens[None, :-1])[0, first - 1 :]
    temperature = float(text.temperatures[row])
    if temperature:
        noise = noise_of(text, row, model.spec.vocab)
        scores = scores / temperature + torch.from_numpy(noise).to(device)
    same = (scores.argmax(-1) == tokens[first:]).cpu().numpy()
    padded = np.concatenate((same, np.zeros(num_drafted - 1, np.bool_)))
    return matched_runs(sliding_window_view(padded, num_drafted))


def is_language_model(directory: Path) -> bool:
    """Whether a directory holds a whole model of its own, not a drafter that reads another's, or a
    training of one that is not over."""
    if (directory / "config.json").is_file():
        return doctor_small.is_language_model(directory)
    unfinished = directory / "run" / CHECKPOINT_NAME
    return unfinished.is_file() and "rope" in load_checkpoint(unfinished)["spec"]


def load_small(directory: Path, vocab: int) -> Decoder:
    """The float32 decoder of such a directory, for a target of so many tokens.

    Raises:
        OptionError: it has another vocabulary.
        ModelError: files that cannot be read.
    """
    if (directory / "config.json").is_file():
        model = load_decoder(directory)
    else:
        model = decoder_from_checkpoint(directory / "run" / CHECKPOINT_NAME)
    if model.spec.vocab != vocab:
        raise OptionError(
            f"{directory} has {model.spec.vocab} tokens, the model {vocab}: it drafts by its text,"
            " which only an engine can examine; give one of the model's own vocabulary"
        )
    return model
