"""One text in two vocabularies: the target's tokens, told again in a drafter's own.

Knows tokenizers and bytes; must not know models. The text is read as it grows, and only its tail is
encoded again:

    text       ………………………………………………………| what is new
    before     …  tok | en | s at | the e | nd
    tail             | en | s at | the | ending     encoded from a token's edge `LEAST_TAIL` back
                     ^ seam: from here on `NUM_ANCHORS` tokens agree, so the tail is told as the
                       whole text would be

Where no seam is found the tail is made longer, up to `LONGEST_TAIL`; then, or where the whole text
is shorter, the tail replaces what it covers. Any spelling is a valid context, so nothing depends
on a seam but speed, and a text that is one word of a megabyte costs no more than that a round.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from forerun.models.tokenizer import Tokenizer

LEAST_TAIL, LONGEST_TAIL, TAIL_GROWTH = 64, 4096, 4  # bytes of known text that are encoded again
NUM_ANCHORS = 2  # tokens that must agree behind a seam
_TAIL_COUNTS = (16, 4, 1)  # known tokens that stand before a draft when it is encoded


class Spelling(dict[int, bytes]):
    """The bytes of a tokenizer's tokens, found out once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._single: dict[int, int] | None = None

    def __missing__(self, token: int) -> bytes:
        spelled = self[token] = self.tokenizer.token_bytes(token)
        return spelled

    def join(self, tokens: Sequence[int]) -> bytes:
        """What several tokens spell together."""
        return b"".join(map(self.__getitem__, tokens))

    def singly(self, spelled: bytes) -> list[int]:
        """A token for each byte; empty where the vocabulary lacks one."""
        if self._single is None:
            ids = range(self.tokenizer.vocab_size)
            self._single = {self[token][0]: token for token in ids if len(self[token]) == 1}
        single = self._single
        return [single[byte] for byte in spelled] if single.keys() >= set(spelled) else []

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without a beginning or an end of its own."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def width(self, token: int) -> int:
        """Bytes of text that a token stands for; a special token stands for its name."""
        name = self.tokenizer.added.get(token)
        return len(self[token]) if name is None else len(name.encode())


class Retold:
    """The tokens `ids` of a drafter for a text that comes as tokens of a target.

    The text holds U+FFFD where the target's bytes are no UTF-8; `held` are the first bytes of a
    last character that is not finished, which `ids` do not spell yet. A special token of the target
    is the drafter's of the same name, or its end of text, or left out. `num_encoded_bytes` counts
    what was given to the drafter's tokenizer.
    """

    def __init__(self, source: Spelling, own: Spelling) -> None:
        self.ids: list[int] = own.tokenizer.encode("")  # a beginning of text, where it wants one
        self.num_encoded_bytes = 0
        self._source = source
        self._own = own
        self._text = bytearray()
        self._ends = [0] * len(self.ids)  # of `text`, where each token ends
        self._floor = len(self.ids)  # tokens before it are never told anew
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> Retold:
        """What was told so far, to go on from in another way."""
        other = self.blank()
        other.ids, other._ends, other._floor = [*self.ids], [*self._ends], self._floor
        other._text, other.num_encoded_bytes = self._text.copy(), self.num_encoded_bytes
        other._decoder.setstate(self._decoder.getstate())
        return other

    def blank(self) -> Retold:
        """The same with nothing told."""
        return Retold(self._source, self._own)

    @property
    def held(self) -> bytes:
        return self._decoder.getstate()[0]

    def half(self) -> list[int]:
        """`held` in the drafter's tokens of single bytes; empty where it has not all of them."""
        return self._own.singly(self.held)

    def extend(self, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """Append tokens of the target: how many `ids` are as before, and those behind them then."""
        specials = self._source.tokenizer.special_ids
        ends = [at for at, token in enumerate(tokens) if token in specials]
        before = len(self.ids), list[int]()
        start = 0
        for end in [*ends, len(tokens)]:
            is_whole = end < len(tokens)
            text = self._decoder.decode(self._source.join(tokens[start:end]), is_whole)
            if text:
                told = self._append(text.encode())
                if start == 0:  # a special token is a wall: what follows changes nothing before it
                    before = told
            if is_whole:
                self._append_special(tokens[end])
            start = end + 1
        return before

    def _append(self, text: bytes) -> tuple[int, list[int]]:
        """Tell the text's new end."""
        known = len(self._text)
        self._text += text
        reach = LEAST_TAIL
        while True:
            first = self._edge(known - reach)
            ids, ends = self._encode(self._ends[first - 1] if first else 0)
            if first == self._floor:
                seam = first, 0
                break
            found = self._seam(first, ids, ends)
            seam = found or (first, 0)
            if found or reach >= LONGEST_TAIL:
                break
            reach *= TAIL_GROWTH
        at, behind = seam
        removed = self.ids[at:]
        self.ids[at:], self._ends[at:] = ids[behind:], ends[behind:]
        same = num_equal(removed, self.ids[at:])
        return at + same, removed[same:]

    def _append_special(self, token: int) -> None:
        source, own = self._source.tokenizer, self._own.tokenizer
        told = own.fast.token_to_id(source.added[token])
        if told is None and token in source.eos_ids and own.eos_ids:
            told = own.eos_ids[0]
        if told is not None:
            self.ids.append(told)
            self._ends.append(len(self._text))
        self._floor = len(self.ids)

    def _edge(self, position: int) -> int:
        """The last token at or before a position that begins with a whole character."""
        first = len(self.ids)
        while first > self._floor:
            at = self._ends[first - 1]
            is_inside = at < len(self._text) and _is_continuation(self._text[at])
            if at <= position and not is_inside:
                break
            first -= 1
        return first

    def _encode(self, start: int) -> tuple[list[int], list[int]]:
        """The tokens of the text from a position on, and where each ends: counted from the text's
        end, for some tokenizers put a space before a beginning."""
        tail = bytes(self._text[start:])
        self.num_encoded_bytes += len(tail)
        ids = self._own.encode(tail.decode("utf-8", errors="replace"))
        ends, end = [0] * len(ids), len(self._text)
        for index in range(len(ids) - 1, -1, -1):
            ends[index] = end
            end -= self._own.width(ids[index])
        return ids, ends

    def _seam(self, first: int, ids: list[int], ends: list[int]) -> tuple[int, int] | None:
        """Where the tokens from `first` on and those of the tail begin to agree, in both."""
        places = {end: index for index, end in enumerate(ends)}
        for at in range(first, len(self.ids) - NUM_ANCHORS + 1):
            behind = places.get(self._ends[at])
            if behind is None:
                continue
            anchor = slice(behind, behind + NUM_ANCHORS)
            same = ids[anchor] == self.ids[at : at + NUM_ANCHORS]
            if same and ends[anchor] == self._ends[at : at + NUM_ANCHORS]:
                return at, behind
        return None


def continuation(target: Spelling, known: Sequence[int], drafted: bytes) -> list[int]:
    """The target's tokens for `drafted` bytes behind its `known` tokens.

    The text is encoded from a known token on, for what a token is depends on what stands before
    it: from the farthest of a few that leaves an edge where the known tokens end, since those need
    not be what the tokenizer makes of their text. Empty where there is none.
    """
    drafted = drafted[: num_whole(drafted)]
    if not drafted:
        return []
    for tail in _tails(target, known):
        spelled = target.join(tail)
        while spelled and _is_continuation(spelled[0]):
            spelled = spelled[1:]
        try:
            ids = target.encode((spelled + drafted).decode("utf-8"))
        except UnicodeDecodeError:
            continue
        start, num_bytes = len(ids), 0
        while start and num_bytes < len(drafted):
            start -= 1
            num_bytes += len(target[ids[start]])
        if target.join(ids[start:]) == drafted:
            return ids[start:]
    return []


def _tails(target: Spelling, known: Sequence[int]) -> list[Sequence[int]]:
    """Ends of the known tokens, the longest first; none reaches over a special token."""
    tail = known[-_TAIL_COUNTS[0] :]
    specials = target.tokenizer.special_ids
    walls = [at for at, token in enumerate(tail) if token in specials]
    tail = tail[walls[-1] + 1 :] if walls else tail
    counts = [len(tail), *[count for count in _TAIL_COUNTS[1:] if count < len(tail)]]
    return [tail[len(tail) - count :] for count in counts]


def num_whole(spelled: bytes) -> int:
    """How many bytes there are before a last character that is not finished."""
    for back in range(1, min(4, len(spelled)) + 1):
        lead = spelled[-back]
        if not _is_continuation(lead):
            length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(spelled) - back if length > back else len(spelled)
    return len(spelled)


def _is_continuation(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lines have in common from the left."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
