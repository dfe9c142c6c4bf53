"""Where prompts come from that a model is to go on from: a corpus, or a user's own files.

Knows token ids, text files and a model's tokenizer. Must not know weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import OptionError
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.train.text import Prompts, Regeneration, listed_prompts, stream_prompts

if TYPE_CHECKING:
    from forerun.train.arguments import SourceArguments

HELD_OUT_EVERY = 32  # prompts of --data of which one is only examined


def prompts_for(
    source: SourceArguments, model: Path, plan: Regeneration, *, held_out: bool = False
) -> tuple[Prompts, bool]:
    """Prompts of the corpus or of the files, and whether text goes on after its end.

    Raises:
        OptionError: neither is given, both are, or there is nothing in them.
    """
    if (source.corpus is None) == (source.data is None):
        raise OptionError(
            "prompts come from a corpus or from files: give one of --corpus DIR and --data FILE"
        )
    if source.corpus is not None:
        stream = corpus_stream(source.corpus, "heldout" if held_out else "train")
        return stream_prompts(stream, plan), True
    tokenizer = load_tokenizer(model, read_spec(model))
    prompts = read_data(source.data or [], tokenizer, plan, is_chat=source.chat)
    kept = [p for at, p in enumerate(prompts) if (at % HELD_OUT_EVERY == 0) == held_out]
    if not kept:
        raise OptionError("--data has one prompt only: at least two are needed, one is held out")
    return listed_prompts(kept, plan), False


def corpus_stream(corpus: Path, part: str) -> NDArray[np.uint16]:
    """The token ids of a part, `train` or `heldout`, of a corpus.

    Raises:
        OptionError: it is not there.
    """
    path = corpus / f"{part}.npy"
    if not path.exists():
        raise OptionError(f"{path} does not exist: build it with `forerun train corpus`")
    stream: NDArray[np.uint16] = np.load(path, mmap_mode="r")
    return stream


def read_data(
    files: Sequence[Path], tokenizer: Tokenizer, plan: Regeneration, *, is_chat: bool
) -> list[list[int]]:
    """Prompts in files as token ids: of JSONL the `prompt` of each line, or its `text`; other files
    are text. Of a text, every `row_len` tokens begin a prompt of `prompt_len`.

    Raises:
        OptionError: a file that cannot be read, a line with neither key, or no prompt at all.
    """
    prompts = list[list[int]]()
    for path in files:
        for key, value in _entries(path):
            if key == "prompt":
                prompts.append(_encoded(value, tokenizer, is_chat=is_chat))
            else:
                ids = tokenizer.encode(value)
                starts = range(0, max(1, len(ids) - plan.prompt_len), plan.row_len)
                prompts += [ids[start : start + plan.prompt_len] for start in starts]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise OptionError(f"no prompt in {', '.join(map(str, files))}: each line is one")
    return prompts


def mask_id_of(model: Path, spec: ModelSpec, asked: int | None) -> int:
    """The token that stands for a slot to be filled: one that no text has.

    Raises:
        OptionError: the model has no such token, or the one asked for is outside its vocabulary.
    """
    if asked is not None:
        if not 0 <= asked < spec.vocab:
            raise OptionError(f"--mask-id {asked} is outside the vocabulary, 0 to {spec.vocab - 1}")
        return asked
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    padding = config.get("pad_token_id")
    if type(padding) is int and padding not in spec.eos_ids and padding != spec.bos_id:
        return padding
    if load_tokenizer(model, spec).vocab_size < spec.vocab:
        return spec.vocab - 1  # rows of the table that only fill it up
    raise OptionError(
        "the model has no padding token of its own and no unused one to stand for a slot: name a"
        " token that no text has with --mask-id"
    )


def _encoded(prompt: str, tokenizer: Tokenizer, *, is_chat: bool) -> list[int]:
    if not is_chat:
        return tokenizer.encode(prompt)
    said = tokenizer.render_chat([{"role": "user", "content": prompt}])
    return tokenizer.encode(said, add_special_tokens=False)  # the template has said them


def _entries(path: Path) -> list[tuple[str, str]]:
    """Each `prompt` or `text` in a file."""
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--data {path} cannot be read: {error}") from error
    if path.suffix not in (".jsonl", ".json"):
        return [("text", whole)]
    lines = [(n, line) for n, line in enumerate(whole.split("\n"), 1) if line.strip()]
    return [_entry(path, number, line) for number, line in lines]


def _entry(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    for key in ("prompt", "text"):
        if isinstance(value, dict) and isinstance(value.get(key), str):
            return key, value[key]
    raise OptionError(f'{path}:{number} must be an object with a text "prompt" or "text"')
