"""Where prompts come from that a model is to go on from: a corpus, or a user's own files.

Knows token ids, text files and a model's tokenizer. Must not know weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forerun.drafters.corpus_files import tokenizer_fingerprint
from forerun.errors import OptionError
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.train.text import Prompts, Regeneration, listed_prompts, stream_prompts

if TYPE_CHECKING:
    from forerun.train.arguments import SourceArguments

_SWITCHES = ("enable_thinking", "thinking")  # what templates call it: Qwen3's, DeepSeek's

HELD_OUT_EVERY = 32  # prompts of --data of which one is only examined


def prompts_for(
    source: SourceArguments, model: Path, plan: Regeneration, *, held_out: bool = False
) -> tuple[Prompts, bool]:
    """Prompts of the corpus or of the files, and whether text goes on after its end.

    Raises:
        OptionError: neither is given, both are, there is nothing in them, the corpus has another
            tokenizer, or the chat template does not know what `source.thinking` asks for.
        ModelError: a chat template that is not there, or fails.
    """
    if (source.corpus is None) == (source.data is None):
        raise OptionError(
            "prompts come from a corpus or from files: give one of --corpus DIR and --data FILE"
        )
    if source.corpus is not None:
        refuse_foreign_corpus(source.corpus, model)
        _refuse_unused_mode(source)
        stream = corpus_stream(source.corpus, "heldout" if held_out else "train")
        return stream_prompts(stream, plan), True
    tokenizer = load_tokenizer(model, read_spec(model))
    switches = _switches(source, tokenizer)
    prompts = read_data(source.data or [], tokenizer, plan, is_chat=source.chat, switches=switches)
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


def refuse_foreign_corpus(corpus: Path | None, model: Path) -> None:
    """Refuse a corpus whose numbers are other tokens to a model, by the tokenizer beside it.

    Raises:
        OptionError: that tokenizer is not the model's, or there is none and a number is no token.
    """
    if corpus is None:
        return
    own, theirs = corpus / "tokenizer", model
    if not (own / "tokenizer.json").is_file():
        _refuse_numbers(corpus, read_spec(model).vocab)
        return
    if not (theirs / "tokenizer.json").is_file():
        return  # a model that has none is refused where it is opened
    if tokenizer_fingerprint(own) == tokenizer_fingerprint(theirs):
        return
    if (said := _tokens(own)) is None or said != _tokens(theirs):
        raise OptionError(
            f"{corpus} is encoded with a tokenizer of its own, not with that of {model}: its"
            " numbers are other tokens there. Give prompts as text, with --data FILE"
        )


def _refuse_numbers(corpus: Path, vocab: int) -> None:
    largest = int(corpus_stream(corpus, "train").max(initial=0))
    if largest >= vocab:
        raise OptionError(
            f"{corpus} has token {largest}, the model's vocabulary ends at {vocab - 1}: it was"
            " encoded for another model. Give prompts as text, with --data FILE"
        )


def _tokens(directory: Path) -> Any:
    """The numbers of all tokens, however the file is written; None if it cannot be read."""
    try:
        file = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        added = {one["content"]: one["id"] for one in file["added_tokens"]}
        return file["model"]["vocab"], added
    except (ValueError, LookupError, TypeError):
        return None


def read_data(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    plan: Regeneration,
    *,
    is_chat: bool,
    switches: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Prompts in files as token ids: of JSONL the `prompt` of each line, or its `text`; other files
    are text. Of a text, every `row_len` tokens begin a prompt of `prompt_len`. A chat template is
    told the `switches` too.

    Raises:
        OptionError: a file that cannot be read, a line with neither key, or no prompt at all.
    """
    prompts = list[list[int]]()
    for path in files:
        for key, value in _entries(path):
            if key == "prompt":
                prompts.append(_encoded(value, tokenizer, switches or {}, is_chat=is_chat))
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


def _switches(source: SourceArguments, tokenizer: Tokenizer) -> dict[str, bool]:
    """What the chat template is told of thinking."""
    if source.thinking is None:
        return {}
    _refuse_unused_mode(source)
    on, off = (dict.fromkeys(_SWITCHES, is_on) for is_on in (True, False))
    messages = [{"role": "user", "content": "?"}]
    if tokenizer.render_chat(messages, switches=on) == tokenizer.render_chat(
        messages, switches=off
    ):
        raise OptionError(
            f"--thinking {source.thinking}: the chat template of {source.model} says the same with"
            f" {' and '.join(_SWITCHES)} on and off, so it has no such mode to choose: leave"
            " --thinking out"
        )
    return on if source.thinking == "on" else off


def _refuse_unused_mode(source: SourceArguments) -> None:
    if source.thinking is not None and (source.data is None or not source.chat):
        raise OptionError(
            f"--thinking {source.thinking} is said to the model by its chat template: give --data"
            " FILE and --chat with it"
        )


def _encoded(
    prompt: str, tokenizer: Tokenizer, switches: Mapping[str, Any], *, is_chat: bool
) -> list[int]:
    if not is_chat:
        return tokenizer.encode(prompt)
    said = tokenizer.render_chat([{"role": "user", "content": prompt}], switches=switches)
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
