"""Drafters of another vocabulary under `match`: what they read, what it costs, what they say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from forerun import Engine, SamplingParams, Speculation
from forerun.backends.native import NativeBackend
from forerun.draft import Draw
from forerun.drafters import translate_reading, translate_text
from forerun.drafters.guard import Guard
from forerun.drafters.lm import LM
from forerun.drafters.translate import Translated
from forerun.drafters.translate_reading import Readings
from forerun.drafters.translate_text import (
    LEAST_TAIL,
    LONGEST_TAIL,
    Retold,
    Spelling,
    continuation,
    num_whole,
)
from forerun.errors import CapacityError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.protocols import BLOCK_LEN, DraftRow, ForwardOutput, Sampler
from forerun.shapes.chain import Chain
from forerun.stats import Span

CODE = '''def merge(left, right):
    """Merge two sorted lists; naïve, größer als nötig — 並べ替え."""
    merged = []
    while left and right:
        if left[0] <= right[0]:
            merged.append(left.pop(0))
        else:
            merged.append(right.pop(0))
    return merged + left + right


class Queue:
    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        self._items.append(item)

    def pop(self):
        return self._items.pop(0)
'''


def other_tokenizer(vocab=420, end=0):
    """A byte-level BPE with other merges and another pre-tokenizer than the embedded one."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["</s>", "<|start|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CODE], trainer)
    return wrapped(tokenizer, end)


def wrapped(fast, *eos_ids):
    added = fast.get_added_tokens_decoder()
    specials = frozenset(i for i, token in added.items() if token.special)
    names = {i: token.content for i, token in added.items()}
    size = fast.get_vocab_size(with_added_tokens=True)
    return Tokenizer(fast, eos_ids, size, True, specials, names, None)


@pytest.fixture(scope="module")
def family():
    return resolve_model(EMBEDDED_NAME)


@pytest.fixture(scope="module")
def target(family):
    return Spelling(load_tokenizer(family, read_spec(family)))


@pytest.fixture(scope="module")
def other():
    return Spelling(other_tokenizer())


def streamed(retold, tokens, seed=0):
    """The tokens in random portions, as rounds bring them."""
    rng = random.Random(seed)
    at = 0
    while at < len(tokens):
        size = rng.randint(1, 5)
        yield retold.extend(tokens[at : at + size])
        at += size


# --- the text ------------------------------------------------------------------------------------


def test_given_text_in_portions_then_it_is_told_as_the_whole_would_be(target, other):
    retold = Retold(target, other)

    list(streamed(retold, target.encode(CODE)))

    assert other.join(retold.ids).decode() == CODE
    assert retold.ids == other.encode(CODE)


def test_control_given_no_known_text_before_each_portion_then_it_is_told_otherwise(target, other):
    tokens = target.encode(CODE)

    apart = [
        told
        for token in tokens
        for told in other.encode(target.join([token]).decode(errors="replace"))
    ]

    assert apart != other.encode(CODE)


def test_given_portions_then_what_stays_and_what_goes_is_said_truly(target, other):
    retold, line = Retold(target, other), []

    for num_same, removed in streamed(retold, target.encode(CODE)):
        assert line[num_same:] == removed
        assert line[:num_same] == retold.ids[:num_same]
        line = list(retold.ids)


def test_given_single_bytes_then_half_characters_are_held_back(other):
    source = Spelling(wrapped(byte_tokenizer()))
    ids = {source[i]: i for i in range(256)}
    retold = Retold(source, other)

    for byte, held in zip("né並".encode(), (0, 1, 0, 1, 2, 0), strict=True):
        retold.extend([ids[bytes([byte])]])
        assert len(retold.held) == held
        assert other.join(retold.half()) == retold.held

    assert other.join(retold.ids).decode() == "né並"


def test_given_bytes_that_are_no_text_then_the_rest_is_still_told(other):
    source = Spelling(wrapped(byte_tokenizer()))
    ids = {source[i]: i for i in range(256)}
    retold = Retold(source, other)

    for byte in b"good \xff\xfe bad \xe4 end":
        retold.extend([ids[bytes([byte])]])

    assert other.join(retold.ids).decode() == "good �� bad � end"


def test_given_special_tokens_then_the_drafter_has_its_own_or_none(target, other):
    end = target.tokenizer.eos_ids[0]
    retold = Retold(target, other)

    retold.extend([*target.encode("return x"), end, *target.encode("def f")])

    assert retold.ids == [*other.encode("return x"), 0, *other.encode("def f")]


def test_given_a_long_text_then_a_round_encodes_its_end_only(target, other):
    retold = Retold(target, other)
    retold.extend(target.encode(CODE * 60))
    assert retold.num_encoded_bytes == len((CODE * 60).encode())

    costs = []
    for token in target.encode(CODE):
        before = retold.num_encoded_bytes
        retold.extend([token])
        costs.append(retold.num_encoded_bytes - before)

    assert max(costs) < 8 * LEAST_TAIL
    assert sum(costs) / len(costs) < 2 * LEAST_TAIL
    assert retold.ids == other.encode(CODE * 61)


def test_given_one_endless_word_then_a_round_still_costs_a_bounded_tail(target, other):
    retold = Retold(target, other)
    words = target.encode("merged" * 2000)
    retold.extend(words)
    start = retold.num_encoded_bytes

    for token in words[:50]:
        retold.extend([token])

    longest = 4 * LONGEST_TAIL  # every tail that is tried, and the edges of tokens
    assert (retold.num_encoded_bytes - start) / 50 < longest
    assert other.join(retold.ids) == target.join([*words, *words[:50]])


def test_control_given_tails_without_end_then_the_bound_breaks(target, other, monkeypatch):
    monkeypatch.setattr(translate_text, "LEAST_TAIL", 1 << 30)
    retold = Retold(target, other)
    retold.extend(target.encode(CODE * 60))
    start = retold.num_encoded_bytes

    retold.extend(target.encode("x"))

    assert retold.num_encoded_bytes - start > 8 * LEAST_TAIL


# --- back into the target's tokens ---------------------------------------------------------------


def test_given_a_known_text_then_a_draft_is_told_as_its_continuation(target):
    tokens = target.encode(CODE)

    for cut in range(1, len(tokens) - 8):
        drafted = target.join(tokens[cut : cut + 8])
        told = continuation(target, tokens[:cut], drafted)
        assert target.join(told) == drafted[: num_whole(drafted)] or told == []
        if (
            target.encode(target.join(tokens[: cut + 8]).decode(errors="replace"))
            == tokens[: cut + 8]
        ):
            assert told == tokens[cut : cut + 8]


def test_given_known_tokens_that_are_no_canonical_encoding_then_the_draft_fits_behind(target):
    single = {target[i]: i for i in range(target.tokenizer.vocab_size)}
    known = [*target.encode("def "), *[single[bytes([byte])] for byte in b"merge(left"]]
    assert known != target.encode("def merge(left")

    assert continuation(target, known, b", right):") == target.encode(", right):")


def test_given_a_draft_that_would_change_the_known_tokens_then_nothing_is_proposed(target):
    known = target.encode("    ret")
    assert target.encode("    return")[: len(known)] != known

    assert continuation(target, known, b"urn") == []


def test_given_half_a_character_at_the_end_then_it_is_cut(target):
    known = target.encode("x = '")
    told = continuation(target, known, "é並".encode()[:-1])

    assert target.join(told).decode() == "é"


def test_given_a_special_token_just_before_then_a_draft_begins_a_text(target):
    known = [*target.encode("pass"), *target.tokenizer.eos_ids]

    assert continuation(target, known, b"import os") == target.encode("import os")


@pytest.mark.parametrize("text", ["", "a", "é", "並", "𝄞", "a𝄞"])
def test_given_any_cut_of_a_text_then_whole_characters_are_counted(text):
    data = text.encode()
    for cut in range(len(data) + 1):
        whole = data[: num_whole(data[:cut])]
        assert whole.decode() == data[:cut].decode(errors="ignore")


# --- the drafter ---------------------------------------------------------------------------------


class Script:
    """A backend whose next token is a hash of the text in its K/V, which it keeps for real."""

    numerics, exactness = "script", "bits"

    def __init__(self, vocab, num_blocks=64, limit=1024):
        self.spec = type("Spec", (), {"vocab": vocab, "max_position": limit})
        self.num_blocks = num_blocks
        self.memory = np.full(num_blocks * BLOCK_LEN, -1)
        self.num_read = []

    def place(self, table, position):
        return int(table[position // BLOCK_LEN]) * BLOCK_LEN + position % BLOCK_LEN

    def forward(self, batch):
        return ForwardOutput(None)

    def commit(self, batch, paths):
        for row, path in enumerate(paths):
            for offset, node in enumerate(path):
                place = self.place(batch.block_table[row], int(batch.committed[row]) + offset)
                self.memory[place] = batch.token_ids[batch.row_starts[row] + node]

    def propose(self, plan):
        lines = []
        starts = plan.catch_up_starts.tolist()
        for row, (start, end) in enumerate(itertools.pairwise(starts)):
            table, length = plan.block_table[row], int(plan.committed[row])
            self.num_read.append(end - start)
            fresh, line = plan.catch_up[start:end].tolist(), []
            for _step in range(plan.num_steps):
                for token in fresh:
                    self.memory[self.place(table, length)] = token
                    length += 1
                text = [self.memory[self.place(table, at)] for at in range(length)]
                fresh = [following(text, self.spec.vocab)]
                line += fresh
            lines.append(line)
        return np.array(lines, np.int32)

    def close(self):
        self.closed = True


FIRST_WORD = 258  # tokens before it are special, or single bytes


def following(text, vocab):
    value = 17
    for token in text:
        value = (value * 31 + int(token) + 1) % 100_003
    return FIRST_WORD + value % (vocab - FIRST_WORD)


def row(tokens, most=4, sequence_id=1, **params):
    return DraftRow(sequence_id, tokens, 3, Sampler(SamplingParams(**params), 1), most)


def told_alone(target, other, backend, tokens, num_drafted):
    """What a drafter says that reads this text for the first time."""
    drafter = Translated(
        Readings(Script(backend.spec.vocab), other.tokenizer, target.tokenizer, Span()), num_drafted
    )
    drafter.admit(1, tokens)
    return drafter.propose([row(tokens, num_drafted)])[0].tree.tokens.tolist()


def test_given_rounds_then_every_draft_is_that_of_a_fresh_reader(target, other):
    backend = Script(other.tokenizer.vocab_size)
    drafter = Translated(Readings(backend, other.tokenizer, target.tokenizer, Span()), 4)
    line = target.encode(CODE)
    tokens = line[:20]
    drafter.admit(1, tokens)

    rng, num_drafted = random.Random(3), 0
    for _ in range(40):
        draft = drafter.propose([row(tokens)])[0]
        assert draft.draw is Draw.POINT
        drafted = draft.tree.tokens.tolist()[1:]
        assert draft.tree.tokens.tolist() == told_alone(target, other, backend, tokens, 4)
        num_drafted += len(drafted)
        tokens = [*tokens, *drafted[: rng.randint(0, len(drafted))], rng.choice(line)]

    assert num_drafted > 40
    assert max(backend.num_read) < 24  # K/V of what did not change is read once


def test_control_given_stale_kv_then_drafts_differ(target, other, monkeypatch):
    def forgetful(self, tokens):
        self.text.extend(tokens[self.num_told :])
        self.num_told = len(tokens)
        self.num_kept = min(self.num_kept, len(self.text.ids) - 1)

    backend = Script(other.tokenizer.vocab_size)
    drafter = Translated(Readings(backend, other.tokenizer, target.tokenizer, Span()), 4)
    tokens = target.encode(CODE)[:20]
    drafter.admit(1, tokens)
    differ = 0
    for token in target.encode(CODE)[20:60]:
        alone = told_alone(target, other, backend, tokens, 4)
        with monkeypatch.context() as patch:
            patch.setattr(translate_reading.Reading, "tell", forgetful)
            differ += drafter.propose([row(tokens)])[0].tree.tokens.tolist() != alone
        tokens = [*tokens, token]

    assert differ > 0


def test_given_several_rows_then_each_has_its_own_text_and_limit(target, other):
    backend = Script(other.tokenizer.vocab_size)
    drafter = Translated(Readings(backend, other.tokenizer, target.tokenizer, Span()), 4)
    texts = {1: target.encode(CODE)[:30], 2: target.encode("x = 1\n"), 3: target.encode("pass")}
    for sequence_id, tokens in texts.items():
        drafter.admit(sequence_id, tokens)

    drafts = drafter.propose(
        [row(texts[1]), row(texts[2], 2, sequence_id=2), row(texts[3], 0, sequence_id=3)]
    )

    assert drafts[0].tree.tokens.tolist() == told_alone(target, other, backend, texts[1], 4)
    assert drafts[1].num_drafted <= 2
    assert drafts[2].num_drafted == 0


def test_given_a_prompt_beyond_its_context_then_both_numbers_are_named(target, other):
    backend = Script(other.tokenizer.vocab_size, limit=32)
    drafter = Translated(Readings(backend, other.tokenizer, target.tokenizer, Span()), 4)

    with pytest.raises(CapacityError, match=r"prompt has \d+ tokens .* limit is 32"):
        drafter.admit(1, target.encode(CODE))

    assert drafter.propose([row(target.encode(CODE))])[0].num_drafted == 0


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = FastTokenizer(models.BPE({char: rank for rank, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


# --- with real models ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def permuted(family, tmp_path_factory):
    """The embedded drafter with its tokens renumbered: another vocabulary of known quality."""
    source, out = family / "drafters" / "lm", tmp_path_factory.mktemp("permuted")
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    place = np.random.default_rng(5).permutation(config["vocab_size"])
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: int(place[at]) for token, at in vocab.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = int(place[token["id"]])
    config |= {"eos_token_id": int(place[config["eos_token_id"]])}
    data = bytearray((source / "model.safetensors").read_bytes())
    permute_rows(data, "model.embed_tokens.weight", np.argsort(place))
    (out / "model.safetensors").write_bytes(data)
    (out / "config.json").write_text(json.dumps(config))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(source / "tokenizer_config.json", out)
    return out


def permute_rows(data, name, order):
    """Reorder the rows of one 16-bit tensor in the bytes of a safetensors file."""
    header_len = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_len])[name]
    start, end = (8 + header_len + offset for offset in entry["data_offsets"])
    rows = np.frombuffer(bytes(data[start:end]), np.uint16).reshape(entry["shape"])
    data[start:end] = rows[order].tobytes()


def opened(directory):
    checkpoint = open_checkpoint(directory)
    backend = NativeBackend(checkpoint, cores=None, num_blocks=64)
    return backend, load_tokenizer(directory, checkpoint.spec)


def test_given_its_own_tokens_renumbered_then_a_greedy_model_drafts_the_same(
    family, target, permuted
):
    backend, own = opened(permuted)
    translated = Translated(Readings(backend, own, target.tokenizer, Span()), 5)
    same = LM(opened(family / "drafters" / "lm")[0], 5, Span())
    tokens = target.encode(CODE)
    assert own.encode(CODE) != tokens
    for drafter in (translated, same):
        drafter.admit(1, tokens[:10])

    at, num_equal = 10, 0
    while at < len(tokens):
        found = translated.propose([row(tokens[:at], 5)])[0].tree.tokens.tolist()
        wanted = same.propose([row(tokens[:at], 5)])[0].tree.tokens.tolist()
        assert found == wanted[: len(found)]
        if is_text(target, [*tokens[:at], *wanted[1:]]):
            assert found == wanted
            num_equal += 1
        kept = [w == t for w, t in zip(wanted[1:], tokens[at:], strict=False)]
        at += [*kept, False].index(False) + 1

    assert num_equal > 80


def is_text(target, tokens):
    """Whole characters only, and no end in it."""
    try:
        target.join(tokens).decode()
    except UnicodeDecodeError:
        return False
    return all(target[token] for token in tokens)


def test_control_given_another_text_then_the_drafts_differ(family, target, permuted):
    backend, own = opened(permuted)
    translated = Translated(Readings(backend, own, target.tokenizer, Span()), 5)
    tokens = target.encode(CODE)
    drafts = []
    for start in (0, 5):
        translated.admit(1, tokens[start:20])
        line = [translated.propose([row(tokens[start:at], 5)])[0] for at in range(20, 60, 4)]
        drafts.append([draft.tree.tokens.tolist() for draft in line])
        translated.release(1)

    assert drafts[0] != drafts[1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_given_a_really_different_tokenizer_then_the_text_stays_the_same(
    temperature, tiny_checkpoint_dir, tmp_path
):
    other = other_tokenizer()
    tiny = tiny_checkpoint_dir("qwen3", 4, vocab_size=other.vocab_size, eos_token_id=0, scale=0.1)
    shutil.copytree(tiny, tmp_path / "drafter")
    other.fast.save(str(tmp_path / "drafter" / "tokenizer.json"))
    backend, own = opened(tmp_path / "drafter")
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40, ignore_eos=True)

    with Engine(EMBEDDED_NAME, speculate=Speculation("none"), threads=1) as engine:
        plain = engine.generate(["def merge(left, right):\n"], params)[0]
        drafter = Translated(Readings(backend, own, engine._tokenizer, Span()), 4)
        use(engine, drafter)
        drafted = engine.generate(["def merge(left, right):\n"], params)[0]
        assert engine._parts.drafter.num_failures == 0

    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.num_drafted > 0


def use(engine, drafter):
    shape = Chain(4)
    guard = Guard(drafter, shape, engine._parts.target.spec.vocab)
    engine._parts = dataclasses.replace(engine._parts, drafter=guard, shape=shape)
