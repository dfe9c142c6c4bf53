"""What a drafter that reads features is told of its target: each token's states, once, in order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.engine_parts import with_parts
from engine.lattice import completions, unstopped
from forerun.backends.prefill import prefill
from forerun.drafters.guard import Guard


class Listener:
    """A drafter that keeps what it is told of the target, and drafts as another does."""

    tap_layers = (1, 0)

    def __init__(self, drafter):
        self.drafter = drafter
        self.texts, self.heard = {}, {}

    def admit(self, sequence_id, prompt):
        self.texts[sequence_id], self.heard[sequence_id] = list(prompt), []
        self.drafter.admit(sequence_id, prompt)

    def absorb(self, sequence_id, features):
        self.heard[sequence_id].append(features.copy())

    def propose(self, rows):
        return self.drafter.propose(rows)

    def observe(self, sequence_id, commit):
        self.texts[sequence_id] += commit.tokens
        self.heard[sequence_id].append(commit.features.copy())
        self.drafter.observe(sequence_id, commit)

    def release(self, sequence_id):
        self.drafter.release(sequence_id)

    def close(self):
        self.drafter.close()


def listening(engine):
    """The engine with a listener before its own drafter."""
    parts = engine._parts
    listener = Listener(parts.drafter._drafter)
    guard = Guard(listener, parts.shape, parts.target.spec.vocab)
    engine._parts = dataclasses.replace(parts, drafter=guard)
    return listener


def read_at_once(engine, tokens):
    """The tapped states of a text, out of one chunk a time."""
    table = np.arange(engine._parts.target.num_blocks, dtype=np.int32)[None]
    return prefill(engine._parts.target, table, tokens, 0, Listener.tap_layers)


@pytest.mark.parametrize("shape", ["chain:4", "tree:5"])
def test_given_any_round_then_a_drafter_hears_every_token_s_states_once_and_in_order(
    open_engine, lm_name, shape, backend
):
    engine = open_engine(lm_name, shape, threads=1)
    listener = listening(engine)

    made = completions(engine, unstopped())

    assert sum(one.stats.num_accepted for one in made) > 0
    assert sum(one.stats.num_failures for one in made) == 0
    for (prompt, _), one, heard in zip(unstopped(), made, listener.heard.values(), strict=True):
        known = [*prompt, *one.token_ids][:-1]
        states = np.concatenate(heard)
        whole = read_at_once(engine, known)
        assert states.shape == whole.shape
        if backend == "native":
            assert np.array_equal(states, whole)
        else:
            assert np.allclose(states, whole, atol=1e-4)
        # control: a token's states are nobody else's
        assert not np.allclose(states[1:], whole[:-1], atol=1e-2)


def test_given_a_drafter_that_reads_no_features_then_none_are_computed(open_engine, lm_name):
    engine = open_engine(lm_name, "tree:5", threads=1)
    target, tapped = engine._parts.target, []

    class Spy:
        def forward(self, batch):
            tapped.append(batch.tap_layers)
            return target.forward(batch)

        def __getattr__(self, name):
            return getattr(target, name)

    with_parts(engine, target=Spy())
    completions(engine, unstopped((1, 300)))

    assert set(tapped) == {()}
