"""API keys: kept as hashes, compared in constant time, and what each one's caches are called."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from forerun.errors import OptionError

_LEAST_CHARS = 16
_MOST_FILE_BYTES = 1 << 20


def hash_of(key: str) -> bytes:
    """The digest that stands for a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Digests of the keys in a file, one a line; empty lines and `# comments` are passed over.

    Raises:
        OptionError: an unreadable file, no key in it, or a key too short to be a secret.
    """
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise OptionError(f"{path} has more than {_MOST_FILE_BYTES} bytes: one key a line")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the API keys in {path} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise OptionError(f"{path} has no API key: write one a line")
    for number, key in enumerate(keys, start=1):
        if len(key) < _LEAST_CHARS:
            raise OptionError(
                f"key {number} in {path} has {len(key)} characters, at least {_LEAST_CHARS} are"
                " needed: `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
            )
    return tuple(hash_of(key) for key in keys)


def partition_of(key: str, known: tuple[bytes, ...]) -> str | None:
    """The name of a key's caches, or None for a key that is not known; always equally slow."""
    digest, is_known = hash_of(key), False
    for one in known:
        is_known |= secrets.compare_digest(digest, one)
    return digest.hex()[:32] if is_known else None
