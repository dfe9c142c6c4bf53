"""Text that a drafter is examined on and never learns from.

Made from held-out prompts where there are prompts; else rows of the text that was given, all that
have a prompt in common with one of them. Kept beside the checkpoint, so that a training which goes
on is examined on what it was examined on before.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forerun.errors import OptionError
from forerun.train.prompts import HELD_OUT_EVERY, prompts_for
from forerun.train.text import Regeneration, Text, joined, read_text, regenerate, rows_of

if TYPE_CHECKING:
    from forerun.train.arguments import SourceArguments

FILE = "heldout.npz"  # in a training's `run` directory
# Held-out text is the same for every drafter of a model, so that figures compare.
HELD_OUT = Regeneration(
    seconds=0.0,
    row_len=320,
    prompt_len=128,
    temperatures=(0.0, 0.7, 1.0),
    seed=1 << 20,
    batch_rows=72,
)
MOST_ROWS = 24  # of each temperature that are held out of a text: as many as `expect` reads


def kept_held_out(
    source: SourceArguments, model: Path, directory: Path, threads: int, text: Text | None
) -> Text:
    """What is held out, made once and kept in a run's `directory`.

    Of a `text` that comes without prompts, --corpus or --data, rows are held out.

    Raises:
        OptionError: no prompts and no text, or too few.
    """
    path = directory / FILE
    if not path.exists():
        has_prompts = source.corpus is not None or source.data is not None
        if text is None or has_prompts:
            made = written_held_out(source, model, replace(HELD_OUT, threads=threads or None))
        else:
            made = held_out_rows(text)
        made.save(path)
    return read_text([path])


def written_held_out(source: SourceArguments, model: Path, plan: Regeneration) -> Text:
    """What the model writes from held-out prompts of the corpus or of the files.

    Raises:
        OptionError: neither is given, or there is nothing in them.
    """
    prompts, is_stream = prompts_for(source, model, plan, held_out=True)
    plan = replace(plan, is_stream=is_stream, thinking=source.thinking)
    return joined(list(regenerate(model, prompts, plan)))


def held_out_rows(text: Text) -> Text:
    """Rows of a text to examine on: of each temperature every 32nd, 24 at most.

    Raises:
        OptionError: none can be examined on, or none would be left to learn from.
    """
    is_known = (text.temperatures == 0) | (text.seeds != 0)  # else nobody knows what was drawn
    is_known &= text.spans[:, 1] - text.spans[:, 0] >= 2  # and in one token nothing is drafted
    chosen = list[int]()
    for temperature in sorted(set(text.temperatures[is_known].tolist())):
        rows = np.flatnonzero(is_known & (text.temperatures == temperature))
        chosen += rows[::HELD_OUT_EVERY][:MOST_ROWS].tolist()
    held_out = rows_of(text, np.array(sorted(chosen), np.int64))
    if not chosen or not len(learned_rows(text, held_out).rows):
        raise OptionError(
            f"--text has {len(text.rows)} rows, too few to hold some out: make more with `forerun"
            " train text`, or give --corpus DIR or --data FILE to hold out prompts of"
        )
    return held_out


def learned_rows(text: Text, held_out: Text) -> Text:
    """The rows of a text whose prompt is none of those held out: an answer at another temperature
    would give the examined one away."""
    known = set(_prompts(held_out))
    return rows_of(text, np.flatnonzero([prompt not in known for prompt in _prompts(text)]))


def _prompts(text: Text) -> list[bytes]:
    """What identifies each row's prompt: its tokens, or the whole row where it has none."""
    pairs = zip(text.rows, text.spans.tolist(), strict=True)
    return [row[: first or end].astype(np.int64).tobytes() for row, (first, end) in pairs]
