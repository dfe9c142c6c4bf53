"""Text that a request is expected to come to: how much of it is proposed, and what is counted."""

from __future__ import annotations

from forerun.drafters.expected import LONGEST, NAME, Expected
from forerun.drafters.prediction import RunIndex
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler

TEXT = list(range(100, 200))


def row(tokens, most=64, **limits):
    return DraftRow(1, tokens, 1, Sampler(SamplingParams(), 1), most, **limits)


def proposed(expected, tokens, **limits):
    draft = expected.propose(row(tokens, **limits))
    return None if draft is None else draft.tree.tokens.tolist()[1:]


def test_given_agreement_then_more_is_proposed_up_to_the_longest():
    expected, tokens, lengths = Expected(RunIndex(TEXT), [7]), [7], []
    for _ in range(5):
        drafted = proposed(expected, tokens)
        assert drafted == TEXT[len(tokens) - 1 :][: len(drafted)]
        lengths.append(len(drafted))
        kept = TEXT[len(tokens) - 1 :][: len(drafted) + 1]
        expected.observe(kept)
        tokens += kept

    assert lengths[0] == 4
    assert lengths == sorted(lengths)
    assert lengths[-1] == LONGEST
    assert expected.brought(len(tokens) - 1) == (sum(lengths), 0)


def test_given_limits_of_a_row_then_they_are_kept_to():
    expected = Expected(RunIndex(TEXT), [7])

    assert proposed(expected, [7], most=2) == TEXT[:2]
    assert proposed(expected, [7], max_depth=3) == TEXT[:3]
    assert proposed(expected, [7], most=0) is None
    assert proposed(expected, [7], max_depth=0) is None


def test_given_a_text_that_is_left_then_it_has_nothing_to_say_and_was_rejected():
    expected = Expected(RunIndex(TEXT), [7])
    proposed(expected, [7])
    expected.observe((1,))

    assert proposed(expected, [7, 1]) is None
    assert not expected.is_pending
    expected.observe((2, 3))  # somebody else's draft
    assert expected.brought(3) == (0, 4)


def test_given_a_draft_of_somebody_else_instead_then_only_what_agrees_is_counted():
    expected = Expected(RunIndex(TEXT), [7])
    proposed(expected, [7])
    expected.observe((TEXT[0], 5, 6))

    assert expected.brought(3) == (1, 3)


def test_given_an_answer_cut_in_its_last_round_then_what_was_cut_is_not_counted():
    """Of a, b, c and the bonus only a and b are left."""
    expected = Expected(RunIndex(TEXT), [7])
    proposed(expected, [7])
    expected.observe((*TEXT[:4], 5))

    assert expected.brought(5) == (4, 0)
    assert expected.brought(4) == (4, 0)
    assert expected.brought(2) == (2, 2)


def test_given_a_proposal_then_it_says_whose_it_is():
    assert Expected(RunIndex(TEXT), [7]).propose(row([7])).source == NAME
    assert Expected(RunIndex([]), [7]).propose(row([7])) is None
