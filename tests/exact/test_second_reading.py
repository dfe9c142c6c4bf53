"""Is the second reading itself right? A slow one agrees; with any known mistake it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exact.second_reading import (
    block_logits,
    drafted_logits,
    eagle_logits,
    propose_block,
    propose_eagle,
    slot_states,
    target_ids,
)
from exact.second_reading_cases import (
    KNOWN,
    MASK_ID,
    NUM_CHAINED,
    SHORT_SLOTS,
    Case,
    answers,
    apart,
    cases,
    fingerprint,
    unanswered,
)
from exact.second_reading_slowly import (
    BLOCK_MISTAKES,
    EAGLE_MISTAKES,
    GATED_MISTAKES,
    RNN_MISTAKES,
    paths_of,
    slow_block,
    slow_eagle,
    slow_markov,
)

ALL = {case.name: case for case in cases()}
BLOCKS = [name for name, case in ALL.items() if case.is_block]
EAGLES = [name for name, case in ALL.items() if not case.is_block]
TREES = [name for name in BLOCKS if ALL[name].has_tree]
MARKOVS = ["block_shifted_markov", *TREES]
SAME, FAR = 1e-10, 1e-2  # standard deviations of the logits


def changed(case: Case, **fields: Any) -> Case:
    """The case with other fields of its spec."""
    return replace(case, spec=case.spec | fields)


def logits_of(case: Case, **given: Any) -> np.ndarray:
    """The second reading's logits of a whole block."""
    wanted = {"features": case.features, "start": case.start, "num_slots": case.spec["block_len"]}
    wanted |= {"pending": case.pending, "token_embedding": case.table, "head": case.head}
    return block_logits(case.tensors, case.spec, **(wanted | given))


def tree_of(case: Case) -> tuple[list[int], list[int]]:
    return [int(one) for one in case.drafted], [int(one) for one in case.parents]


# --- the vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_stored_answers_are_reproduced(name: str) -> None:
    # given a case made anew from its seed
    case = unanswered(name)
    with np.load(KNOWN / f"{name}.npz") as stored:
        # then it is the case whose answers were stored
        assert int(stored["fingerprint"]) == fingerprint(case)
        assert np.array_equal(stored["features"], case.features)
        assert np.array_equal(stored["tokens"], case.tokens)
        # and the answers are the stored ones
        for key, found in answers(case).items():
            assert apart(found, stored[key]) < SAME, key
    case.built_spec()


def test_the_vectors_stay_small() -> None:
    assert sum(path.stat().st_size for path in KNOWN.iterdir()) < 200_000


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_tells(name: str) -> None:
    # given a case of which any one tensor has its rows in another order
    case = ALL[name]
    for one, tensor in case.tensors.items():
        rows = tensor[..., ::-1] if len(tensor) == 1 else tensor[::-1]
        rows = rows + 0.5 if rows.size == 1 else rows
        found = answers(replace(case, tensors=case.tensors | {one: rows}))
        # then some answer is far from the stored one
        assert max(apart(found[key], case.answers[key]) for key in found) > FAR, one


@pytest.mark.parametrize("name", ALL)
def test_every_input_tells(name: str) -> None:
    case = ALL[name]
    first = case.features.copy()
    first[0] *= -1  # the token furthest away, at the edge of what any window or mask lets through
    for other in (
        replace(case, features=first),
        replace(case, features=case.features[::-1]),
        replace(case, tokens=np.append(case.tokens[:-1], (case.pending + 1) % 90)),
        replace(case, table=case.table[::-1]),
    ):
        found = answers(other)
        assert max(apart(found[key], case.answers[key]) for key in found) > 1e-4


# --- block drafters -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_a_slow_reading_of_a_block_agrees(name: str) -> None:
    case = ALL[name]
    assert apart(slow_block(case, case.spec["block_len"]), case.answers["logits"]) < SAME
    assert apart(slow_block(case, SHORT_SLOTS), case.answers["short_logits"]) < SAME


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("wrong", BLOCK_MISTAKES)
def test_a_block_read_wrongly_is_told(name: str, wrong: str) -> None:
    case = ALL[name]
    assert apart(slow_block(case, case.spec["block_len"], wrong), case.answers["logits"]) > FAR


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("fields", [{"windows": (7, 0)}, {"windows": (9, 0)}, {"windows": (8, 8)}])
def test_a_window_of_another_length_is_told(name: str, fields: dict[str, Any]) -> None:
    case = ALL[name]
    assert apart(logits_of(changed(case, **fields)), case.answers["logits"]) > FAR


@pytest.mark.parametrize("name", BLOCKS)
def test_a_layer_with_the_other_mask_is_told(name: str) -> None:
    case = ALL[name]
    for layer in range(2):
        flipped = [one ^ (at == layer) for at, one in enumerate(case.spec["is_causal"])]
        assert apart(logits_of(changed(case, is_causal=flipped)), case.answers["logits"]) > FAR


@pytest.mark.parametrize("name", BLOCKS)
def test_only_distances_between_positions_count(name: str) -> None:
    # given the same text a hundred positions further on
    case = ALL[name]
    # then the logits are the same, so "absolute" means: one count for context and block
    assert apart(logits_of(case, start=case.start + 100), case.answers["logits"]) < 1e-9


def test_a_window_needs_no_more_than_it_sees() -> None:
    # given a drafter whose layers all see eight positions, their own among them
    case = changed(ALL["block_window_causal"], windows=(8, 8))
    whole = logits_of(case)
    # then seven features are enough, and six are not
    assert apart(logits_of(case, features=case.features[-7:]), whole) < SAME
    assert apart(logits_of(case, features=case.features[-6:]), whole) > FAR


def test_a_block_that_looks_back_only_does_not_know_its_length() -> None:
    # given a drafter with causal layers only
    case = changed(ALL["block_window_causal"], is_causal=(True, True))
    assert apart(logits_of(case, num_slots=3), logits_of(case)[:3]) < SAME
    # and a control: with one layer that looks ahead, fewer masks are another question
    case = ALL["block_window_causal"]
    assert apart(case.answers["short_logits"], case.answers["logits"][:SHORT_SLOTS]) > FAR


def test_slots_speak_of_their_own_place_or_of_the_next() -> None:
    for name in ("block_same_position", "block_window_causal"):
        case = ALL[name]
        best = case.answers["logits"].argmax(axis=-1)
        is_shifted = case.spec["is_shifted"]
        # then a block proposes as many tokens as its spec says, from the slots that speak
        assert list(case.answers["greedy"]) == list(best if is_shifted else best[1:])
        assert len(case.answers["greedy"]) == case.built_spec().max_drafted
        # and a control: read the other way the block says something else
        other = answers(changed(case, is_shifted=not is_shifted))["greedy"]
        assert list(other[:7]) != list(case.answers["greedy"][:7])


def test_a_markov_head_adds_the_token_before() -> None:
    case = ALL["block_shifted_markov"]
    first, second = (case.tensors[f"markov_head.markov_w{one}.weight"] for one in (1, 2))
    before = [case.pending, *case.answers["greedy"][:-1]]
    # then each slot's logits are its own plus a row of the product of both tables
    expected = case.answers["logits"] + (first.astype(np.float64) @ second.T)[before]
    assert apart(case.answers["greedy_logits"], expected) < SAME
    # and the controls: without it, or with the token itself, the block is another one
    assert list(case.answers["greedy"]) != list(case.answers["logits"].argmax(axis=-1))
    own = case.answers["logits"] + (first.astype(np.float64) @ second.T)[case.answers["greedy"]]
    assert apart(own, case.answers["greedy_logits"]) > FAR


def test_confidence_is_of_the_state_and_the_token_before() -> None:
    case = ALL["block_shifted_markov"]
    assert ((case.answers["confidence"] > 0) & (case.answers["confidence"] < 1)).all()
    # given another pending token under the same states
    states = slot_states(
        case.tensors, case.spec, case.features, case.table, case.pending, case.start, 8
    )
    found = propose_block(case.tensors, case.spec, states, case.head, MASK_ID).confidence
    # then the first slot is judged anew
    assert found is not None
    assert abs(found[0] - case.answers["confidence"][0]) > 1e-3


# --- Markov heads that read more than the token before --------------------------------------------


def states_of(case: Case) -> np.ndarray:
    given = case.tensors, case.spec, case.features, case.table, case.pending, case.start
    return slot_states(*given, case.spec["block_len"])


def answer(case: Case) -> np.ndarray:
    return case.answers["tree_logits"]


def below(case: Case, *drafted: int) -> np.ndarray:
    """Logits behind a chain of tokens below the pending one."""
    given = case.tensors, case.spec, states_of(case), case.head, case.pending
    return drafted_logits(*given, drafted, range(len(drafted)))[-1]


@pytest.mark.parametrize("name", TREES)
def test_a_slow_reading_of_a_markov_head_agrees(name: str) -> None:
    # given a tree, every node of which the slow reading reads along its own path alone
    case = ALL[name]
    assert apart(slow_markov(case, states_of(case), paths_of(case)), answer(case)) < SAME


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("block_gated", wrong) for wrong in GATED_MISTAKES),
        *(("block_rnn", wrong) for wrong in RNN_MISTAKES),
    ],
)
def test_a_markov_head_read_wrongly_is_told(name: str, wrong: str) -> None:
    case = ALL[name]
    assert apart(slow_markov(case, states_of(case), paths_of(case), wrong), answer(case)) > FAR


@pytest.mark.parametrize("name", MARKOVS)
def test_a_greedy_block_is_a_chain_of_its_own_tokens(name: str) -> None:
    case = ALL[name]
    chain = [int(one) for one in case.answers["greedy"][:-1]]
    given = case.tensors, case.spec, states_of(case), case.head, case.pending
    found = drafted_logits(*given, chain, range(len(chain)))
    assert apart(found, case.answers["greedy_logits"]) < SAME


@pytest.mark.parametrize("name", MARKOVS)
def test_only_an_rnn_remembers_tokens_before_the_one_before(name: str) -> None:
    case = ALL[name]
    # given two drafts that differ in their first token alone
    one, other = below(case, 7, 40), below(case, 8, 40)
    # then the third slot has another law if its head has a memory; the controls have none
    assert (apart(one, other) > FAR) is (name == "block_rnn")
    assert (apart(one, other) == 0) is (name != "block_rnn")
    # and each slot knows the token just before it
    assert apart(one, below(case, 7, 41)) > FAR


def test_what_an_rnn_remembers_fades_and_is_not_lost() -> None:
    case = ALL["block_rnn"]
    # given drafts that are alike from the second token on
    found = [
        apart(below(case, 7, *[40] * num_alike), below(case, 8, *[40] * num_alike))
        for num_alike in (1, 6)
    ]
    # then the first is less heard further below
    assert found[0] > found[1] > SAME


# --- EAGLE-3 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EAGLES)
def test_a_slow_reading_of_a_tree_agrees(name: str) -> None:
    # given a tree, every node of which the slow reading reads along its own path alone
    assert apart(slow_eagle(ALL[name]), ALL[name].answers["logits"]) < SAME


@pytest.mark.parametrize("name", EAGLES)
@pytest.mark.parametrize("wrong", EAGLE_MISTAKES)
def test_a_tree_read_wrongly_is_told(name: str, wrong: str) -> None:
    assert apart(slow_eagle(ALL[name], wrong), ALL[name].answers["logits"]) > FAR


@pytest.mark.parametrize("name", EAGLES)
def test_a_residual_taken_after_the_norm_is_the_switch(name: str) -> None:
    case = ALL[name]
    given = case.tensors, case.spec | {"norm_before_residual": True}, case.features, case.tokens
    switched = eagle_logits(*given, case.table, *tree_of(case))
    assert apart(switched, slow_eagle(case, "feature kept is normed")) < SAME
    assert apart(switched, case.answers["logits"]) > FAR


def test_a_token_map_gives_the_targets_ids() -> None:
    case = ALL["eagle_token_map"]
    best = case.answers["greedy_logits"].argmax(axis=-1)
    # given a map from 40 ids onto 40 of the target's
    every = target_ids(case.tensors, case.spec, np.arange(40))
    assert (np.diff(every) > 0).all()
    assert every[-1] < 96
    # then the chain is of those, and a control: it is not the drafter's own ids
    assert list(case.answers["greedy"]) == list(every[best])
    assert list(case.answers["greedy"]) != list(best)


@pytest.mark.parametrize("name", EAGLES)
def test_a_chain_is_a_tree_of_its_own_tokens(name: str) -> None:
    case = ALL[name]
    given = case.tensors, case.spec, case.features, list(case.tokens), case.table
    # given a tree beside which the greedy chain hangs
    drafted, parents = tree_of(case)
    chain = [int(one) for one in case.answers["greedy"]]
    below = [0, *range(len(drafted) + 1, len(drafted) + NUM_CHAINED)]
    both = eagle_logits(*given, [*drafted, *chain], [*parents, *below])
    # then neither changes the other
    assert apart(both[: len(drafted) + 1], case.answers["logits"]) < SAME
    assert apart(both[len(drafted) + 1 : -1], case.answers["greedy_logits"][1:]) < SAME
    assert len(propose_eagle(*given, num_drafted=2).tokens) == 2
