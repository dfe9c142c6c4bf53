"""The prediction drafter: it follows, loses and finds its place, and never invents a token."""

from __future__ import annotations

import random

import pytest

from forerun.draft import Commit, Draw
from forerun.drafters.prediction import LONGEST_RUN, REACH, SURE, Place, Prediction, RunIndex
from forerun.errors import OptionError
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler

TEXT = list(range(100, 200))


def row(tokens, most=8, sequence_id=1, **limits):
    return DraftRow(sequence_id, tokens, 1, Sampler(SamplingParams(), 1), most, **limits)


def after(output, text=TEXT, most=8, prompt=(7,)):
    """What is proposed once the output has come so far."""
    drafter, tokens = Prediction(text), list(prompt)
    drafter.admit(1, tokens)
    for token in output:
        tokens.append(token)
        drafter.observe(1, Commit((token,)))
    draft = drafter.propose([row(tokens, most)])[0]
    assert draft.tree.tokens[0] == tokens[-1]
    return draft.tree.tokens.tolist()[1:]


def test_given_nothing_written_then_the_beginning_is_proposed():
    assert after([]) == TEXT[:8]


def test_given_agreement_then_what_follows_is_proposed_up_to_either_limit():
    assert after(TEXT[:10]) == TEXT[10:18]
    drafter = Prediction(TEXT)
    drafter.admit(1, [7])

    assert drafter.propose([row([7], most=8, max_depth=3)])[0].num_drafted == 3
    assert drafter.propose([row([7], most=0)])[0].num_drafted == 0
    assert drafter.propose([row([7])])[0].draw is Draw.POINT


def test_given_the_end_of_the_prediction_then_nothing_is_proposed():
    assert after(TEXT[:97]) == TEXT[97:]
    assert after(TEXT) == []
    assert after([*TEXT, 5]) == []


def test_given_one_token_replaced_then_the_rest_goes_on_at_once():
    assert after([*TEXT[:10], 9]) == TEXT[11:19]


def test_given_a_foreign_beginning_then_it_is_silent_until_the_text_begins():
    assert after([1, 2, 3]) == []
    assert after([1, 2, 3, TEXT[0], TEXT[1]])[:3] == TEXT[2:5]


def test_given_an_insertion_then_it_finds_its_place_again():
    inserted = [1, 2, 3, 4, 5, 6]

    assert after([*TEXT[:10], *inserted]) == []
    assert after([*TEXT[:10], *inserted, TEXT[10]]) == TEXT[11:19]


def test_given_a_deletion_then_a_short_one_needs_one_token_and_a_long_one_more():
    assert after([*TEXT[:10], TEXT[12]]) == TEXT[13:21]
    assert after([*TEXT[:10], *TEXT[40:43]]) == TEXT[43:51]
    assert after([*TEXT[:10], TEXT[40]]) != TEXT[41:49]  # too little to be believed so far away


def test_given_the_same_run_twice_then_the_nearest_at_or_after_the_place_is_taken():
    common = [1, 2, 3]
    text = [*common, *TEXT[:20], *common, *TEXT[20:40], *common, *TEXT[40:60]]

    output = [*text[:15], 9, 9, 9, *common]

    assert after(output, text) == TEXT[20:28]


def test_given_a_wrong_place_then_a_whole_run_leads_back():
    lure = [3, 4, 5, 6]
    text = [*TEXT[:50], *lure, *TEXT[50:]]
    output = [*TEXT[:10], *lure]
    assert after(output, text) == TEXT[50:58]

    assert after([*output, *TEXT[10:18]], text) == TEXT[18:26]
    assert LONGEST_RUN == 8


def test_given_an_edited_text_then_most_of_it_is_foretold():
    rng = random.Random(5)
    text = [rng.randrange(40) for _ in range(2000)]
    output = edited(text, rng)

    assert share_foretold(text, output) > 0.85


def test_control_given_an_unrelated_text_then_little_of_it_is_foretold():
    rng = random.Random(5)
    text = [rng.randrange(40) for _ in range(2000)]
    other = [rng.randrange(40) for _ in range(2000)]

    assert share_foretold(text, other) < 0.2


def edited(text, rng):
    """One place in twenty-five is replaced, dropped or doubled by a foreign token."""
    output = []
    for token in text:
        kind = rng.randrange(75)
        output += {0: [rng.randrange(40)], 1: [], 2: [rng.randrange(40), token]}.get(kind, [token])
    return output


def share_foretold(text, output):
    """Tokens of the output that were proposed as the very next one."""
    index, place, num = RunIndex(text), Place(), 0
    for token in output:
        num += place.next < len(index) and index.tokens[place.next] == token
        place = place.after(token, index)
    return num / len(output)


def test_given_a_prompt_that_ends_within_it_then_it_goes_on_from_there():
    assert after([], prompt=[1, 2, *TEXT[30:40]]) == TEXT[40:48]
    assert after([], prompt=[1, 2, *TEXT[30:34]]) == TEXT[:8]  # control: too short to be sure


def test_given_tokens_that_were_never_observed_then_they_count_for_one_proposal_only():
    drafter = Prediction(TEXT)
    drafter.admit(1, [7])

    ahead = drafter.propose([row([7, *TEXT[:5]])])[0]
    again = drafter.propose([row([7])])[0]

    assert ahead.tree.tokens.tolist()[1:] == TEXT[5:13]
    assert again.tree.tokens.tolist()[1:] == TEXT[:8]


def test_given_two_sequences_then_each_has_its_own_place():
    drafter = Prediction(TEXT)
    drafter.admit(1, [7])
    drafter.admit(2, [7])
    drafter.observe(2, Commit(tuple(TEXT[:20])))

    drafts = drafter.propose([row([7]), row([7, *TEXT[:20]], sequence_id=2)])

    assert [one.tree.tokens.tolist()[1:] for one in drafts] == [TEXT[:8], TEXT[20:28]]
    drafter.release(1)
    drafter.close()


@pytest.mark.parametrize("num_kinds", [1, 2, 30])
def test_given_any_text_then_a_run_is_found_where_a_plain_search_finds_it(num_kinds):
    rng = random.Random(num_kinds)
    text = [rng.randrange(num_kinds) for _ in range(200)]
    index = RunIndex(text)

    for _ in range(300):
        run = [rng.randrange(num_kinds) for _ in range(rng.randrange(1, LONGEST_RUN + 1))]
        start = rng.randrange(220)
        places = [at for at in range(200 - len(run) + 1) if text[at : at + len(run)] == run]
        later = [at for at in places if at >= start]
        wanted = later[0] if later else places[-1] if places else None
        assert index.find(run, start) == wanted


def test_given_short_or_no_text_then_it_is_taken_or_refused():
    assert after([], text=[5]) == [5]
    assert RunIndex([5]).find([5, 6], 0) is None
    assert REACH**LONGEST_RUN > 2**15
    assert SURE < LONGEST_RUN
    with pytest.raises(OptionError, match="empty"):
        Prediction([])
