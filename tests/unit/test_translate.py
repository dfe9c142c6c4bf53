"""A drafter of another vocabulary under `match`: what it reads, and that it says what it would."""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil

import numpy as np
import pytest
from translate_cases import CODE, opened, other_tokenizer, write_permuted

from forerun import Engine, SamplingParams, Speculation
from forerun.draft import Draw
from forerun.drafters import translate_reading
from forerun.drafters.guard import Guard
from forerun.drafters.lm import LM
from forerun.drafters.translate import Translated
from forerun.drafters.translate_reading import Readings
from forerun.drafters.translate_text import Spelling
from forerun.errors import CapacityError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.protocols import BLOCK_LEN, DraftRow, ForwardOutput, Sampler
from forerun.shapes.chain import Chain
from forerun.stats import Span


@pytest.fixture(scope="module")
def target():
    family = resolve_model(EMBEDDED_NAME)
    return Spelling(load_tokenizer(family, read_spec(family)))


@pytest.fixture(scope="module")
def other():
    return Spelling(other_tokenizer())


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("permuted")
    write_permuted(directory)
    return directory


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


# --- with real models ----------------------------------------------------------------------------


def test_given_its_own_tokens_renumbered_then_a_greedy_model_drafts_the_same(target, permuted):
    backend, own = opened(permuted)
    translated = Translated(Readings(backend, own, target.tokenizer, Span()), 5)
    same = LM(opened(resolve_model(EMBEDDED_NAME) / "drafters" / "lm")[0], 5, Span())
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

    assert num_equal > 40


def is_text(target, tokens):
    """Whole characters only, and no end in it."""
    try:
        target.join(tokens).decode()
    except UnicodeDecodeError:
        return False
    return all(target[token] for token in tokens)


def test_control_given_another_text_then_the_drafts_differ(target, permuted):
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
