"""The nested drafter: whatever drafts for its model, it proposes what its model would say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from forerun import Engine, SamplingParams, Speculation
from forerun.backends import open_backend
from forerun.draft import Commit, Draft, Draw
from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.nested import LONGEST_CATCH_UP, InnerDecoder, Nested
from forerun.drafters.plain import Plain
from forerun.errors import CapacityError, DrafterError
from forerun.models.weights import open_checkpoint
from forerun.options import EngineOptions
from forerun.protocols import BLOCK_LEN, DraftRow, ForwardOutput, Sampler
from forerun.rules.match import Match
from forerun.shapes.chain import Chain
from forerun.shapes.tree import Tree
from forerun.stats import Span
from forerun.tree import TokenTree

VOCAB, STEPS = 97, 4


class Spec:
    vocab = VOCAB
    max_position = 256


class Script:
    """A backend whose token after a text is a hash of the text as its K/V has it.

    It keeps K/V for real: which token lies at which physical place. So a wrong committed length or
    a wrong block table gives another token. One in `wrong_every` tokens differs from the hash.
    """

    spec = Spec
    exactness = "bits"

    def __init__(self, num_blocks=16, wrong_every=1 << 30):
        self.num_blocks = num_blocks
        self.wrong_every = wrong_every
        self.memory = np.full(num_blocks * BLOCK_LEN, -1)
        self.num_passes = 0
        self.selections = []
        self.is_closed = False

    def place(self, table, position):
        return int(table[position // BLOCK_LEN]) * BLOCK_LEN + position % BLOCK_LEN

    def kept(self, table, length):
        return [int(self.memory[self.place(table, at)]) for at in range(length)]

    def forward(self, batch):
        self.num_passes += 1
        choices = []
        for row, (start, end) in enumerate(itertools.pairwise(batch.row_starts.tolist())):
            tree = TokenTree(batch.token_ids[start:end], batch.parents[start:end])
            self.place(batch.block_table[row], int(batch.committed[row]) + end - start - 1)
            before = self.kept(batch.block_table[row], int(batch.committed[row]))
            for node in range(len(tree)):
                text = before + tree.tokens[tree.path(node)].tolist()
                choices.append(following(text, self.wrong_every))
        return ForwardOutput(np.array(choices, np.int32)[batch.logit_nodes])

    def select(self, logits, selection):
        self.selections.append(selection)
        return logits

    def commit(self, batch, paths):
        for row, path in enumerate(paths):
            for offset, node in enumerate(path):
                place = self.place(batch.block_table[row], int(batch.committed[row]) + offset)
                self.memory[place] = batch.token_ids[batch.row_starts[row] + node]

    def propose(self, plan):
        lines, starts = [], plan.catch_up_starts.tolist()
        for row in range(len(plan.committed)):
            table, length = plan.block_table[row], int(plan.committed[row])
            fresh, line = plan.catch_up[starts[row] : starts[row + 1]].tolist(), []
            assert fresh
            for _step in range(plan.num_steps):
                for token in fresh:
                    self.memory[self.place(table, length)] = token
                    length += 1
                fresh = [following(self.kept(table, length), self.wrong_every)]
                line += fresh
            lines.append(line)
        return np.array(lines, np.int32)

    def close(self):
        self.is_closed = True


def following(text, wrong_every=1 << 30):
    value = 17
    for token in text:
        value = (value * 31 + int(token) + 1) % 1009
    return (value + (value % wrong_every == 0)) % VOCAB


def row(tokens, sequence_id=1, most=STEPS, **limits):
    return DraftRow(sequence_id, tokens, 3, Sampler(SamplingParams(), 1), most, **limits)


def expected(tokens, num=STEPS):
    line = list(tokens)
    for _ in range(num):
        line.append(following(line))
    return line[len(tokens) - 1 :]


def small_model(wrong_every):
    return LM(Script(wrong_every=wrong_every), STEPS, Span())


INNER = {
    "plain": (Plain, Chain(4)),
    "lookup": (Lookup, Chain(4)),
    "lookup tree": (lambda: Lookup(width=3), Tree(6)),
    "perfect lm": (lambda: small_model(1 << 30), Chain(4)),
    "lm": (lambda: small_model(3), Chain(4)),
    "lm on a short chain": (lambda: small_model(3), Chain(2)),
    "nested": (lambda: nested("lm", wrong_every=4), Chain(4)),
    "nested twice": (lambda: nested("nested", wrong_every=5), Chain(3)),
}


def nested(inner="lm", middle=None, **script):
    drafter, shape = INNER[inner]
    decoder = InnerDecoder(middle or Script(**script), drafter(), shape, Match())
    return Nested(decoder, STEPS, Span())


def follow(drafter, num_kept, num_others=1, num_rounds=6):
    """Rounds that keep so many drafted tokens, then others; whether each draft was right."""
    tokens, are_right = [5, 6, 7], []
    drafter.admit(1, tokens)
    for at in range(num_rounds):
        draft = drafter.propose([row(tokens)])[0]
        are_right.append(draft.tree.tokens.tolist() == expected(tokens))
        assert draft.draw is Draw.COUPLED
        kept = draft.tree.tokens.tolist()[1 : 1 + num_kept]
        others = [following([*tokens, *kept]) if num_kept == STEPS else 80 + at] * num_others
        tokens += [*kept, *others]
        drafter.observe(1, Commit((*kept, *others)))
    return are_right


@pytest.mark.parametrize("num_kept", range(STEPS + 1))
@pytest.mark.parametrize("inner", INNER)
def test_given_any_inner_drafter_then_the_proposal_is_what_its_model_says(inner, num_kept):
    drafter = nested(inner)

    assert all(follow(drafter, num_kept))
    drafter.release(1)
    assert all(follow(drafter, num_kept, num_others=3))


def test_control_given_its_k_v_is_not_taken_back_then_proposals_are_wrong(monkeypatch):
    def keep_all(self, row, progress):
        progress.text = list(row.tokens)
        progress.num_read = min(progress.num_read, len(row.tokens) - 1)

    monkeypatch.setattr(Nested, "_take_back", keep_all)

    assert not all(follow(nested("plain"), 1, num_others=2))


def test_control_given_the_inner_k_v_is_not_taken_back_then_it_drafts_for_another_text(
    monkeypatch,
):
    usual, stale = Script(), Script()
    follow(nested("lm on a short chain", usual), 0, num_others=4)
    monkeypatch.setattr("forerun.drafters.nested.rewind", lambda *_: None)

    follow(nested("lm on a short chain", stale), 0, num_others=4)

    assert len(stale.selections) > len(usual.selections)  # the model is right, later


def test_given_a_good_inner_drafter_then_passes_of_the_model_are_saved():
    scripts = {inner: Script() for inner in ("plain", "lm", "perfect lm")}
    for inner, script in scripts.items():
        assert all(follow(nested(inner, middle=script), 2))

    passes = {
        inner: script.num_passes - 1 for inner, script in scripts.items()
    }  # one read 3 tokens
    assert passes["perfect lm"] == 6
    assert passes["plain"] == 6 * STEPS
    assert 6 < passes["lm"] < 6 * STEPS


def test_given_several_rows_then_each_has_its_own_text_and_limit():
    drafter = nested("lm")
    texts = {1: [5, 6, 7], 2: [8] * 40, 3: [9, 9], 4: [1, 2]}
    for sequence_id, tokens in texts.items():
        drafter.admit(sequence_id, tokens)
    for _ in range(3):
        drafts = drafter.propose(
            [
                row(texts[1]),
                row(texts[2], 2, most=2),
                row(texts[3], 3, most=0),
                row(texts[4], 4, max_depth=1),
            ]
        )
        for num, (sequence_id, tokens) in zip((4, 2, 0, 1), texts.items(), strict=True):
            assert drafts[sequence_id - 1].tree.tokens.tolist() == expected(tokens, num)
            tokens += [*expected(tokens, num)[1:2], 90]
            drafter.observe(sequence_id, Commit(tuple(tokens[-2:])))


def test_given_rounds_without_it_then_it_catches_up():
    drafter = nested("lm")
    tokens = [5, 6, 7]
    drafter.admit(1, tokens)
    drafter.propose([row(tokens)])

    tokens += list(range(LONGEST_CATCH_UP + 20))

    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)


class Eager:
    """Drafts the right tokens, more of them than it is asked for."""

    def admit(self, sequence_id, prompt): ...

    def observe(self, sequence_id, commit): ...

    def release(self, sequence_id): ...

    def close(self): ...

    def propose(self, rows):
        return [
            Draft(TokenTree.chain(np.array(expected(one.tokens, 4), np.int32)), Draw.POINT)
            for one in rows
        ]


def test_given_it_came_further_than_asked_then_the_rest_is_kept_for_the_next_proposal():
    script = Script()
    decoder = InnerDecoder(script, Eager(), Chain(4), Match())
    drafter, tokens = Nested(decoder, STEPS, Span()), [5, 6, 7]
    drafter.admit(1, tokens)

    first = drafter.propose([row(tokens, most=1)])[0]
    num_passes = script.num_passes
    tokens += expected(tokens, 2)[1:]
    second = drafter.propose([row(tokens, most=2)])[0]

    assert first.tree.tokens.tolist() == expected([5, 6, 7], 1)
    assert second.tree.tokens.tolist() == expected(tokens, 2)
    assert script.num_passes == num_passes
    assert drafter.propose([row([*tokens, 90])])[0].tree.tokens.tolist() == expected([*tokens, 90])


def test_given_a_prompt_beyond_its_context_then_both_numbers_are_named():
    drafter = nested("lm")

    with pytest.raises(CapacityError, match=r"300 tokens .* takes 256"):
        drafter.admit(1, [1] * 300)

    assert drafter.propose([row([1] * 300)])[0].num_drafted == 0
    drafter.release(1)


def test_given_its_memory_or_context_is_full_then_it_drafts_nothing_and_goes_on():
    drafter = nested("lm", num_blocks=2)
    tokens = [1] * 30
    drafter.admit(1, tokens)
    assert drafter.propose([row(tokens)])[0].num_drafted == STEPS

    assert drafter.propose([row(tokens + [2] * 31)])[0].num_drafted == 0

    drafter.release(1)
    drafter.admit(2, [3] * 20)
    assert drafter.propose([row([3] * 20, 2)])[0].num_drafted == STEPS


def test_given_the_end_of_its_context_then_no_position_lies_beyond():
    drafter = nested("lm")
    tokens = [1] * 240
    drafter.admit(1, tokens)

    for _ in range(16):
        num_drafted = drafter.propose([row(tokens)])[0].num_drafted
        assert num_drafted == (STEPS if len(tokens) + STEPS + 4 <= 256 else 0)
        tokens.append(1)


def test_given_no_room_for_the_inner_drafter_then_the_model_decodes_plainly():
    script = Script()
    inner = LM(Script(num_blocks=1), STEPS, Span())
    drafter = Nested(InnerDecoder(script, inner, Chain(4), Match()), STEPS, Span())
    tokens = [1] * 40
    drafter.admit(1, tokens)

    assert drafter.propose([row(tokens)])[0].tree.tokens.tolist() == expected(tokens)
    drafter.observe(1, Commit((2,)))
    drafter.release(1)


def test_given_no_choice_then_the_proposal_fails_as_a_drafter_s():
    script = Script()
    script.select = lambda logits, selection: np.full(len(logits), -1, np.int32)
    drafter = nested("plain", middle=script)
    drafter.admit(1, [1, 2])

    with pytest.raises(DrafterError, match="no token"):
        drafter.propose([row([1, 2])])


def test_given_penalties_then_every_choice_counts_the_tokens_before_it():
    script = Script()
    drafter = nested("perfect lm", middle=script)
    params = SamplingParams(presence_penalty=1.0)
    ids, counts = np.array([7], np.int32), np.array([2], np.int32)
    sampler = Sampler(params, 1, np.array([5], np.int32), ids, counts)
    tokens = [5, 7, 7]
    drafter.admit(1, tokens)
    drafter.propose([DraftRow(1, tokens, 1, sampler, STEPS)])
    chosen = expected(tokens)

    seen = []
    for selection in script.selections:
        for at, position in enumerate(selection.positions.tolist()):
            start, end = selection.path_starts[at : at + 2].tolist()
            own = selection.samplers[selection.sampler_of[at]]
            known = dict(zip(own.output_ids.tolist(), own.output_counts.tolist(), strict=True))
            for token in selection.path_tokens[start:end].tolist():
                known[token] = known.get(token, 0) + 1
            seen.append((position, sum(known.values())))
            assert set(known) == {7, *chosen[1 : position - 2]}
    assert seen == [(position, position - 1) for position in range(3, 3 + STEPS)]


def test_given_close_then_model_and_inner_drafter_are_closed():
    script, below = Script(), Script()
    inner = LM(below, STEPS, Span())

    Nested(InnerDecoder(script, inner, Chain(4), Match()), STEPS, Span()).close()

    assert script.is_closed
    assert below.is_closed


SAMPLING = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
]


@pytest.mark.parametrize("sampling", SAMPLING)
def test_given_a_real_model_then_it_proposes_what_the_model_generates(
    tiny_checkpoint_dir, sampling
):
    directory = tiny_checkpoint_dir("qwen3", 0)
    near = tiny_checkpoint_dir("qwen3", 1, near=(directory, 0.04))
    prompt = [65, 66, 67] * 5
    params = SamplingParams(max_tokens=30, seed=3, ignore_eos=True, **sampling)
    options = {"kv_positions": 512}
    with Engine(directory, speculate=Speculation("none"), **options) as engine:
        generated = list(engine.generate([prompt], params)[0].token_ids)

    def opened(path):
        return open_backend(open_checkpoint(path), EngineOptions(**options), None)

    inner = LM(opened(near), STEPS, Span())
    drafter = Nested(InnerDecoder(opened(directory), inner, Chain(3), Match()), STEPS, Span())
    drafter.admit(1, prompt)
    for num in range(0, 26, 3):
        tokens = prompt + generated[:num]
        draft = drafter.propose([DraftRow(1, tokens, 15, sampler(params, tokens), STEPS)])[0]
        assert draft.tree.tokens.tolist()[1:] == generated[num : num + STEPS]
    drafter.close()


def sampler(params, tokens):
    ids, counts = np.unique(np.array(tokens[15:], np.int32), return_counts=True)
    prompt_ids = np.unique(np.array(tokens[:15], np.int32))
    return Sampler(params, params.seed, prompt_ids, ids, counts.astype(np.int32))
