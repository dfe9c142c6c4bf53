"""Held-out figures of a trained model: bits per byte, completions that parse, agreement.

Knows decoders, tokenizers and documents. Every figure is on packages the model has never seen.
"""

from __future__ import annotations

import bz2
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError
from forerun.tools.loops import loop_share
from forerun.train.completions import Header, function_headers, parses
from forerun.train.corpus import Document
from forerun.train.distill import agreement
from forerun.train.sample import continue_rows
from forerun.train.tokenizer import END_OF_TEXT_ID, encode_documents

BUCKETS = ((0, 512), (512, 1024), (1024, 2048), (2048, 4096))


@dataclass(frozen=True, slots=True)
class Examination:
    """How much to measure; the defaults are the published figures."""

    num_documents: int = 180
    window: int = 2048
    stride: int = 1024
    num_long_rows: int = 24
    num_headers: int = 256
    prompt_len: int = 384
    num_new: int = 160
    batch_rows: int = 64
    seed: int = 1


def chosen_documents(documents: Sequence[Document], plan: Examination) -> list[Document]:
    """At most `num_documents`, evenly spaced, so that every large package is among them."""
    step = max(1.0, len(documents) / plan.num_documents)
    return [documents[int(at * step)] for at in range(int(len(documents) / step))]


def compressed_bits_per_byte(documents: Sequence[Document]) -> dict[str, float]:
    """bz2 and xz at their best settings: a stream a document, and all documents in one stream."""
    texts = [document.text.encode() for document in documents]
    num_bytes = sum(map(len, texts))
    return {
        f"{name}_{how}": 8 * sum(len(pack(text)) for text in parts) / num_bytes
        for name, pack in (("bz2", _bz2), ("xz", _xz))
        for how, parts in (("per_document", texts), ("concatenated", [b"".join(texts)]))
    }


@torch.no_grad()
def bits_per_byte(
    model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document], plan: Examination
) -> float:
    """Bits per byte of text, each document on its own, in windows that overlap.

    A token is predicted from at least `window - stride` tokens before it, or from all there are.
    """
    bits, num_bytes = 0.0, 0
    for document in documents:
        ids = encode_documents(tokenizer, [document.text]).astype(np.int64)
        bits += _document_bits(model, torch.from_numpy(ids), plan)
        num_bytes += len(document.text.encode())
    return bits / num_bytes


@torch.no_grad()
def bits_by_position(
    model: Decoder, stream: NDArray[np.uint16], bytes_per_token: float, plan: Examination
) -> dict[str, float]:
    """Bits per byte of long held-out rows, by position: what context brings, where it breaks."""
    row_len = BUCKETS[-1][1]
    starts = np.linspace(0, len(stream) - row_len - 1, plan.num_long_rows).astype(np.int64)
    rows = torch.from_numpy(stream[starts[:, None] + np.arange(row_len + 1)].astype(np.int64))
    losses = torch.stack([_losses(model, row[None])[0] for row in rows]).mean(0)
    per_byte = math.log(2) * bytes_per_token
    return {f"{a}-{b}": losses[a:b].mean().item() / per_byte for a, b in BUCKETS}


def completions(
    model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document], plan: Examination
) -> dict[str, dict[str, float]]:
    """Parse share and loop share of completed function headers, greedy and at T = 0.7."""
    headers, prompts = _header_prompts(tokenizer, documents, plan)
    report = {}
    for name, temperature in (("greedy", 0.0), ("T=0.7", 0.7)):
        texts = _complete(model, prompts, temperature, plan)
        ended = [_before_end(ids) for ids in texts]
        pairs = zip(headers, ended, strict=True)
        report[name] = {
            "num_headers": len(headers),
            "parse_share": sum(parses(h, ids, tokenizer.decode) for h, ids in pairs) / len(headers),
            "loop_share": loop_share(ended),
        }
    return report


def drafter_agreement(
    target: Decoder,
    drafter: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    plan: Examination,
) -> dict[str, dict[str, float]]:
    """How often the drafter's choice is the target's, on the target's own held-out completions."""
    _, prompts = _header_prompts(tokenizer, documents, plan)
    report = {}
    for name, temperature in (("greedy text", 0.0), ("T=0.7 text", 0.7), ("T=1.0 text", 1.0)):
        texts = torch.tensor(_complete(target, prompts[:96], temperature, plan))
        rows = torch.cat((prompts[:96], texts), dim=1)
        report[name] = agreement(target, drafter, rows, first=plan.prompt_len)
    return report


def _document_bits(model: Decoder, ids: Tensor, plan: Examination) -> float:
    nats, known = 0.0, 0
    for begin in range(0, max(1, len(ids) - 1), plan.stride):
        window = ids[begin : begin + plan.window + 1]
        losses = _losses(model, window[None])[0]
        nats += losses[known - begin :].sum().item()
        known = begin + len(window) - 1
        if known >= len(ids) - 1:
            break
    return nats / math.log(2)


def _losses(model: Decoder, rows: Tensor) -> Tensor:
    """Nats of each token after the first, [B, T]."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(rows[:, :-1])
    flat = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none")
    return flat.view(rows.shape[0], -1)


def _header_prompts(
    tokenizer: Tokenizer, documents: Sequence[Document], plan: Examination
) -> tuple[list[Header], Tensor]:
    headers = [header for document in documents for header in function_headers(document)]
    order = np.random.default_rng(plan.seed).permutation(len(headers))
    chosen, prompts = list[Header](), list[list[int]]()
    for at in order:
        # Twelve bytes a token is more than any file needs: the encoder need not see it all.
        ids = tokenizer.encode(headers[at].prefix[-12 * plan.prompt_len :]).ids
        if len(ids) >= plan.prompt_len:
            chosen.append(headers[at])
            prompts.append(ids[-plan.prompt_len :])
        if len(chosen) == plan.num_headers:
            break
    if not chosen:
        raise OptionError(f"no held-out function has {plan.prompt_len} tokens in front of its body")
    return chosen, torch.tensor(prompts)


def _complete(
    model: Decoder, prompts: Tensor, temperature: float, plan: Examination
) -> list[list[int]]:
    generator = torch.Generator().manual_seed(plan.seed)
    made: list[list[int]] = []
    for batch in torch.split(prompts, plan.batch_rows):
        warmth = torch.full((len(batch),), temperature)
        rows = continue_rows(model, batch, plan.num_new, warmth, generator)
        made += rows[:, plan.prompt_len :].tolist()
    return made


def _before_end(token_ids: list[int]) -> list[int]:
    return (
        token_ids[: token_ids.index(END_OF_TEXT_ID)] if END_OF_TEXT_ID in token_ids else token_ids
    )


def _bz2(text: bytes) -> bytes:
    return bz2.compress(text, 9)


def _xz(text: bytes) -> bytes:
    return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
