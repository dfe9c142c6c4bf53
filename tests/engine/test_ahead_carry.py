"""What a forecast read of the winner is not read again: fewer nodes, the same hits and tokens."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ahead_parts import Patient, in_time, lane_sums, overlapped_of, without_spares
from engine.conftest import HAS_NATIVE
from engine.lattice import completions, differences, opened, outcomes, unstopped
from engine.test_lattice import num_misses
from engine.test_lattice import watched as watched_paths
from forerun.drafters import lm as lm_module
from forerun.drafters.carrying import Winner, winner_of
from forerun.drafters.lm import LM
from forerun.forecast import Carried

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
LENGTH = 60


def forgets(monkeypatch):
    """A drafter that reads every draft again."""
    monkeypatch.setattr(LM, "_carried", lambda *_: None)


def takes_a_loser(monkeypatch):
    """A drafter that holds what follows another outcome than the one that came."""

    def wrong(grown, num_known, kept):
        right = winner_of(grown, num_known, kept)
        if right is None:
            return None
        parents, own = grown.tree.parents.tolist(), right.nodes[0]
        others = [
            node
            for node in grown.expanded.tolist()
            if node != own and parents[node] == parents[own] and node not in right.nodes
        ]
        return Winner(right.length, [others[0]] * len(right.nodes)) if others else right

    monkeypatch.setattr(lm_module, "winner_of", wrong)


def run_of(places, words, asked):
    """Texts, the lane's figures and how many nodes the drafter computed, all jobs in time."""
    with opened(places, words) as engine:
        overlapped = overlapped_of(engine)
        overlapped._waits = Patient()
        in_time(overlapped)
        made = completions(engine, asked)
        backend = overlapped._drafter.backend
        return outcomes(made), lane_sums(made), backend.num_computed


@pytest.mark.parametrize("shape", ["chain:4", "tree:7", "tree:3x2x1", "tree:5:likeliest"])
@pytest.mark.parametrize("rows", [(20,), (20, 33, 7)])
def test_given_hits_then_their_branches_are_not_read_again(places, monkeypatch, shape, rows):
    words = ("lm", shape, "match", "ahead:8")
    asked = unstopped(rows, max_tokens=LENGTH)
    texts, lane, num_computed = run_of(places, words, asked)
    forgets(monkeypatch)
    expected, other, num_anew = run_of(places, words, asked)

    assert differences(expected, texts) == []
    assert lane == other
    assert lane["hits"] > 5
    # every hit saves its pending token, and whatever of its draft was read
    assert num_anew - num_computed >= lane["hits"] // 2
    if len(rows) == 1 and shape == "chain:4":
        assert num_anew - num_computed >= 2 * lane["hits"]


def by_itself(places, shape):
    engine = opened(places, ("lm:{target}", shape, "match", "ahead:8"))
    overlapped_of(engine)._waits = Patient()
    in_time(overlapped_of(engine))
    without_spares(overlapped_of(engine))
    return engine


@pytest.mark.parametrize("shape", ["chain:4", "tree:9"])
def test_given_the_target_as_its_own_drafter_then_what_is_carried_is_never_wrong(places, shape):
    with by_itself(places, shape) as engine:
        assert num_misses(watched_paths(engine)) == 0


@pytest.mark.parametrize("shape", ["chain:4", "tree:9"])
def test_control_given_a_loser_s_branch_then_the_target_as_its_own_drafter_is_wrong(
    places, plain, monkeypatch, shape
):
    takes_a_loser(monkeypatch)
    monkeypatch.setattr("forerun.drafters.carrying.Kept.carried", _whatever_is_held)
    with by_itself(places, shape) as engine:
        assert num_misses(watched_paths(engine)) > 0


def _whatever_is_held(self, length, draft):
    """Compares no token: whatever is held stands for the draft's first nodes, as a chain."""
    nodes = np.full(len(draft), -1, np.int32)
    nodes[0] = 0
    for node in range(1, min(len(draft), len(self.tokens))):
        nodes[node] = node if nodes[draft.parents[node]] >= 0 else -1
    return Carried(nodes, self.held)


@pytest.mark.parametrize("shape", ["chain:4", "tree:9"])
def test_given_a_loser_s_branch_then_the_text_is_plain_all_the_same(
    places, plain, monkeypatch, shape
):
    takes_a_loser(monkeypatch)
    monkeypatch.setattr("forerun.drafters.carrying.Kept.carried", _whatever_is_held)
    asked = unstopped((20, 33), max_tokens=LENGTH)
    with opened(places, ("none", "auto", "match")) as engine:
        expected = outcomes(completions(engine, asked))
    texts, _, _ = run_of(places, ("lm", shape, "match", "ahead:8"), asked)

    assert differences(expected, texts) == []
