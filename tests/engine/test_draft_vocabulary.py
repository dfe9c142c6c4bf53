"""Drafters whose head knows some of the target's tokens, end to end: those of plain decoding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.feature_drafters import SCALE, specs_of
from engine.lattice import completions, differences, outcomes, unstopped
from forerun import Engine, Speculation
from forerun.models.drafter_files import drafter_tensors, write_drafter
from forerun.models.drafter_spec import MarkovKind

NUM_KNOWN = 200
KINDS = {
    "plain": {},
    "vanilla": {"is_shifted": True, "markov_rank": 8},
    "gated": {"is_shifted": True, "markov_rank": 8, "markov_kind": MarkovKind.GATED},
    "rnn": {"is_shifted": True, "markov_rank": 8, "markov_kind": MarkovKind.RNN},
}
WAYS = (
    ("chain:3", "match", "sequential"),
    ("tree:5", "match", "sequential"),
    ("tree:auto", "match", "sequential"),
    ("chain:3", "match", "ahead:8"),
    ("tree:5", "match", "ahead:8"),
)


@pytest.fixture(scope="session")
def written(tmp_path_factory, target_dir):
    """A directory for each kind, in the one layout that says how many tokens a head knows."""
    root, block = tmp_path_factory.mktemp("few_tokens"), specs_of(target_dir)["dflash"][1]
    known = np.sort(np.random.default_rng(5).permutation(block.body.vocab)[:NUM_KNOWN])
    for seed, (name, changes) in enumerate(KINDS.items()):
        spec = replace(block, draft_vocab=NUM_KNOWN, **changes)
        rng = np.random.default_rng(seed)
        tensors = {
            tensor: rng.normal(float(len(shape) == 1), 0.05 if len(shape) == 1 else SCALE, shape)
            .astype(np.float32)
            for tensor, shape in drafter_tensors(spec).items()
        }  # fmt: skip
        tensors["d2t"] = known - np.arange(NUM_KNOWN)
        write_drafter(root / name, spec, tensors, layout="speculators", tokenizer_from=target_dir)
    return {name: f"{'dspark' if KINDS[name] else 'dflash'}:{root / name}" for name in KINDS}


@pytest.fixture(scope="session")
def plain(target_dir):
    """What plain decoding says, by backend."""
    known = {}

    def of(backend):
        if backend not in known:
            with Engine(
                target_dir, speculate=Speculation("none"), backend=backend, threads=1
            ) as engine:
                known[backend] = outcomes(completions(engine, asked()))
        return known[backend]

    return of


def asked():
    return unstopped(max_tokens=12)


@pytest.mark.parametrize(("shape", "rule", "schedule"), WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_given_match_then_every_token_is_that_of_plain_decoding(
    target_dir, written, plain, backend, kind, shape, rule, schedule
):
    speculation = Speculation(written[kind], shape, rule, schedule)
    with Engine(target_dir, speculate=speculation, backend=backend, threads=1) as engine:
        made = completions(engine, asked())

    assert differences(plain(backend), outcomes(made)) == []
    assert sum(one.stats.num_failures for one in made) == 0
    assert sum(one.stats.num_drafted for one in made) > 0


@pytest.mark.parametrize(("shape", "rule"), [("chain:3", "rejection"), ("tree:5", "traversal")])
@pytest.mark.parametrize("kind", KINDS)
def test_given_a_sampled_rule_then_greedy_rows_decode_plainly(
    target_dir, written, plain, backend, kind, shape, rule
):
    speculation = Speculation(written[kind], shape, rule)
    with Engine(target_dir, speculate=speculation, backend=backend, threads=1) as engine:
        made, again = completions(engine, asked()), completions(engine, asked())

    assert outcomes(made) == outcomes(again)
    greedy = {at for at, (_, params) in enumerate(asked()) if params.temperature == 0}
    assert not greedy & set(differences(plain(backend), outcomes(made)))
    assert sum(one.stats.num_failures for one in made) == 0
