"""Every backend's Markov heads against the second reading, along trees and with parts mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from exact.second_reading import drafted_logits, slot_states
from exact.second_reading_cases import TREE_PARENTS, Case
from exact.test_drafter_readings import (
    ALL,
    MARKOVS,
    Opened,
    backends,
    one_thread,
    plan_of,
    share_lost,
)
from forerun.draft import Draft
from forerun.models.drafter_spec import MarkovKind

__all__ = ["one_thread"]  # a fixture of every test here


def reordered(case: Case, layer: str, rows: Sequence[int], columns: Sequence[int]) -> Case:
    """The case with parts of a Markov head's matrix and shift, each of the head's rank, elsewhere;
    a part of -1 is nothing."""
    rank, name = case.spec["markov_rank"], f"markov_head.{layer}"
    weight, bias = case.tensors[f"{name}.weight"], case.tensors[f"{name}.bias"]
    nothing = np.zeros_like(weight[:, :rank])
    cut = [*np.split(weight, range(rank, weight.shape[1], rank), axis=1), nothing]
    weight = np.concatenate([cut[one] for one in columns], axis=1)
    weight = np.concatenate([np.split(weight, len(weight) // rank)[one] for one in rows])
    bias = np.concatenate([np.split(bias, len(bias) // rank)[one] for one in rows])
    return replace(case, tensors=case.tensors | {f"{name}.weight": weight, f"{name}.bias": bias})


REORDERED = {  # hidden states of 64 are eight parts of the rnn's rank, of 48 three of the gate's
    "state forgotten": ("block_rnn", "joint_proj", (0, 1, 2), (-1, *range(1, 10))),
    "gate and candidate": ("block_rnn", "joint_proj", (1, 0, 2), range(10)),
    "candidate and output": ("block_rnn", "joint_proj", (0, 2, 1), range(10)),
    "hidden and embedding": ("block_rnn", "joint_proj", (0, 1, 2), (0, 9, *range(1, 9))),
    "state and embedding": ("block_rnn", "joint_proj", (0, 1, 2), (1, 0, *range(2, 10))),
    "gate": ("block_gated", "gate_proj", (0,), (3, 0, 1, 2)),
}


@backends
@pytest.mark.parametrize(("name", "layer", "rows", "columns"), REORDERED.values(), ids=REORDERED)
def test_a_backend_with_a_markov_head_in_another_order_is_told(
    name: str,
    layer: str,
    rows: Sequence[int],
    columns: Sequence[int],
    opened: Opened,
    close: float,
) -> None:
    assert share_lost(opened, name, lambda case: reordered(case, layer, rows, columns)) > 0.5


def tree_log_scores(case: Case, draft: Draft) -> NDArray[np.float64]:
    """Of each drafted node, the logarithm of its path's probability by the second reading."""
    given = case.tensors, case.spec, case.features, case.table, case.pending, case.start
    states = slot_states(*given, case.spec["block_len"])
    tree = draft.tree.tokens[1:].tolist(), draft.tree.parents[1:].tolist()
    logits = drafted_logits(case.tensors, case.spec, states, case.head, case.pending, *tree)
    scores = [0.0]
    for token, parent in zip(*tree, strict=True):
        law = logits[parent] - logits[parent].max()
        scores.append(scores[parent] + law[token] - np.log(np.exp(law).sum()))
    return np.array(scores[1:])


@backends
@pytest.mark.parametrize("name", MARKOVS)
def test_backends_draft_a_tree_whose_nodes_hear_their_own_paths(
    name: str, opened: Opened, close: float
) -> None:
    case = ALL[name]
    with opened(case) as backend:
        (draft,) = backend.grow(plan_of(case, 0, case.start, TREE_PARENTS), case.features)
    assert sorted(draft.tree.depths()[1:].tolist()) == [1, 1, 2, 2, 2, 3, 4, 4]
    assert draft.scores is not None
    found = np.log(draft.scores[1:])
    assert np.abs(found - tree_log_scores(case, draft)).max() < close
    # and the controls: a head that hears less is another
    if case.has_tree:
        wrong = replace(case, spec=case.spec | {"markov_kind": MarkovKind.VANILLA})
        assert np.abs(found - tree_log_scores(wrong, draft)).max() > 5 * close
    if name == "block_rnn":
        deaf = reordered(case, *REORDERED["state forgotten"][1:])
        assert np.abs(found - tree_log_scores(deaf, draft)).max() > 3 * close
