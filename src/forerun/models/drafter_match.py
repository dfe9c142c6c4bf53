"""Does a drafter belong to a target? Each difference by its name, in a sentence with the way out.

Knows both as data, and the files beside them that give hints. Must not know how either is run. A
drafter of another target never costs a token under `match`, only all its speed: it is refused
because nobody wants that.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forerun.errors import IncompatibleSpeculation, ModelError
from forerun.models.drafter_files import HEAD, TABLE, DrafterCheckpoint
from forerun.models.drafter_notes import DrafterNotes, read_notes
from forerun.models.drafter_spec import BlockSpec, DrafterSpec
from forerun.models.spec import ModelSpec
from forerun.models.weights import EMBEDDING, Checkpoint
from forerun.models.weights import HEAD as TARGET_HEAD

_MODE = re.compile(r"non[-_ ]?thinking|no[-_ ]?think|thinking", re.IGNORECASE)
_CARDS = ("README.md", "MODEL_CARD.md")  # as published, as `forerun train expect --card` writes it
_CARD_BYTES = 65536
_TRAIN = "take the one made for this model, or train one with `forerun train`"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """One question and its answer; `sentence` says what was found, and the way out of a failure."""

    name: str
    state: Literal["passed", "warning", "failed"]
    sentence: str


def refuse_mismatch(
    drafter: DrafterCheckpoint | DrafterSpec, target: ModelSpec, target_dir: Path | None = None
) -> None:
    """Refuse a drafter that was made for another target; a mode it was trained in is logged.

    Other warnings of `compare` are left to `forerun doctor`: how long a text will be, say, is not
    known when a drafter is opened.

    Raises:
        IncompatibleSpeculation: number of layers, tapped layers, hidden size, vocabulary, mask
            token, or tokenizer (where both directories have one) are not those of this target.
    """
    for finding in compare(drafter, target, target_dir):
        if finding.state == "failed":
            raise IncompatibleSpeculation(finding.sentence)
    if isinstance(drafter, DrafterCheckpoint):
        for finding in _thinking(drafter.directory):
            _log.warning("drafter %s: %s", drafter.directory, finding.sentence)


def compare(
    drafter: DrafterCheckpoint | DrafterSpec, target: ModelSpec, target_dir: Path | None = None
) -> tuple[Finding, ...]:
    """Every question that can be asked of shapes and of the small files beside the weights."""
    spec = drafter.spec if isinstance(drafter, DrafterCheckpoint) else drafter
    findings = [
        _layers(spec, target),
        _taps(spec, target),
        _hidden(spec, target),
        _vocabulary(spec, target),
    ]
    if isinstance(spec, BlockSpec):
        findings.append(_mask(spec, target))
    notes = read_notes(drafter.directory) if isinstance(drafter, DrafterCheckpoint) else None
    findings.append(_context(spec, target, notes.trained_positions if notes else None))
    if isinstance(drafter, DrafterCheckpoint):
        if target_dir is not None:
            findings.append(_tokenizer(drafter.directory, target_dir))
        findings += _thinking(drafter.directory)
    return tuple(findings)


def compare_copies(drafter: DrafterCheckpoint, target: Checkpoint) -> tuple[Finding, ...]:
    """Whether a block drafter's own table and head are those of the target that it is run with."""
    head = EMBEDDING if target.spec.tied else TARGET_HEAD
    pairs = [("own table", TABLE, EMBEDDING)] if drafter.own_table else []
    if drafter.own_head and isinstance(drafter.spec, BlockSpec) and not drafter.spec.draft_vocab:
        pairs.append(("own head", HEAD, head))
    return tuple(_copy(name, drafter, own, target, its) for name, own, its in pairs)


def _verdict(name: str, *, is_good: bool, good: str, bad: str) -> Finding:
    return Finding(name, "passed", good) if is_good else Finding(name, "failed", bad)


def _layers(spec: DrafterSpec, target: ModelSpec) -> Finding:
    if not spec.num_target_layers:
        return Finding(
            "layers", "warning", "its config.json does not say how many layers its target has"
        )
    return _verdict(
        "layers",
        is_good=spec.num_target_layers == target.num_layers,
        good=f"made for a target of {target.num_layers} layers",
        bad=f"the drafter was made for a target of {spec.num_target_layers} layers, this one has"
        f" {target.num_layers}: {_TRAIN}",
    )


def _taps(spec: DrafterSpec, target: ModelSpec) -> Finding:
    beyond = [tap for tap in spec.tap_layers if tap >= target.num_layers]
    return _verdict(
        "taps",
        is_good=not beyond,
        good=f"reads layers {_listed(spec.tap_layers)} of 0 to {target.num_layers - 1}",
        bad=f"the drafter reads layers {_listed(beyond)} of its target, this one's are 0 to"
        f" {target.num_layers - 1}: {_TRAIN}",
    )


def _hidden(spec: DrafterSpec, target: ModelSpec) -> Finding:
    if spec.target_hidden != target.hidden:
        found = f"the drafter reads states of {spec.target_hidden} values"
    else:
        # Its layers read the rows of the target's table.
        found = f"the drafter's layers are {spec.body.hidden} wide"
    return _verdict(
        "hidden size",
        is_good=spec.target_hidden == spec.body.hidden == target.hidden,
        good=f"{target.hidden}, as the target's",
        bad=f"{found}, this target's have {target.hidden}: {_TRAIN}",
    )


def _vocabulary(spec: DrafterSpec, target: ModelSpec) -> Finding:
    vocab = spec.target_vocab
    own = "" if spec.head_vocab == vocab else f", of which it drafts {spec.head_vocab}"
    return _verdict(
        "vocabulary",
        is_good=vocab == target.vocab,
        good=f"{target.vocab} tokens{own}",
        bad=f"the drafter was made for a vocabulary of {vocab} tokens, this target has"
        f" {target.vocab}: {_TRAIN}",
    )


def _mask(spec: BlockSpec, target: ModelSpec) -> Finding:
    return _verdict(
        "mask token",
        is_good=spec.mask_id < target.vocab,
        good=f"id {spec.mask_id}",
        bad=f"the drafter fills its block with token {spec.mask_id}, the target's table ends at"
        f" {target.vocab - 1}: correct mask_token_id in its config.json, or {_TRAIN}",
    )


def _context(spec: DrafterSpec, target: ModelSpec, trained: int | None) -> Finding:
    own, its = spec.body.max_position, target.max_position
    if trained is not None and trained < its:
        return Finding(
            "context",
            "warning",
            f"the drafter learned from rows of {trained} tokens, the target has {its} positions:"
            f" beyond {trained} expect less of it",
        )
    if trained is not None:
        return Finding(
            "context", "passed", f"learned from rows of {trained} tokens, the target has {its}"
        )
    unknown = "how long the texts were that it learned from is not recorded"
    if own >= its:
        return Finding("context", "passed", f"{own} positions, the target {its}; {unknown}")
    return Finding(
        "context",
        "warning",
        f"the drafter has {own} positions, the target {its}: beyond {own} expect little of it;"
        f" {unknown}",
    )


def _tokenizer(drafter_dir: Path, target_dir: Path) -> Finding:
    own, its = drafter_dir / "tokenizer.json", target_dir / "tokenizer.json"
    if not own.is_file() or not its.is_file():
        return Finding("tokenizer", "passed", "the drafter brings none: it reads the target's ids")
    if own.read_bytes() == its.read_bytes():
        return Finding("tokenizer", "passed", "the target's, byte for byte")
    ours, theirs = _tokens(own), _tokens(its)
    differing = sorted(dict(ours.items() ^ theirs.items()))
    if not differing:
        return Finding("tokenizer", "passed", "all ids stand for the target's tokens")
    token_id = differing[0]
    names = [tokens.get(token_id, "unused") for tokens in (ours, theirs)]
    return Finding(
        "tokenizer",
        "failed",
        f"the drafter's tokenizer is not the target's: {len(differing)} ids differ, {token_id} is"
        f" {names[0]!r} there and {names[1]!r} here: {_TRAIN}",
    )


def _tokens(path: Path) -> dict[int, str]:
    """What each id stands for."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The Rust library raises bare `Exception` for any file that it cannot parse.
    except Exception as error:
        raise ModelError(f"{path} is not a tokenizer this library can read: {error}") from error
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return {token_id: token for token, token_id in vocab.items()}


def recorded_mode(notes: DrafterNotes) -> list[Finding]:
    """A hint where a training noted how its target was told to write; else nothing."""
    if notes.thinking is None:
        return []
    hint = f"it learned from text that was written with thinking {notes.thinking}"
    said = f"{hint}: prompt the target in that mode, or expect less"
    return [Finding("thinking", "warning", said)]


def _thinking(directory: Path) -> list[Finding]:
    """A hint where the drafter's name, card or config mentions the mode it was trained in."""
    if recorded := recorded_mode(read_notes(directory)):
        return recorded
    found = _MODE.search(directory.resolve().name) or _MODE.search(_config_text(directory))
    where = "name or config"
    if found is None:
        found, where = _MODE.search(_card(directory)), "card"
    if found is None:
        return []
    hint = f'its {where} says "{found.group()}": prompt the target in that mode, or expect less'
    return [Finding("thinking", "warning", hint)]


def _config_text(directory: Path) -> str:
    try:
        return json.dumps(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""


def _card(directory: Path) -> str:
    return "\n".join(_beginning(directory / name) for name in _CARDS)


def _beginning(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _copy(name: str, drafter: DrafterCheckpoint, own: str, target: Checkpoint, its: str) -> Finding:
    ours, theirs = drafter.tensor(own), target.tensor(its)
    same_form = (ours.dtype, ours.array.shape) == (theirs.dtype, theirs.array.shape)
    if same_form and _equal(ours.array, theirs.array):
        return Finding(name, "passed", "the target's, bit for bit")
    return Finding(
        name,
        "warning",
        f"{own!r} differs from the target's {its!r}, which is used in its place: expect less of it",
    )


def _equal(ours: Any, theirs: Any) -> bool:
    return bool(np.array_equal(ours, theirs))


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))
