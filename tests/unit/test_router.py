"""The router: who is asked, when another is looked at, and that one that fails costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.lookup import Lookup
from forerun.drafters.prediction import Prediction
from forerun.drafters.router import FIRST_STAY, LAST_STAY, LOOK, Bandit, Router
from forerun.errors import CapacityError, OptionError
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, Sampler
from forerun.tree import TokenTree


class Known:
    """Drafts a given number of tokens; notes what it is told, and raises when told to."""

    def __init__(self, num=1, failing=(), error=RuntimeError):
        self.num, self.failing, self.error = num, failing, error
        self.told = []

    def note(self, verb, sequence_id, what=()):
        if verb in self.failing:
            raise self.error(f"{verb} of {sequence_id}")
        self.told.append((verb, sequence_id, tuple(what)))

    def admit(self, sequence_id, prompt):
        self.note("admit", sequence_id, prompt)

    def propose(self, rows):
        for one in rows:
            self.note("propose", one.sequence_id)
        return [draft_of(one.tokens[-1], self.num) for one in rows]

    def observe(self, sequence_id, commit):
        self.note("observe", sequence_id, commit.tokens)

    def release(self, sequence_id):
        self.note("release", sequence_id)

    def close(self):
        self.note("close", 0)

    def verbs(self, sequence_id=1):
        return [verb for verb, of, _ in self.told if of == sequence_id]


def draft_of(pending, num):
    tokens = np.array([pending, *range(num)], np.int32)
    return Draft(TokenTree.chain(tokens), Draw.POINT)


def row(sequence_id=1, tokens=(1, 2, 3), most=8):
    return DraftRow(sequence_id, list(tokens), 3, Sampler(SamplingParams(), 1), most)


def routed(*drafters):
    names = [f"d{at}" for at in range(len(drafters))]
    return Router(drafters, names, is_timed=False)


def play(router, num_rounds, yields, sequence_id=1):
    """Rounds in which each drafter gives its yield; who was asked."""
    asked = []
    for _ in range(num_rounds):
        asked.append(router.chosen(sequence_id))
        router.propose([row(sequence_id)])
        router.observe(sequence_id, Commit((5,) * yields[asked[-1]]))
    return asked


def test_given_a_new_request_then_each_is_looked_at_and_the_best_stays():
    router = routed(Known(), Known(), Known())
    router.admit(1, [1, 2, 3])

    asked = play(router, 3 * LOOK + FIRST_STAY, {"d0": 2, "d1": 4, "d2": 3})

    looks = ["d0"] * LOOK + ["d1"] * LOOK + ["d2"] * LOOK
    assert asked == looks + ["d1"] * FIRST_STAY


def test_given_equal_yields_then_the_first_named_stays():
    router = routed(Known(), Known())
    router.admit(1, [1, 2, 3])

    assert play(router, 2 * LOOK + 5, {"d0": 2, "d1": 2})[-5:] == ["d0"] * 5


def test_given_the_others_then_they_are_looked_at_again_in_turn_and_ever_more_rarely():
    bandit, arms = Bandit(3), []
    for _ in range(6 * LAST_STAY):
        arms.append(bandit.arm)
        bandit.learn(3 if bandit.arm == 1 else 2, 1.0)

    later = arms[3 * LOOK + FIRST_STAY :]
    assert later[:LOOK] == [0] * LOOK
    assert later[LOOK + 2 * FIRST_STAY :][:LOOK] == [2] * LOOK
    assert arms.count(1) / len(arms) > 0.97


def test_given_another_becomes_better_then_it_is_found():
    bandit = Bandit(2)
    for _ in range(2 * LOOK + 10):
        bandit.learn(4 if bandit.arm == 0 else 1, 1.0)
    assert bandit.arm == 0

    for _ in range(3 * FIRST_STAY):
        bandit.learn(1 if bandit.arm == 0 else 4, 1.0)

    assert bandit.arm == 1


def test_given_costs_then_tokens_a_second_decide_and_not_tokens():
    bandit = Bandit(2)
    for _ in range(2 * LOOK):
        bandit.learn(*((4, 2.0) if bandit.arm == 0 else (3, 1.0)))
    assert bandit.arm == 1

    control = Bandit(2)
    for _ in range(2 * LOOK):
        control.learn(4 if control.arm == 0 else 3, 1.0)
    assert control.arm == 0


def test_given_the_first_round_of_a_look_then_its_cost_does_not_count():
    bandit = Bandit(2)
    for at in range(2 * LOOK):
        is_first_of_second = at == LOOK
        bandit.learn(2, 100.0 if is_first_of_second else 1.0 if bandit.arm == 0 else 0.5)
    assert bandit.arm == 1


def test_given_two_requests_then_each_has_its_own_choice_and_one_call_serves_its_rows():
    text = list(range(100, 160))
    router = Router([Lookup(), Prediction(text)], ["lookup", "prediction"], is_timed=False)
    texts = {1: [1, 2, 3] * 8, 2: [1, 2, 9]}
    for sequence_id, tokens in texts.items():
        router.admit(sequence_id, tokens)
    future = {1: [1, 2, 3] * 400, 2: [*text, *([7] * 900)]}

    for _ in range(2 * LOOK + 1):
        rows = [row(sequence_id, tokens, most=4) for sequence_id, tokens in texts.items()]
        for one, draft in zip(rows, router.propose(rows), strict=True):
            kept = accepted(draft, future[one.sequence_id])
            del future[one.sequence_id][: len(kept)]
            texts[one.sequence_id] += kept
            router.observe(one.sequence_id, Commit(tuple(kept)))

    assert (router.chosen(1), router.chosen(2)) == ("lookup", "prediction")


def accepted(draft, future):
    drafted, num = draft.tree.tokens.tolist()[1:], 0
    while num < len(drafted) and drafted[num] == future[num]:
        num += 1
    return future[: num + 1]


def test_given_the_same_history_then_the_choice_does_not_look_at_what_is_drafted():
    chosen = []
    for num in (0, 7):
        router = routed(Known(num), Known(num))
        router.admit(1, [1])
        chosen.append(play(router, 40, {"d0": 2, "d1": 3}))

    assert chosen[0] == chosen[1]


def test_given_any_commit_then_every_drafter_observes_it():
    drafters = Known(), Known()
    router = routed(*drafters)
    router.admit(1, [1, 2])

    play(router, 4, {"d0": 1, "d1": 1})
    router.release(1)

    for drafter in drafters:
        assert drafter.verbs().count("observe") == 4
        assert drafter.verbs()[0] == "admit"
        assert drafter.verbs()[-1] == "release"


@pytest.mark.parametrize("verb", ["admit", "propose", "observe"])
def test_given_one_that_fails_then_it_is_dropped_there_and_the_others_go_on(verb):
    broken, sound = Known(failing=(verb,)), Known(2)
    router = routed(broken, sound)
    router.admit(1, [1, 2, 3])

    drafts = []
    for _ in range(3):
        drafts.append(router.propose([row()])[0])
        router.observe(1, Commit((5,)))

    assert router.chosen(1) == "d1"
    assert drafts[-1].num_drafted == 2
    assert sound.verbs().count("observe") == 3
    assert broken.verbs()[-1:] == ["release"]


def test_given_all_fail_then_nothing_is_drafted_and_nothing_is_raised():
    router = routed(Known(failing=("propose",)), Known(failing=("propose",)))
    router.admit(1, [1, 2, 3])

    for _ in range(4):
        assert router.propose([row()])[0].tree.tokens.tolist() == [3]
        router.observe(1, Commit((5,)))

    assert router.chosen(1) is None
    router.release(1)


def test_given_no_drafter_has_room_then_admission_says_so():
    router = routed(Known(failing=("admit",), error=CapacityError))

    with pytest.raises(CapacityError, match="none of d0"):
        router.admit(1, [1, 2, 3])
    router.release(1)


def test_given_a_failure_in_one_request_then_the_other_keeps_its_drafter():
    first = Known()
    router = routed(first, Known())
    router.admit(1, [1, 2, 3])
    first.failing = ("admit",)
    router.admit(2, [1, 2, 3])

    assert (router.chosen(1), router.chosen(2)) == ("d0", "d1")


def test_given_seconds_are_compared_then_the_round_s_own_are_measured():
    router = Router([Known(), Known()], ["a", "b"])
    router.admit(1, [1])
    play(router, 2 * LOOK + 1, {"a": 1, "b": 400})  # no clock is wrong by so much

    assert router.chosen(1) == "b"


def test_given_close_then_all_are_closed_and_the_first_error_is_raised():
    broken, sound = Known(failing=("close",)), Known()

    with pytest.raises(RuntimeError, match="close"):
        routed(broken, sound).close()

    assert sound.verbs(0) == ["close"]


def test_given_no_drafters_or_missing_names_then_it_is_refused():
    with pytest.raises(OptionError, match="0 drafters"):
        Router([], [])
    with pytest.raises(OptionError, match="1 drafters and 2 names"):
        Router([Known()], ["a", "b"])


def test_given_a_decoder_ahead_then_members_that_cannot_go_back_read_again():
    drafter = Known()
    router = routed(drafter)
    router.admit(1, [1, 2])

    router.propose([row()])
    router.settle(1, Commit((5, 6)))
    router.rewind(1, [1, 2, 5])
    router.observe(1, Commit((5, 7)))

    assert drafter.verbs() == ["admit", "propose", "release", "admit", "observe"]
    assert drafter.told[3] == ("admit", 1, (1, 2, 5))


class Reads(Known):
    """A drafter that reads some layers, and notes what it is given of them."""

    def __init__(self, *tap_layers, **of):
        super().__init__(**of)
        self.tap_layers = tap_layers

    def absorb(self, sequence_id, features):
        self.note("absorb", sequence_id, features.tolist())

    def observe(self, sequence_id, commit):
        self.note("features", sequence_id, commit.features.tolist())


def test_given_members_that_read_features_then_each_gets_its_own_layers_in_its_order():
    both, one, none = Reads(5, 2), Reads(2), Known()
    router = routed(none, both, one)
    router.admit(1, [1, 2, 3])
    # two values a layer: those of layer 2, then those of layer 5
    features = np.array([[20, 21, 50, 51], [22, 23, 52, 53]], np.float32)

    router.absorb(1, features)
    router.observe(1, Commit((7, 8), features))

    assert router.tap_layers == (2, 5)
    of_both = ([50.0, 51.0, 20.0, 21.0], [52.0, 53.0, 22.0, 23.0])
    of_one = ([20.0, 21.0], [22.0, 23.0])
    assert both.told[1:] == [("absorb", 1, of_both), ("features", 1, of_both)]
    assert one.told[1:] == [("absorb", 1, of_one), ("features", 1, of_one)]
    assert none.told[1:] == [("observe", 1, (7, 8))]
    assert routed(Known(), Known()).tap_layers == ()


def test_given_a_member_that_cannot_take_features_then_it_is_left_out_and_no_other():
    bad, good = Reads(1, failing=("absorb",)), Reads(1)
    router = routed(bad, good)
    router.admit(1, [1, 2, 3])

    router.absorb(1, np.zeros((1, 2), np.float32))

    assert router.chosen(1) == "d1"
    assert "absorb" in good.verbs()
    assert bad.verbs()[-1] == "release"
