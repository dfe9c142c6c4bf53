"""Tokenizers and models of other vocabularies, for tests of drafters that have one."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from forerun.backends.native import NativeBackend
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.models.weights import open_checkpoint

CODE = '''def merge(left, right):
    """Merge two sorted lists; naïve, größer als nötig — 並べ替え."""
    merged = []
    while left and right:
        if left[0] <= right[0]:
            merged.append(left.pop(0))
        else:
            merged.append(right.pop(0))
    return merged + left + right


class Queue:
    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        self._items.append(item)

    def pop(self):
        return self._items.pop(0)
'''


def other_tokenizer(vocab=420, end=0):
    """A byte-level BPE with other merges and another pre-tokenizer than the embedded one."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["</s>", "<|start|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CODE], trainer)
    return wrapped(tokenizer, end)


def wrapped(fast, *eos_ids):
    added = fast.get_added_tokens_decoder()
    specials = frozenset(i for i, token in added.items() if token.special)
    names = {i: token.content for i, token in added.items()}
    size = fast.get_vocab_size(with_added_tokens=True)
    return Tokenizer(fast, eos_ids, size, True, specials, names, None)


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = FastTokenizer(models.BPE({char: rank for rank, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def write_permuted(out, share=1.0):
    """The embedded drafter with its tokens renumbered: another vocabulary of known quality. A part
    of the tokens that no others are made of lose their spelling where `share` is below one."""
    source = resolve_model(EMBEDDED_NAME) / "drafters" / "lm"
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    place = np.random.default_rng(5).permutation(config["vocab_size"])
    rename(tokenizer, 1.0 - share)
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: int(place[at]) for token, at in vocab.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = int(place[token["id"]])
    config |= {"eos_token_id": int(place[config["eos_token_id"]])}
    data = bytearray((source / "model.safetensors").read_bytes())
    permute_rows(data, "model.embed_tokens.weight", np.argsort(place))
    (out / "model.safetensors").write_bytes(data)
    (out / "config.json").write_text(json.dumps(config))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(source / "tokenizer_config.json", out)
    return out


def rename(tokenizer, share):
    """Give a part of the tokens names that no text has, and drop the merges that make them."""
    model = tokenizer["model"]
    made = ["".join(pair) for pair in model["merges"]]
    used = {part for pair in model["merges"] for part in pair}
    leaves = [token for token in made if token not in used]
    gone = set(leaves[: int(share * len(model["vocab"]))])
    model["merges"] = [
        pair for pair, token in zip(model["merges"], made, strict=True) if token not in gone
    ]
    model["vocab"] = {
        f"gone{at}" if token in gone else token: at for token, at in model["vocab"].items()
    }


def permute_rows(data, name, order):
    """Reorder the rows of one 16-bit tensor in the bytes of a safetensors file."""
    header_len = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_len])[name]
    start, end = (8 + header_len + offset for offset in entry["data_offsets"])
    rows = np.frombuffer(bytes(data[start:end]), np.uint16).reshape(entry["shape"])
    data[start:end] = rows[order].tobytes()


def opened(directory):
    checkpoint = open_checkpoint(
        directory
    )  # one core: threads of busy machines wait for each other
    backend = NativeBackend(checkpoint, cores=(min(os.sched_getaffinity(0)),), num_blocks=64)
    return backend, load_tokenizer(directory, checkpoint.spec)
