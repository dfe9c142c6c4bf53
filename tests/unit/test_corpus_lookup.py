"""Lookup over a corpus: the index is right, kept, renewed when it must be, and nobody's text."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from forerun.draft import Commit
from forerun.drafters import corpus_files
from forerun.drafters.corpus import END_OF_FILE, SORTED_LEN, Corpus, sorted_suffixes
from forerun.drafters.corpus_files import FOLDER, open_corpus, tokenizer_fingerprint
from forerun.drafters.lookup import Lookup
from forerun.drafters.suffixes import MAX_DEPTH
from forerun.errors import ModelError
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler


def corpus_of(*texts):
    tokens = np.array([one for text in texts for one in (*text, END_OF_FILE)], np.int32)
    return Corpus(tokens, sorted_suffixes(tokens))


def row(tokens, most=8, sequence_id=1, **limits):
    return DraftRow(sequence_id, tokens, 1, Sampler(SamplingParams(), 1), most, **limits)


def proposed(lookup, tokens, most=8, **limits):
    lookup.admit(1, tokens)
    draft = lookup.propose([row(tokens, most, **limits)])[0]
    lookup.release(1)
    return draft.tree.tokens.tolist()[1:]


def encode(text):
    return list(text.encode())


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "one.txt").write_text("the quick brown fox")
    (tmp_path / "deeper" / "two.txt").write_text("jumps over the lazy dog")
    return tmp_path


def opened(directory, tokenizer="t", **limits):
    """The corpus, and what was said while it was made."""
    said = []
    return open_corpus(directory, encode, tokenizer, said.append, **limits), said


@pytest.mark.parametrize("num_kinds", [1, 2, 5, 300])
def test_given_any_text_then_suffixes_are_in_order_and_none_is_missing(num_kinds):
    rng = random.Random(num_kinds)
    texts = [[rng.randrange(num_kinds) for _ in range(num)] for num in (70, 1, 0, 90)]
    tokens = [one for text in texts for one in (*text, END_OF_FILE)]

    order = sorted_suffixes(np.array(tokens, np.int32)).tolist()

    places = [place for place, token in enumerate(tokens) if token != END_OF_FILE]
    assert order == sorted(places, key=lambda place: (tokens[place : place + SORTED_LEN], place))


@pytest.mark.parametrize("num_kinds", [2, 5, 40])
def test_given_any_text_then_matches_and_counts_are_those_of_a_plain_search(num_kinds):
    rng = random.Random(num_kinds)
    texts = [[rng.randrange(num_kinds) for _ in range(num)] for num in (200, 3, 400)]
    corpus = corpus_of(*texts)
    for _ in range(60):
        source = texts[2] if rng.random() < 0.7 else texts[0]
        at = rng.randrange(len(source) - 20)
        tail = source[at : at + 20]
        reading = corpus.read(tail)
        matches = corpus.matches(reading)
        assert len(reading) - 1 == longest(texts, tail)
        numbers = [len(places_of(texts, tail[20 - n :])) for n in range(MAX_DEPTH + 2)]
        wanted = [n for n in range(MAX_DEPTH - 1, 0, -1) if numbers[n] > numbers[n + 1]]
        assert [length for length, _ in matches if length < MAX_DEPTH] == wanted
        for length, run in matches:
            assert {
                token: probability for token, probability, _ in corpus.children(run)
            } == pytest.approx(followers(texts, tail[-length:]))


def longest(texts, tail):
    return max(n for n in range(MAX_DEPTH + 1) if places_of(texts, tail[len(tail) - n :]))


def places_of(texts, run):
    return [
        (text, at)
        for text in texts
        for at in range(len(text) - len(run) + 1)
        if text[at : at + len(run)] == run
    ]


def followers(texts, run):
    """The share of each token among what followed a run, ends of files counted, unlikely ones
    left out."""
    places = places_of(texts, run)
    after = [text[at + len(run)] for text, at in places if at + len(run) < len(text)]
    shares = {token: after.count(token) / len(places) for token in after}
    return {token: share for token, share in shares.items() if share >= 0.1}


def test_given_tokens_one_by_one_then_the_reading_is_the_same():
    rng = random.Random(4)
    text = [rng.randrange(4) for _ in range(300)]
    corpus = corpus_of(text)
    reading = None
    for end in range(1, 80):
        reading = corpus.read([text[end - 1]], reading)
        assert reading == corpus.read(text[:end])


def test_given_text_that_only_the_corpus_knows_then_it_is_proposed():
    corpus = corpus_of(range(100, 140))

    assert proposed(Lookup(corpus), [1, 2, 110, 111, 112]) == [113, 114, 115]
    assert proposed(Lookup(), [1, 2, 110, 111, 112]) == []  # control


def test_given_the_end_of_a_file_then_nothing_is_proposed_beyond():
    corpus = corpus_of([1, 2, 3, 4, 5], [6, 7, 8, 9])

    assert proposed(Lookup(corpus), [2, 3, 4]) == [5]
    assert proposed(Lookup(corpus), [4, 5, 6]) == [7]


def test_given_both_know_then_the_better_score_wins_and_the_own_text_of_equals():
    own = [1, 2, 3, 50, 9, 9, 1, 2, 3]

    assert proposed(Lookup(corpus_of([1, 2, 3, 60])), own)[0] == 50
    assert proposed(Lookup(corpus_of([9, 1, 2, 3, 60, 61, 62, 63])), own)[0] == 60


def test_given_several_continuations_then_counts_decide_and_a_tree_has_them_all():
    corpus = corpus_of(*[[1, 2, 3, 7, 8, 9]] * 3, *[[1, 2, 3, 5, 6, 4]] * 2, [1, 2, 3])

    assert proposed(Lookup(corpus), [0, 1, 2, 3]) == [7, 8, 9]
    lookup = Lookup(corpus, width=3)
    lookup.admit(1, [0, 1, 2, 3])
    draft = lookup.propose([row([0, 1, 2, 3])])[0]

    assert draft.tree.tokens.tolist() == [3, 7, 8, 9, 5, 6, 4]
    assert draft.tree.parents.tolist() == [-1, 0, 1, 2, 0, 4, 5]
    np.testing.assert_allclose(draft.scores[1:], [1 / 2] * 3 + [1 / 3] * 3, rtol=1e-6)


def test_given_commits_then_the_corpus_is_followed_and_asked_ahead():
    lookup = Lookup(corpus_of(range(100, 140)))
    lookup.admit(1, [1, 2])
    lookup.observe(1, Commit((120, 121)))

    assert lookup.propose([row([1, 2, 120, 121])])[0].tree.tokens.tolist() == [121, 122, 123]
    ahead = lookup.propose([row([1, 2, 120, 121, 122])])[0]
    assert ahead.tree.tokens.tolist() == [122, 123, 124, 125]
    assert lookup.propose([row([1, 2, 120, 121], max_depth=1)])[0].num_drafted == 1


def test_given_another_request_then_its_text_is_never_proposed():
    lookup = Lookup(corpus_of(range(100, 140)))
    lookup.admit(1, [1, 2, 3, 4, 5, 6])
    lookup.admit(2, [1, 2, 3])

    assert lookup.propose([row([1, 2, 3], sequence_id=2)])[0].num_drafted == 0
    lookup.observe(1, Commit((1, 2, 3)))
    own = lookup.propose([row([1, 2, 3, 4, 5, 6, 1, 2, 3])])[0]
    assert own.num_drafted == 3  # control: its own text is
    assert lookup.propose([row([1, 2, 3], sequence_id=2)])[0].num_drafted == 0


def test_given_a_directory_then_all_its_texts_are_read_and_nothing_else(directory):
    (directory / "image.bin").write_bytes(b"the quick\0red")
    (directory / "latin.txt").write_bytes("the quick \xe9".encode("latin-1"))
    (directory / ".hidden").write_text("the quick green")
    (directory / "link.txt").symlink_to(directory / "one.txt")

    corpus, _ = opened(directory)

    assert len(corpus) == len("the quick brown fox") + len("jumps over the lazy dog")
    assert bytes(proposed(Lookup(corpus), encode("xx jumps o"), most=16)) == b"ver the"


def test_given_an_index_then_it_is_mapped_and_nothing_is_read_again(directory):
    first, said = opened(directory)
    second, said_again = opened(directory)

    assert said
    assert not said_again
    assert isinstance(second._tokens.base, np.memmap)
    np.testing.assert_array_equal(first._suffixes, second._suffixes)


@pytest.mark.parametrize("change", ["content", "time", "new file", "lost file", "tokenizer"])
def test_given_a_change_then_the_index_is_made_again_and_the_old_one_removed(directory, change):
    opened(directory)
    path, tokenizer = directory / "one.txt", "t"
    if change == "content":
        path.write_text("the quick brown cat sat")
    elif change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "new file":
        (directory / "three.txt").write_text("abc")
    elif change == "lost file":
        path.unlink()
    else:
        tokenizer = "u"

    _, said = opened(directory, tokenizer)

    assert said
    assert len(list((directory / FOLDER).glob("*.npy"))) == 2
    assert not opened(directory, tokenizer)[1]


@pytest.mark.parametrize("name", ["index.json", "tokens", "suffixes"])
def test_given_a_damaged_index_then_it_is_made_again(directory, name):
    opened(directory)
    path = next((directory / FOLDER).glob(f"*{name}*"))
    path.write_bytes(path.read_bytes()[:40])

    corpus, said = opened(directory)

    assert said
    assert proposed(Lookup(corpus), encode("a quick b"))
    assert not opened(directory)[1]


KILLED = """
import os, sys
from pathlib import Path
from forerun.drafters import corpus_files
num_left = int(sys.argv[2])
replace = Path.replace
def dying(self, target):
    global num_left
    if num_left == 0:
        os._exit(9)
    num_left -= 1
    return replace(self, target)
Path.replace = dying
corpus_files.open_corpus(Path(sys.argv[1]), lambda text: list(text.encode()), "t", lambda _: None)
"""


@pytest.mark.parametrize("num_in_place", [0, 1, 2])
def test_given_a_kill_while_writing_then_there_is_no_index_or_the_one_before(
    directory, num_in_place
):
    for is_first in (True, False):
        command = [sys.executable, "-c", KILLED, str(directory), str(num_in_place)]
        assert subprocess.run(command, check=False).returncode == 9
        index = directory / FOLDER / "index.json"
        if is_first:
            assert not index.exists()
            (directory / "one.txt").write_text("another content")
            opened(directory)
        else:
            name = json.loads(index.read_text())["name"]
            assert len(list((directory / FOLDER).glob(f"{name}.*.npy"))) == 2
        (directory / "one.txt").write_text("yet another content" * num_in_place)

    assert opened(directory)[1]
    assert not opened(directory)[1]


def test_given_a_directory_that_cannot_be_written_then_the_index_stays_in_memory(
    directory, monkeypatch, caplog
):
    def refused(*_args, **_kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(corpus_files, "_save", refused)

    corpus, _ = opened(directory)

    assert proposed(Lookup(corpus), encode("a quick b"))
    assert "made again" in caplog.text


def test_given_too_much_or_no_text_then_both_are_said(directory, tmp_path):
    with pytest.raises(ModelError, match="more than 30 bytes of text"):
        opened(directory, max_text_bytes=30)
    assert opened(directory, max_text_bytes=42)  # control: just enough
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="no UTF-8 text"):
        opened(empty)
    with pytest.raises(ModelError, match="is not a directory"):
        opened(empty / "missing")


def test_given_a_model_then_its_tokenizer_has_a_fingerprint_of_its_own(tmp_path):
    prints = []
    for text in ("a", "b", "a"):
        (tmp_path / "tokenizer.json").write_text(text)
        prints.append(tokenizer_fingerprint(tmp_path))

    assert prints[0] == prints[2] != prints[1]
