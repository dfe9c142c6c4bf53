"""Text that a target has made itself: how it is made, kept and read back.

Knows the engine, prompts as token ids and `.npz` files. A drafter is judged on its target's own
text, so that text is what it learns from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.engine.engine import Engine
from forerun.errors import OptionError
from forerun.options import SamplingParams, Speculation
from forerun.train.distill import TEMPERATURES

Prompts = Callable[[int], Sequence[list[int]]]  # of a batch, by its number; none: there are no more


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Rows `[N L]` of token ids; the target chose those in `spans [N 2]` itself, at `temperatures
    [N]` with the noise of `seeds [N]` (0 where it is not known). What is past a span is padding.
    `thinking`: `on` or `off`, as the chat template was told; None if it was not, or differently.
    """

    rows: NDArray[np.unsignedinteger[Any]]
    spans: NDArray[np.int64]
    temperatures: NDArray[np.float64]
    seeds: NDArray[np.int64]
    thinking: str | None = None

    def save(self, path: Path) -> None:
        """Write it; a kill at any moment leaves no half file under that name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial,
            rows=self.rows,
            spans=self.spans,
            temperatures=self.temperatures,
            seeds=self.seeds,
            thinking=np.array(self.thinking or ""),
        )
        partial.replace(path)


@dataclass(frozen=True, slots=True)
class Regeneration:
    """How much text to make: batches until `seconds` are over or the prompts are.

    A row holds a prompt's last `prompt_len` tokens and what the target makes of them, `row_len + 1`
    in all. `is_stream`: the model was trained on text that goes on after its end of text.
    `thinking` is noted with the text: the prompts have it said already.
    """

    seconds: float
    row_len: int = 512
    prompt_len: int = 96
    temperatures: tuple[float, ...] = TEMPERATURES
    seed: int = 0
    is_stream: bool = True
    thinking: str | None = None
    threads: int | None = None
    batch_rows: int = 64


def regenerate(
    model: Path,
    prompts: Prompts,
    plan: Regeneration,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Iterator[Text]:
    """The target's own text, batch by batch, as its engine says it.

    Raises:
        ModelError: a model that cannot be used.
    """
    began, num_rows = time.monotonic(), 0
    positions = plan.batch_rows * (plan.row_len + 64)
    plain = Speculation("none")
    with Engine(model, speculate=plain, threads=plan.threads, kv_positions=positions) as engine:
        for batch in _until(plan.seconds, began):
            chosen = [prompt[-plan.prompt_len :] for prompt in prompts(batch)]
            if not chosen:
                return
            wishes = [_wish(plan, num_rows + at, prompt) for at, prompt in enumerate(chosen)]
            made = engine.generate(chosen, wishes)
            pairs = zip(chosen, (list(one.token_ids) for one in made), strict=True)
            vocab = engine.tokenizer.vocab_size
            packed = _packed([(p, a) for p, a in pairs], wishes, plan.row_len, vocab)
            yield replace(packed, thinking=plan.thinking)
            num_rows += len(chosen)
            report({"rows": num_rows, "elapsed_s": time.monotonic() - began})


def joined(texts: Sequence[Text]) -> Text:
    """All of them as one."""
    modes = {text.thinking for text in texts}
    return Text(
        np.concatenate([text.rows for text in texts]),
        np.concatenate([text.spans for text in texts]),
        np.concatenate([text.temperatures for text in texts]),
        np.concatenate([text.seeds for text in texts]),
        modes.pop() if len(modes) == 1 else None,
    )


def rows_of(text: Text, chosen: NDArray[np.int64]) -> Text:
    """Some rows of a text, as a text."""
    return Text(
        text.rows[chosen],
        text.spans[chosen],
        text.temperatures[chosen],
        text.seeds[chosen],
        text.thinking,
    )


def read_text(paths: Sequence[Path]) -> Text:
    """The text in `.npz` files and in folders of them, in the order of their names.

    Raises:
        OptionError: there is none, or rows of different lengths.
    """
    files = [f for path in paths for f in (sorted(path.glob("*.npz")) if path.is_dir() else [path])]
    files = [f for f in files if f.is_file() and not f.name.endswith(".partial.npz")]
    if not files:
        raise OptionError(
            f"no .npz in {', '.join(map(str, paths))}: make it with `forerun train text`"
        )
    loaded = [np.load(file) for file in files]
    texts = [
        Text(f["rows"], f["spans"], f["temperatures"], f["seeds"], _mode_in(f)) for f in loaded
    ]
    lengths = {text.rows.shape[1] for text in texts}
    if len(lengths) > 1:
        raise OptionError(
            f"rows of {sorted(lengths)} tokens cannot be learned together: make all text with one"
            " --row-len"
        )
    return joined(texts)


def _mode_in(file: Mapping[str, NDArray[Any]]) -> str | None:
    return str(file["thinking"]) or None if "thinking" in file else None


def stream_prompts(stream: NDArray[Any], plan: Regeneration) -> Prompts:
    """Prompts out of a corpus: random places, endless, a pure function of seed and batch."""

    def prompts(batch: int) -> Sequence[list[int]]:
        random = np.random.default_rng((plan.seed, 1 << 34, batch))
        starts = random.integers(0, len(stream) - plan.prompt_len, plan.batch_rows)
        chosen: list[list[int]] = stream[starts[:, None] + np.arange(plan.prompt_len)].tolist()
        return chosen

    return prompts


def listed_prompts(prompts: Sequence[list[int]], plan: Regeneration) -> Prompts:
    """Given prompts, each once at every temperature; then there are no more."""
    rounds = len(set(plan.temperatures))

    def chosen(batch: int) -> Sequence[list[int]]:
        first = batch * plan.batch_rows
        flat = range(first, min(first + plan.batch_rows, rounds * len(prompts)))
        return [prompts[at % len(prompts)] for at in flat]

    return chosen


def _until(seconds: float, began: float) -> Iterator[int]:
    batch = 0
    while batch == 0 or time.monotonic() - began < seconds:
        yield batch
        batch += 1


def _wish(plan: Regeneration, row: int, prompt: Sequence[int]) -> SamplingParams:
    return SamplingParams(
        temperature=plan.temperatures[row % len(plan.temperatures)],
        max_tokens=plan.row_len + 1 - len(prompt),
        ignore_eos=plan.is_stream,
        seed=(plan.seed << 32) + row + 1,
    )


def _packed(
    pairs: Sequence[tuple[list[int], list[int]]],
    wishes: Sequence[SamplingParams],
    row_len: int,
    vocab: int,
) -> Text:
    rows = np.zeros((len(pairs), row_len + 1), np.uint16 if vocab <= 1 << 16 else np.uint32)
    spans = np.zeros((len(pairs), 2), np.int64)
    for at, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        rows[at, :end] = [*prompt, *answer]
        spans[at] = len(prompt), end
    return Text(
        rows,
        spans,
        np.array([wish.temperature for wish in wishes]),
        np.array([wish.seed for wish in wishes], np.int64),
    )
