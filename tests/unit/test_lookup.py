"""The lookup drafter: what it proposes, how much, and that its index counts right."""

from __future__ import annotations

import random

from forerun.draft import Commit, Draw
from forerun.drafters.lookup import MAX_DEPTH, Lookup, SuffixIndex
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler


def index_of(tokens):
    index = SuffixIndex()
    index.extend(tokens)
    return index


def row(tokens, most=8, sequence_id=1):
    return DraftRow(sequence_id, tokens, len(tokens), Sampler(SamplingParams(), 1), most)


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
