"""Damped drafts through a whole engine: they come, and greedy text stays what it was."""

from __future__ import annotations

import numpy as np
import pytest

from forerun import Engine, SamplingParams, Speculation

from .conftest import KV_POSITIONS

PROMPT = list(range(5, 15))
SAMPLED = ("rejection", "block", "traversal", "kseq")


class Drafts:
    """A witness that keeps every draft, with what was known as its round began."""

    def __init__(self):
        self.seen = []

    def saw(self, rows, drafts, said, starts, verdicts):
        self.seen += zip([len(row.tokens) for row in rows], drafts, verdicts, strict=True)

    def settled(self, stats): ...


def completed(target_dir, backend, *names, witness=None, **params):
    with Engine(
        target_dir,
        speculate=Speculation(*names),
        backend=backend,
        witness=witness,
        threads=1,
        kv_positions=KV_POSITIONS,
    ) as engine:
        done = engine.generate(PROMPT, SamplingParams(max_tokens=40, ignore_eos=True, **params))[0]
    assert done.stats.num_failures == 0
    return done.token_ids


@pytest.mark.parametrize("rule", SAMPLED)
def test_given_greedy_rows_then_damping_changes_no_token(target_dir, lm_name, backend, rule):
    plain = completed(target_dir, backend)

    assert completed(target_dir, backend, lm_name, "chain:4", rule, "ahead:8:0.5") == plain


@pytest.mark.parametrize(("rule", "shape"), [("rejection", "chain:4"), ("traversal", "tree:2x1")])
def test_given_a_temperature_then_drafts_say_what_was_damped_and_a_seed_repeats(
    target_dir, lm_name, backend, rule, shape
):
    names, params = (lm_name, shape, rule, "ahead:8:0.25"), {"temperature": 1.0, "seed": 3}
    seen = Drafts()

    tokens = completed(target_dir, backend, *names, witness=seen, **params)

    damped = [draft for _, draft, _ in seen.seen if draft.law is not None and len(draft.law)]
    assert len(damped) > 5
    for draft in damped:
        assert draft.damping is not None
        assert draft.damping.factor == 0.25
        assert np.all(draft.damping.tokens >= 0)
        own = draft.believed(0).astype(np.float64)
        assert own.sum() == pytest.approx(1.0, abs=1e-4)
        assert set(np.argsort(-own)[: draft.damping.tokens.shape[1]]) == set(
            draft.damping.tokens[0]
        )
    assert completed(target_dir, backend, *names, **params) == tokens
    assert completed(target_dir, backend, *names[:3], "ahead:8", **params) != tokens
