"""Shared tokens of two vocabularies: which they are, and that a draft's law is what drew it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from translate_cases import CODE, opened, other_tokenizer, wrapped, write_permuted

from forerun.backends.prefill import chain_batch
from forerun.draft import Draw
from forerun.drafters.intersect import Intersected
from forerun.drafters.intersect_tokens import intersect
from forerun.drafters.lm import LM
from forerun.drafters.translate import Translated
from forerun.drafters.translate_reading import Readings
from forerun.drafters.translate_text import Retold, Spelling
from forerun.errors import IncompatibleSpeculation
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.noise import RoundNoise
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Growth, Sampler, Selection
from forerun.shapes.draw import draw_children
from forerun.shapes.tree import FixedTree
from forerun.stats import Span

SHAPES = {
    "chain": FixedTree((0, 1, 2, 3)),
    "widths": FixedTree.of_widths((3, 2, 1)),
    "late fork": FixedTree((0, 1, 2, 2, 3, 4, 4)),
}


@pytest.fixture(scope="module")
def target():
    family = resolve_model(EMBEDDED_NAME)
    return load_tokenizer(family, read_spec(family))


@pytest.fixture(scope="module")
def fewer(tmp_path_factory):
    """The embedded drafter renumbered, a tenth of its tokens taken out of reach."""
    directory = tmp_path_factory.mktemp("fewer")
    write_permuted(directory, share=0.9)
    return opened(directory)


def drafter_of(pair, target, draw, shape, least=0.0):
    backend, own = pair
    shared = intersect(own, backend.spec.vocab, target, target.vocab_size)
    growth = Growth(draw, parents=shape.parents, least=least)
    return Intersected(Readings(backend, own, target, Span()), shared, growth, 4)


def row(tokens, most=16, depth=16, sequence_id=1, **params):
    params = SamplingParams(**({"temperature": 0.9} | params))
    return DraftRow(sequence_id, tokens, 3, Sampler(params, 11), most, depth)


def law_alone(pair, target, tokens, path, params):
    """q' behind a path of drafted tokens, by a reader that never saw the text."""
    backend, own = pair
    shared = intersect(own, backend.spec.vocab, target, target.vocab_size)
    retold = Retold(Spelling(target), Spelling(own))
    retold.extend(tokens)
    line = retold.ids + [shared.own_of()[token] for token in path]
    table = np.arange(63, 31, -1, dtype=np.int32)[None]  # blocks no short sequence has
    logits = backend.forward(chain_batch(np.array(line, np.int32), 0, table, len(line))).logits
    last, zeros = logits[len(line) - 1 :], np.zeros(2, np.int32)
    own_params = shared.params(params)
    selection = Selection(
        np.zeros(1, np.int64), zeros[:1], [Sampler(own_params, 1)], zeros, zeros[:0]
    )
    return shared.restrict(backend.law(last, selection))[0][0]


# --- which tokens --------------------------------------------------------------------------------


def test_given_two_tokenizers_then_shared_tokens_are_those_of_equal_bytes(target):
    own = other_tokenizer()

    shared = intersect(own, own.vocab_size, target, target.vocab_size)

    pairs = list(zip(shared.own_ids.tolist(), shared.target_ids.tolist(), strict=True))
    texts = [(own.token_bytes(mine), target.token_bytes(yours)) for mine, yours in pairs]
    assert all(mine == yours for mine, yours in texts)
    assert (own.eos_ids[0], target.eos_ids[0]) in pairs
    mine = {own.token_bytes(token) for token in range(own.vocab_size)} - {b""}
    yours = {target.token_bytes(token) for token in range(target.vocab_size)} - {b""}
    assert len(pairs) == len(mine & yours) + 1  # and the two ends
    assert 0.5 < shared.share < 1.0


def test_given_nothing_in_common_then_it_is_refused_with_a_way_out(target):
    words = {f"word{number}": number for number in range(300)}
    fast = FastTokenizer(models.WordLevel(words, unk_token="word0"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()

    with pytest.raises(IncompatibleSpeculation, match=r"have 0 in common.*use rule match"):
        intersect(wrapped(fast), 300, target, target.vocab_size)


def test_given_bias_and_allowed_tokens_then_they_are_told_in_the_drafters_ids(target):
    own = other_tokenizer()
    shared = intersect(own, own.vocab_size, target, target.vocab_size)
    both, alone = target.encode("def")[0], target.encode(" generation")[0]
    assert both in shared.own_of()
    assert alone not in shared.own_of()
    params = SamplingParams(
        logit_bias={both: 2.0, alone: 3.0}, allowed_tokens=(both, alone), presence_penalty=1.0
    )

    told = shared.params(params)

    mine = own.encode("def")[0]
    assert told.logit_bias == {mine: 2.0}
    assert told.allowed_tokens == (mine,)
    assert not told.has_penalties


# --- the drafts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "shape"),
    [
        *[(Draw.WITHOUT_REPLACEMENT, shape) for shape in SHAPES],
        (Draw.SAMPLED, "late fork"),
        (Draw.TOP_AND_ONE, "widths"),
    ],
)
def test_given_rounds_then_every_law_is_the_restricted_one_and_drew_its_children(
    target, fewer, draw, shape
):
    drafter = drafter_of(fewer, target, draw, SHAPES[shape])
    line = target.encode(CODE)
    tokens = line[:12]
    drafter.admit(1, tokens)

    for at in range(4):
        draft = drafter.propose([row(tokens)])[0]
        check_laws(draft, tokens, fewer, target, draw)
        kept = draft.tree.path(len(draft.tree) - 1)[1 : 1 + at]
        tokens = [*tokens, *draft.tree.tokens[kept].tolist(), line[12 + at]]

    assert 0.5 < drafter.mass <= 1.0
    drafter.release(1)


def check_laws(draft, tokens, pair, target, draw):
    params = row(tokens).sampler.params
    noise = RoundNoise(11, params.choice, len(tokens))
    assert draft.draw is draw
    for index, node in enumerate(draft.expanded.tolist()):
        path = draft.tree.tokens[draft.tree.path(node)[1:]].tolist()
        law = draft.law[index]
        assert law.sum() == pytest.approx(1.0, abs=1e-5)
        if index % 4 == 0:
            assert np.array_equal(law, law_alone(pair, target, tokens, path, params))
        children = draft.tree.tokens[draft.tree.parents == node].tolist()
        num_draws = np.count_nonzero(draft.draws[index] >= 0) if draft.draws is not None else 0
        drawn = draw_children(law, num_draws or len(children), draw, node, noise)
        assert list(dict.fromkeys(drawn)) == children


def test_control_given_another_temperature_then_the_laws_differ(target, fewer):
    drafter = drafter_of(fewer, target, Draw.SAMPLED, SHAPES["chain"])
    tokens = target.encode(CODE)[:12]
    drafter.admit(1, tokens)

    draft = drafter.propose([row(tokens)])[0]
    drafter.release(1)

    other = law_alone(fewer, target, tokens, [], SamplingParams(temperature=0.8))
    assert not np.array_equal(draft.law[0], other)


def test_given_little_room_then_the_tree_is_cut_before_anything_is_drawn(target, fewer):
    drafter = drafter_of(fewer, target, Draw.WITHOUT_REPLACEMENT, SHAPES["widths"])
    tokens = target.encode(CODE)[:12]
    drafter.admit(1, tokens)
    drafter.admit(2, tokens)

    flat, small = drafter.propose([row(tokens, depth=1), row(tokens, 4, sequence_id=2)])
    whole = drafter.propose([row(tokens)])[0]
    for sequence_id in (1, 2):
        drafter.release(sequence_id)

    assert flat.tree.parents.tolist() == [-1, 0, 0, 0]
    assert small.num_drafted == 4
    assert whole.tree.tokens[:4].tolist() == flat.tree.tokens.tolist()


def test_given_a_bound_on_spread_then_only_laws_decide_where_a_draft_ends(target, fewer):
    tokens = target.encode(CODE)[:12]
    lengths = []
    for least in (0.0, 0.6, 1.0):
        drafter = drafter_of(fewer, target, Draw.SAMPLED, SHAPES["chain"], least)
        drafter.admit(1, tokens)
        draft = drafter.propose([row(tokens, temperature=1.0)])[0]
        drafter.release(1)
        lengths.append(draft.num_drafted)
        for law in draft.law if least and draft.law is not None else ():
            some = law[law > 0].astype(np.float64)
            assert 1 - np.sqrt(-0.2 * (some * np.log(some)).sum()) >= least

    assert lengths[0] == 4
    assert lengths[2] == 0


def test_given_all_tokens_shared_then_coupled_drafts_are_those_of_the_same_vocabulary(
    target, tmp_path
):
    write_permuted(tmp_path)
    coupled = drafter_of(opened(tmp_path), target, Draw.COUPLED, SHAPES["chain"])
    same = LM(opened(resolve_model(EMBEDDED_NAME) / "drafters" / "lm")[0], 4, Span())
    line = target.encode("".join(letter for letter in CODE if letter.isascii()))
    for drafter in (coupled, same):
        drafter.admit(1, line[:10])

    at, num_equal = 10, 0
    while at < 100:
        found, wanted = (d.propose([row(line[:at], 4)])[0].tree.tokens for d in (coupled, same))
        # A cut text may be told in other tokens than it came in: then contexts differ.
        if target.encode(target.decode(line[:at])) == line[:at]:
            assert found.tolist() == wanted.tolist()
            num_equal += 1
        kept = [w == t for w, t in zip(wanted.tolist()[1:], line[at:], strict=False)]
        at += [*kept, False].index(False) + 1

    assert num_equal > 40


def test_control_given_another_seed_then_coupled_drafts_differ(target, fewer):
    drafter = drafter_of(fewer, target, Draw.COUPLED, SHAPES["chain"])
    tokens = target.encode(CODE)[:12]
    drafter.admit(1, tokens)
    one = row(tokens)
    other = dataclasses.replace(one, sampler=Sampler(one.sampler.params, 12))

    drafts = [drafter.propose([each])[0].tree.tokens.tolist() for each in (one, other)]
    drafter.release(1)

    assert drafts[0] != drafts[1]


def test_given_both_kinds_of_drafter_on_one_model_then_each_request_has_its_own(target, fewer):
    backend, own = fewer
    readings = Readings(backend, own, target, Span())
    shared = intersect(own, backend.spec.vocab, target, target.vocab_size)
    coupled = Intersected(readings, shared, Growth(Draw.COUPLED), 4)
    drafter = Translated(readings, 4, coupled)
    tokens = target.encode(CODE)
    for sequence_id in (1, 2):
        drafter.admit(sequence_id, tokens[:12])

    rows = [row(tokens[:12], 4, temperature=0.0), row(tokens[:12], 4, sequence_id=2)]
    greedy, sampled = drafter.propose(rows)
    for sequence_id in (1, 2):
        drafter.release(sequence_id)

    assert (greedy.draw, sampled.draw) == (Draw.POINT, Draw.COUPLED)
    assert readings.ready(1, tokens[:12], 1) is None
