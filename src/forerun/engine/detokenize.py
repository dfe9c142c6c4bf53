"""Text out of tokens, as they come: never half a character, never a part of a stop string.

bytes of tokens -> whole characters -> held back while they may begin a stop string -> text
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """The text of one request's generated tokens."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[str, ...]) -> None:
        self._token_bytes = token_bytes
        self._stop = stop
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with `token`; after a stop string there is no more."""
        fresh = self._characters.decode(self._token_bytes(token))
        return self._release(fresh) if self._stop else fresh

    def finish(self) -> str:
        """What was held back, once no token will come."""
        if self.is_stopped:
            return ""
        rest = self._release(self._characters.decode(b"", final=True))
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, fresh: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + fresh
        found = [start for start in (text.find(one) for one in self._stop) if start >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)]
        kept = len(text) - self._num_undecided(text)
        self._held = text[kept:]
        return text[:kept]

    def _num_undecided(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop string."""
        longest = 0
        for one in self._stop:
            for num in range(min(len(one) - 1, len(text)), longest, -1):
                if text.endswith(one[:num]):
                    longest = num
                    break
        return longest
