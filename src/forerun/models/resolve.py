"""From the name a user gives to a directory with a model in it.

Knows directories, the embedded models and the layout of the Hugging Face cache. Must not open a
model. Reads the cache itself, so a cached model needs no network and no extra package.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from forerun.errors import ModelError

EMBEDDED_NAME = "forerun-code"
EMBEDDED_EXIT_NAME = "forerun-code-exit"
_EMBEDDED_NAMES = (EMBEDDED_NAME, EMBEDDED_EXIT_NAME)
_EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "embedded"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED_FILES = ["*.safetensors", "*.json", "*.jinja"]
_YES = {"1", "on", "yes", "true"}


def resolve_model(name: str) -> Path:
    """The directory of a model: a path, an embedded name, or `org/name` from the local cache.

    Embedded are `forerun-code` and `forerun-code-exit`, a small one trained to foretell itself.
    A repository that is not in the cache is downloaded with the extra `hub`.

    Raises:
        ModelError: nothing of that name; the message says where it was looked for and what to do.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name in _EMBEDDED_NAMES:
        return _embedded(name)
    if path.is_file():
        raise ModelError(f"{path} is a file: give the directory that has config.json in it")
    if not _REPOSITORY.fullmatch(name):
        raise ModelError(
            f"no model {name!r}: it is neither a directory, nor one of the embedded"
            f" {', '.join(_EMBEDDED_NAMES)}, nor a name like org/name"
        )
    snapshot = cached_snapshot(name)
    return snapshot if snapshot is not None else _download(name)


def cached_snapshot(repository: str) -> Path | None:
    """The snapshot `refs/main` points to, if it holds a config and weights."""
    folder = _cache_folder(repository)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    whole = (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors"))
    return snapshot if whole else None


def cache_root() -> Path:
    """Where the hub library keeps models, by its own variables and in its own order."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _cache_folder(repository: str) -> Path:
    return cache_root() / ("models--" + repository.replace("/", "--"))


def _embedded(name: str) -> Path:
    directory = _EMBEDDED_ROOT / name
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"the embedded model is not at {directory}: this installation was built without it;"
            " give --model DIR"
        )
    return directory


def _download(repository: str) -> Path:
    missing = f"{repository} is not in the local cache ({_cache_folder(repository)})"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES:
        raise ModelError(
            f"{missing}, and HF_HUB_OFFLINE forbids a download: unset it, or copy the model there"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{missing}; to download it install the extra: pip install 'forerun[hub]', or give the"
            " path of a directory"
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=_WANTED_FILES))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{missing} and could not be downloaded ({reason}): check the name and the network, or"
            " give the path of a directory"
        ) from error
