"""A directory of text as a corpus: read once, kept beside the text, mapped afterwards.

    DIR/.forerun-index/index.json             what was read, by which tokenizer; names the others
    DIR/.forerun-index/NAME.tokens.npy        and NAME.suffixes.npy, NAME made of that content

`index.json` is put in place last and in one step, so whatever stops a build leaves the index that
was there, or none. It counts only as long as every file has the size and time that it names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forerun.drafters.corpus import END_OF_FILE, SORTED_LEN, Corpus, Ids, sorted_suffixes
from forerun.errors import ModelError

FOLDER = ".forerun-index"
MAX_TEXT_BYTES = 64 << 20  # about 20 million tokens: a minute to read, 160 MB on disk
_FORMAT = 1
_HEAD_BYTES = 8192  # a NUL among them: not a text
_LEFTOVER_S = 24 * 3600  # an unfinished file so much older than a finished index is nobody's

_log = logging.getLogger(__name__)

Encode = Callable[[str], Sequence[int]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What an index was made of; another stamp means another index."""

    tokenizer: str
    files: tuple[tuple[str, int, int], ...]  # path, bytes, time in ns

    def as_json(self) -> dict[str, object]:
        files = [list(one) for one in self.files]
        return {
            "format": [_FORMAT, SORTED_LEN],
            "tokenizer": self.tokenizer,
            "files": files,
        }

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(self.as_json()).encode()).hexdigest()[:16]


def tokenizer_fingerprint(directory: Path) -> str:
    """What tells a model's tokenizer from others: a digest of its `tokenizer.json`."""
    return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()


def open_corpus(
    directory: Path,
    encode: Encode,
    tokenizer: str,
    progress: Progress = _log.info,
    max_text_bytes: int = MAX_TEXT_BYTES,
) -> Corpus:
    """The UTF-8 files of a directory and of those below it, indexed; hidden ones, links and other
    formats are left out. `tokenizer` is the fingerprint of what `encode` encodes with; `progress`
    is told in sentences what takes long.

    Raises:
        ModelError: no directory, no text in it, or more than `max_text_bytes` of it.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory: lookup:DIR needs a directory of texts")
    stamp = _Stamp(tokenizer, tuple(_listed(directory)))
    folder = directory / FOLDER
    corpus = _load(folder, stamp)
    if corpus is not None:
        return corpus
    tokens = _tokens(directory, stamp, encode, progress, max_text_bytes)
    progress(f"sorting {len(tokens)} tokens of {directory}")
    suffixes = sorted_suffixes(tokens)
    try:
        _save(folder, stamp, {"tokens": tokens, "suffixes": suffixes})
    except OSError as error:
        _log.warning("the index of %s is not kept, it will be made again: %s", directory, error)
    return _load(folder, stamp) or Corpus(tokens, suffixes)


def _listed(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Path within the directory, size and time of every file that is not hidden, in order."""
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            status = path.stat()
            yield str(path.relative_to(directory)), status.st_size, status.st_mtime_ns


def _tokens(
    directory: Path, stamp: _Stamp, encode: Encode, progress: Progress, max_text_bytes: int
) -> Ids:
    parts: list[Ids] = []
    num_bytes, tenth = 0, max(1, len(stamp.files) // 10)
    for number, (name, size, _) in enumerate(stamp.files):
        if number % tenth == 0:
            progress(f"reading {directory}: {number} of {len(stamp.files)} files")
        room = max_text_bytes - num_bytes
        text = _text(directory / name, size, room)
        if text is None:
            _log.info("%s is not UTF-8 text and is left out", directory / name)
            continue
        if len(text) > room or size > room:
            raise ModelError(
                f"{directory} holds more than {max_text_bytes} bytes of text, the most that a"
                " corpus may have: name a smaller directory, or leave out what is not needed"
            )
        num_bytes += size
        parts.append(np.array([*encode(text), END_OF_FILE], np.int32))
    if not any(len(part) > 1 for part in parts):
        raise ModelError(f"{directory} holds no UTF-8 text: lookup:DIR needs a directory of texts")
    return np.concatenate(parts)


def _text(path: Path, size: int, room: int) -> str | None:
    """A file's text, or some of it if it does not fit; None where it is none."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if b"\0" in head:
            return None
        if size > room:
            return head.decode("utf-8", errors="replace")
        try:
            return (head + file.read()).decode("utf-8")
        except UnicodeDecodeError:
            return None


def _load(folder: Path, stamp: _Stamp) -> Corpus | None:
    """The index of that very content, mapped; None if there is none that can be read."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index != {**stamp.as_json(), "name": stamp.name}:
            return None
        tokens, suffixes = (
            np.load(folder / f"{stamp.name}.{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in ("tokens", "suffixes")
        )
    except (OSError, ValueError, EOFError):
        return None
    are_sound = tokens.dtype == suffixes.dtype == np.int32 and len(suffixes) < len(tokens)
    return Corpus(tokens, suffixes) if are_sound else None


def _save(folder: Path, stamp: _Stamp, arrays: dict[str, Ids]) -> None:
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        target = folder / f"{stamp.name}.{part}.npy"
        unfinished = _unfinished(target)
        with unfinished.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    index = folder / "index.json"
    unfinished = _unfinished(index)
    text = json.dumps({**stamp.as_json(), "name": stamp.name})
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(index)
    _tidy(folder, stamp.name, index.stat().st_mtime)


def _unfinished(path: Path) -> Path:
    """Where a file is written; another process that builds the same has another place."""
    return path.with_name(f"{path.name}.{os.getpid()}.unfinished")


def _tidy(folder: Path, name: str, now_s: float) -> None:
    """Remove older indexes, and what a killed build left. Who has them mapped keeps them."""
    for path in folder.iterdir():
        is_old_index = path.name.endswith(".npy") and not path.name.startswith(name)
        is_leftover = (
            path.name.endswith(".unfinished") and now_s - path.stat().st_mtime > _LEFTOVER_S
        )
        if is_old_index or is_leftover:
            path.unlink(missing_ok=True)
