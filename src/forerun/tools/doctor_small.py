"""What a small model's files are as a drafter, and what it yields: `forerun doctor MODEL lm`.

Opens both models and compares; runs neither. A small model of other tokens drafts all the same, by
its text, so nothing here is a failure.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from forerun.models.drafter_match import Finding, recorded_mode
from forerun.models.drafter_notes import read_notes
from forerun.models.spec import FAMILIES, ModelSpec, architecture_of, read_json
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import open_checkpoint


def is_language_model(directory: Path) -> bool:
    """Whether a directory holds a whole model of its own, not a drafter that reads another's."""
    config = directory / "config.json"
    return config.is_file() and architecture_of(read_json(config)) in FAMILIES


def examine_small_model(model_dir: Path, drafter_dir: Path) -> dict[str, Any]:
    """Everything `doctor` knows of a model and a small one that drafts for it, as plain data.

    Raises:
        ModelError: one of them cannot be opened.
    """
    target, own = open_checkpoint(model_dir), open_checkpoint(drafter_dir)
    notes = read_notes(drafter_dir)
    findings = (
        _tokens(drafter_dir, own.spec, model_dir, target.spec),
        _size(own.num_bytes, target.num_bytes),
        _context(own.spec.max_position, target.spec.max_position, notes.trained_positions),
        *recorded_mode(notes),
    )
    return {
        "model": str(model_dir),
        "drafter": str(drafter_dir),
        "layout": own.spec.family,
        "tested": "an ordinary checkpoint, opened as a model of its own",
        "kind": "lm",
        "num_layers": own.spec.num_layers,
        "hidden": own.spec.hidden,
        "num_bytes": own.num_bytes,
        "max_position": own.spec.max_position,
        "trained_positions": notes.trained_positions or "not recorded",
        "tokens_per_round": notes.sentence,
        "checks": [asdict(one) for one in findings],
        "belongs": True,
    }


def _tokens(drafter_dir: Path, own: ModelSpec, model_dir: Path, target: ModelSpec) -> Finding:
    if not (drafter_dir / "tokenizer.json").is_file():
        return Finding("tokenizer", "passed", "it brings none: it reads the target's ids")
    ours, theirs = load_tokenizer(drafter_dir, own), load_tokenizer(model_dir, target)
    if _vocabulary(ours) == _vocabulary(theirs):
        return Finding("tokenizer", "passed", "all ids stand for the target's tokens")
    hint = "its tokens are others than the target's: it drafts by its text, which is kept less"
    return Finding("tokenizer", "warning", f"{hint}; `forerun train lm --model` makes one of them")


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    known: dict[str, int] = tokenizer.fast.get_vocab(with_added_tokens=True)
    return known


def _size(own: int, target: int) -> Finding:
    said = f"{100 * own / target:.0f} % of the target's bytes"
    if 2 * own <= target:
        return Finding("size", "passed", said)
    return Finding("size", "warning", f"{said}: a draft costs nearly what it saves, take less")


def _context(own: int, target: int, trained: int | None) -> Finding:
    known, what = (own, "it has") if trained is None else (min(trained, own), "it learned from")
    said = f"{what} {known} positions, the target has {target}"
    if known >= target:
        return Finding("context", "passed", said)
    return Finding("context", "warning", f"{said}: beyond {known} expect less of it")
