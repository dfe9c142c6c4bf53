"""A tiny model that knows of tools, with a drafter of every kind beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from conftest import write_checkpoint
from engine.feature_drafters import write_feature_drafters
from serve.structured_parts import MARK, TEMPLATE

_CONTEXT = {"max_position_embeddings": 40_960, "scale": 0.35}


def write_model(root: Path) -> Path:
    """The model; a small one that often agrees with it, and those that read its features."""
    model, small = root / "model", root / "small"
    tokenizer = _bytes_and_a_mark()
    for directory in (model, small):
        directory.mkdir()
    write_checkpoint(model, "qwen3", 3, tokenizer, **_CONTEXT)
    write_checkpoint(small, "qwen3", 4, tokenizer, near=(model, 0.02), **_CONTEXT)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    written = write_feature_drafters(root / "features", model)
    for name, path in {"lm": small, **written}.items():
        shutil.copytree(path, model / "drafters" / name)
    return model


def _bytes_and_a_mark() -> Tokenizer:
    """One token a byte, then the end of a text (256) and the mark of a call (257)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: rank for rank, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken(MARK, normalized=False)])
    return tokenizer
