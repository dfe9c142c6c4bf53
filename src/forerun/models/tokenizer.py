"""Text to token ids and back, and a model's chat template.

Knows `tokenizer.json` and the chat template beside it. Must not know models or sampling.
A token is always a run of bytes: text is what the bytes of all tokens spell together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from forerun.errors import ModelError
from forerun.models.spec import ModelSpec

_SENTENCEPIECE_SPACE = "\u2581"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checked tokenizer; `encode` and `token_bytes` are inverse up to normalization."""

    fast: FastTokenizer
    eos_ids: tuple[int, ...]
    vocab_size: int
    is_byte_level: bool
    special_ids: frozenset[int]
    added: Mapping[int, str]
    template: str | None
    specials: Mapping[str, str] = field(default_factory=dict)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the model's own BOS where it wants one."""
        ids: list[int] = self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; nothing for special tokens and for unused ids."""
        if token_id in self.special_ids:
            return b""
        if token_id in self.added:
            return self.added[token_id].encode()
        token = self.fast.id_to_token(token_id)
        if token is None:
            return b""
        return self._byte_level(token) if self.is_byte_level else _sentencepiece_bytes(token)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of several tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        switches: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt the model's chat template makes of `messages`, and of `tools` and `switches`
        if it knows of such, ready for the next answer.

        Raises:
            ModelError: the model has no chat template, or the template failed.
        """
        from forerun.models.chat_template import render

        if self.template is None:
            raise ModelError(
                "this model has no chat template (tokenizer_config.json or chat_template.jinja):"
                " it was not made for chat, use `forerun generate`"
            )
        return render(self.template, messages, {**self.specials, **(switches or {})}, tools)

    def _byte_level(self, token: str) -> bytes:
        alphabet = self._alphabet
        return b"".join(
            alphabet[char] if char in alphabet else char.encode("utf-8") for char in token
        )

    @cached_property
    def _alphabet(self) -> dict[str, bytes]:
        """The printable stand-ins of byte-level BPE (Radford et al. 2019)."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        alphabet = {chr(byte): bytes([byte]) for byte in printable}
        alphabet |= {chr(256 + rank): bytes([byte]) for rank, byte in enumerate(others)}
        return alphabet


def load_tokenizer(directory: Path, spec: ModelSpec) -> Tokenizer:
    """Read a model's tokenizer and check that it belongs to the model.

    Raises:
        ModelError: no tokenizer.json, an unreadable one, or one whose ids the model does not have.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(_no_tokenizer(directory))
    try:
        fast = FastTokenizer.from_file(str(path))
    # The Rust library raises bare `Exception` for any file that it cannot parse.
    except Exception as error:
        raise ModelError(f"{path} is not a tokenizer this library can read: {error}") from error
    fast.no_truncation()
    fast.no_padding()
    config = _read_config(directory / "tokenizer_config.json")
    eos_ids = spec.eos_ids or _ids_of(fast, config.get("eos_token"))
    _refuse_foreign(path, fast, spec, eos_ids)
    added = fast.get_added_tokens_decoder()
    return Tokenizer(
        fast=fast,
        eos_ids=eos_ids,
        vocab_size=fast.get_vocab_size(with_added_tokens=True),
        is_byte_level=b"ByteLevel" in _decoder_state(fast),
        special_ids=frozenset(token_id for token_id, token in added.items() if token.special),
        added={token_id: token.content for token_id, token in added.items()},
        template=_read_template(directory, config),
        specials=_special_tokens(config),
    )


def _no_tokenizer(directory: Path) -> str:
    if (directory / "tokenizer.model").is_file():
        return (
            f"{directory} has only a SentencePiece tokenizer.model; forerun reads tokenizer.json:"
            " load it once with Transformers' AutoTokenizer and save it with save_pretrained(DIR)"
        )
    if (directory / "vocab.json").is_file():
        return (
            f"{directory} has only the old vocab.json and merges.txt; forerun reads tokenizer.json:"
            " load it once with Transformers' AutoTokenizer and save it with save_pretrained(DIR)"
        )
    return f"{directory / 'tokenizer.json'} does not exist: copy it from where the model came from"


def _refuse_foreign(
    path: Path, fast: FastTokenizer, spec: ModelSpec, eos_ids: tuple[int, ...]
) -> None:
    highest = max(fast.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest < 0:
        raise ModelError(f"{path} has an empty vocabulary")
    if highest >= spec.vocab:
        raise ModelError(
            f"{path} has token ids up to {highest}, the model has {spec.vocab} tokens: this is the"
            " tokenizer of another model, copy the right one"
        )
    for token_id in eos_ids:
        if fast.id_to_token(token_id) is None:
            raise ModelError(
                f"{path} has no token for the model's end-of-text id {token_id} (its ids go up to"
                f" {highest}): this is the tokenizer of another model, copy the right one"
            )


def _decoder_state(fast: FastTokenizer) -> bytes:
    state: bytes = fast.decoder.__getstate__() if fast.decoder is not None else b""
    return state


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(_SENTENCEPIECE_SPACE, " ").encode("utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _read_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict)]
        template = {item.get("name"): item.get("template") for item in named}.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    texts = {name: _token_text(config.get(name)) for name in names}
    return {name: text for name, text in texts.items() if text is not None}


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _ids_of(fast: FastTokenizer, value: Any) -> tuple[int, ...]:
    text = _token_text(value)
    token_id = fast.token_to_id(text) if text is not None else None
    return () if token_id is None else (token_id,)
