"""Whether a small model's draft pays: two passes of the target against one proposal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from forerun.control.trial import PAYS, expected_tokens, gain, proposals


@dataclass
class Paced:
    """A backend that takes so long a node, or a step, of a test's time, and counts its calls."""

    sleep: Callable[[float], None]
    fixed_s: float = 0.0
    per_node_s: float = 0.0
    calls: list[int] = field(default_factory=list)

    def forward(self, batch: Any) -> None:
        self._work(len(batch.token_ids))

    def propose(self, plan: Any) -> None:
        self._work(plan.num_steps)

    def _work(self, count: int) -> None:
        self.calls.append(count)
        self.sleep(self.fixed_s + self.per_node_s * count)


@pytest.mark.parametrize(
    ("target", "drafter", "pays"),
    [
        ((0.04,), (), True),  # three nodes for the price of one, a free drafter
        ((0.0, 0.01), (), False),  # every node costs a pass
        ((0.01,), (0.03,), False),  # a drafter as dear as the target
    ],
)
def test_given_what_passes_cost_then_drafting_pays_or_not(own_time, target, drafter, pays) -> None:
    target, drafter = (Paced(own_time.sleep, *seconds) for seconds in (target, drafter))
    assert (gain(target, proposals(drafter), {}) > PAYS) is pays


def test_given_a_large_model_then_its_passes_are_timed_a_few_times_only(own_time) -> None:
    target = Paced(own_time.sleep, 0.06)
    gain(target, proposals(Paced(own_time.sleep)), {})
    assert target.calls == [1, 3, 5, 8] * 3  # the first warms up


def test_given_a_trial_then_every_draft_stands_behind_the_verification_of_its_length(own_time):
    order = []

    class Told(Paced):
        def _work(self, count):
            order.append((self.per_node_s, count))
            super()._work(count)

    target, drafter = Told(own_time.sleep, 0.06, 0.001), Told(own_time.sleep, 0.0, 0.002)
    gain(target, proposals(drafter), {})

    assert order[:7] == [
        (0.001, 1), (0.001, 3), (0.002, 2), (0.001, 5), (0.002, 4), (0.001, 8), (0.002, 7),
    ]  # fmt: skip


def test_given_what_training_measured_then_it_is_taken_instead_of_the_guess(own_time) -> None:
    guessed = expected_tokens({}, 4)
    assert 1.0 < guessed < 5.0
    record = {2: 1.5, 7: 3.0}
    assert [expected_tokens(record, length) for length in (2, 4, 7, 9)] == [1.5, 1.5, 3.0, 3.0]
    assert expected_tokens({7: 3.0}, 4) == guessed  # nothing is known of shorter ones

    target, drafts = Paced(own_time.sleep, 0.005), proposals(Paced(own_time.sleep))
    better, worse = (gain(target, drafts, {2: tokens}) for tokens in (2.5, 1.1))
    assert better > 1.6 > 1.3 > worse
