"""A tiny model that counts through 26 tokens, round and round, as far as its noise lets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
from safetensors.numpy import load_file, save_file

FIRST, NUM_LETTERS = 97, 26


def counting_target(checkpoint_dir: Callable[..., Path], **config: object) -> Path:
    """Its directory: six layers, 272 tokens, of which those from 97 on are counted through. Others
    may have the same random model: it stays as it is, and this one lies beside it."""
    random = checkpoint_dir("qwen3", 31, num_hidden_layers=6, tie_word_embeddings=False, **config)
    directory = random.with_name(f"{random.name}-counting")
    if directory.exists():
        return directory
    copytree(random, directory)
    weights = load_file(directory / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = 0.02 * weights[name]
    table, head = weights["model.embed_tokens.weight"], 0.1 * weights["lm_head.weight"]
    letters = np.arange(NUM_LETTERS)
    head[FIRST + (letters + 1) % NUM_LETTERS] = 0.5 * table[FIRST + letters]
    save_file(weights | {"lm_head.weight": head}, directory / "model.safetensors")
    return directory
