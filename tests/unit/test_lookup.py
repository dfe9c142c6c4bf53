"""The lookup drafter: what it proposes, how much, and that its index counts right."""

from __future__ import annotations

import random

import numpy as np
import pytest

from forerun.draft import Commit, Draw
from forerun.drafters.lookup import Lookup
from forerun.drafters.suffixes import MAX_DEPTH, SuffixIndex, best_continuation
from forerun.errors import OptionError
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler


def index_of(tokens):
    index = SuffixIndex()
    index.extend(tokens)
    return index


def row(tokens, most=8, sequence_id=1, **limits):
    return DraftRow(sequence_id, tokens, len(tokens), Sampler(SamplingParams(), 1), most, **limits)


def test_given_nothing_repeated_then_nothing_is_proposed():
    assert index_of([1, 2, 3, 4]).propose(8) == []
    assert SuffixIndex().propose(8) == []


def test_given_a_long_match_then_as_much_is_copied():
    assert index_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]).propose(8) == [5, 6, 7, 8]


def test_given_a_match_of_one_token_then_one_is_proposed():
    assert index_of([1, 2, 3, 4, 5, 1]).propose(8) == [2]


def test_given_a_limit_then_it_holds():
    assert len(index_of([1, 2, 3, 4, 5, 6] * 2).propose(3)) == 3


def test_given_several_continuations_then_the_most_frequent_wins_and_the_latest_of_equals():
    assert index_of([1, 5, 2, 1, 6, 3, 1, 5, 4, 1]).propose(8) == [5]
    assert index_of([1, 5, 2, 1, 6, 3, 1]).propose(8) == [6]


def test_given_a_short_sure_match_and_a_long_one_then_the_score_decides():
    # After 9 always 1; after (8, 9) once 1, 2: the longer match may go on, and scores more.
    assert index_of([8, 9, 1, 2, 0, 9, 1, 3, 8, 9]).propose(8) == [1, 2]


def test_given_unlikely_continuations_then_nothing_is_proposed():
    text = [token for other in range(20, 40) for token in (1, other)]

    assert index_of([*text, 1]).propose(8) == []


def test_given_a_loop_then_the_depth_is_bounded_and_the_loop_goes_on():
    index = index_of([1, 2] * 200)

    assert index.propose(8) == [1, 2] * 4
    assert len(index._visits) <= 2 * MAX_DEPTH + 1


def test_given_random_text_then_every_node_counts_its_occurrences():
    rng = random.Random(3)
    for num_kinds in (1, 2, 3, 5):
        text = [rng.randrange(num_kinds) for _ in range(80)]
        index = index_of(text)
        for length in range(1, 7):
            for start in range(len(text) - length + 1):
                run = text[start : start + length]
                places = [at for at in range(len(text)) if text[at : at + length] == run]
                node = find(index, run)
                if node is None:  # below a run that occurred once
                    above = find(index, run[:-1])
                    assert above is None or index._visits[above] == 1
                else:
                    assert index._visits[node] == len(places)
                    assert index._first[node] == places[0] + length - 1


def find(index, run):
    node = 0
    for token in run:
        node = index._children.get((node, token))
        if node is None:
            return None
    return node


def test_given_tokens_one_by_one_then_the_index_is_the_same():
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 1, 4, 1] * 3

    grown = SuffixIndex()
    for token in text:
        grown.extend([token])

    assert grown._children == index_of(text)._children


def test_given_the_drafter_then_commits_are_learned_and_release_forgets():
    lookup = Lookup()
    tokens = [1, 2, 3]
    lookup.admit(1, tokens)
    assert lookup.propose([row(tokens)])[0].num_drafted == 0

    tokens += [1, 2]
    lookup.observe(1, Commit((1, 2)))
    draft = lookup.propose([row(tokens)])[0]

    assert draft.tree.tokens.tolist() == [2, 3, 1]
    assert draft.draw is Draw.POINT
    assert lookup.propose([row(tokens, most=0)])[0].num_drafted == 0
    lookup.release(1)
    lookup.close()


def tree_of(tokens, most=8, width=4, **limits):
    lookup = Lookup(width=width)
    lookup.admit(1, tokens)
    return lookup.propose([row(tokens, most, **limits)])[0]


FORKING = [0, 1, 2, 5, 6, 7, 0, 1, 2, 5, 8, 3, 0, 1, 2, 9, 4, 4, 0, 1, 2]


def test_given_several_continuations_then_a_tree_has_the_likeliest_first():
    draft = tree_of(FORKING)

    # After (0, 1, 2) two thirds are 5, a third is 9; after 5 the latest of equals comes first.
    assert draft.tree.tokens.tolist()[:5] == [2, 5, 9, 8, 4]
    assert draft.tree.parents.tolist()[:5] == [-1, 0, 0, 1, 2]
    assert draft.draw is Draw.POINT
    np.testing.assert_allclose(draft.scores[1:5], [2 / 3, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    assert np.isnan(draft.scores[0])


def test_given_limits_then_a_tree_keeps_them():
    assert tree_of(FORKING, most=3).num_drafted == 3
    assert tree_of(FORKING, most=20, max_depth=1).tree.depths().max() == 1
    children = tree_of(FORKING, most=20, width=2).tree.parents.tolist()
    assert max(children.count(node) for node in children) == 2
    assert tree_of(FORKING, most=0).num_drafted == 0
    assert tree_of(FORKING, most=5, max_depth=0).num_drafted == 0
    with pytest.raises(OptionError, match="width"):
        Lookup(width=0)


def test_given_unlikely_continuations_then_a_tree_leaves_them_out():
    rare = [token for other in range(20, 40) for token in (1, other)]

    assert tree_of([*rare, *[1, 2] * 10, 1], most=30).tree.tokens.tolist()[1] == 2
    assert 21 not in tree_of([*rare, *[1, 2] * 10, 1], most=30).tree.tokens.tolist()


def test_given_random_text_then_a_tree_of_width_one_is_the_chain():
    rng = random.Random(11)
    for num_kinds in (1, 2, 4, 9):
        text = [rng.randrange(num_kinds) for _ in range(120)]
        for end in range(20, 120, 7):
            index = index_of(text[:end])
            found = best_continuation(index.matches(), index.children, 8, 8, 1)
            path, score = index.best_path(8)
            assert found.total == pytest.approx(score)
            assert len(found.tokens) == len(path)


def test_given_random_text_then_no_tree_is_expected_to_give_less_than_the_chain():
    rng = random.Random(12)
    gains = []
    for _ in range(60):
        index = index_of([rng.randrange(3) for _ in range(100)])
        tree = best_continuation(index.matches(), index.children, 16, 8, 4)
        gains.append(tree.total - index.best_path(16)[1])
    assert min(gains) >= -1e-9
    assert max(gains) > 0.5  # control: else trees would be no use


def test_given_random_text_then_children_are_what_followed_and_how_often():
    rng = random.Random(13)
    text = [rng.randrange(3) for _ in range(60)]
    index = index_of(text)
    for length, state in index.matches():
        run = text[-length:]
        after = [text[at + length] for at in range(60 - length) if text[at : at + length] == run]
        found = {token: probability for token, probability, _ in index.children(state)}
        wanted = {token: after.count(token) / len(after) for token in after}
        if length < MAX_DEPTH:
            assert found == pytest.approx({t: p for t, p in wanted.items() if p >= 0.1})


def test_given_tokens_beyond_the_text_then_they_count_for_one_proposal_only():
    lookup = Lookup()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    lookup.admit(1, text)

    ahead = lookup.propose([row([*text, 3, 4])])[0]
    again = lookup.propose([row(text)])[0]
    strange = lookup.propose([row([*text, 77])])[0]

    assert ahead.tree.tokens.tolist() == [4, 5, 6, 7, 8]
    assert again.tree.tokens.tolist() == [2, 3, 4]
    assert strange.num_drafted == 0


def test_given_any_split_then_asking_beyond_the_text_finds_what_indexing_it_finds():
    rng = random.Random(14)
    for num_kinds in (2, 5):
        for _ in range(40):
            text = [rng.randrange(num_kinds) for _ in range(60)]
            beyond = [rng.randrange(num_kinds) for _ in range(3)]
            run = [*text, *beyond]
            places = [
                [at for at in range(61 - length) if text[at : at + length] == run[63 - length :]]
                for length in range(1, MAX_DEPTH + 1)
            ]
            numbers = [len(one) for one in places]
            wanted = [
                length
                for length, num in enumerate(numbers, start=1)
                if num > (numbers[length] if length < MAX_DEPTH else 0)
            ]
            assert [one for one, _ in index_of(text).matches(beyond)] == wanted[::-1]
