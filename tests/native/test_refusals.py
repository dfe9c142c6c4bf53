"""What the native backend refuses, in words a caller can act on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import Row, Text, batch_of, chain, opened, random_checkpoint, tiny_spec

from forerun.backends.native import NativeBackend
from forerun.errors import BackendError, CapacityError, ForerunError, ModelError
from forerun.options import SamplingParams
from forerun.protocols import ForwardBatch, ProposalPlan, Sampler, Selection

REFUSED = (ForerunError, ValueError)


@pytest.fixture(scope="module")
def backend() -> Iterator[NativeBackend]:
    # 4 blocks of 32 positions: 128 of context
    with opened(random_checkpoint(tiny_spec(num_layers=1), 0), num_blocks=4) as made:
        yield made


@pytest.fixture(autouse=True)
def still_works(backend: NativeBackend) -> Iterator[None]:
    """A refusal leaves the backend as it was."""
    before = Text(backend, [3]).read([1, 2, 3])
    yield
    np.testing.assert_array_equal(Text(backend, [3]).read([1, 2, 3]), before)


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


GOOD = batch_of([Row([1, 2, 3, 4], [-1, 0, 0, 1], 5, [0, 1])])


# --- models --------------------------------------------------------------------------------------


def test_more_than_32_query_heads_a_kv_head_are_named() -> None:
    spec = tiny_spec(num_heads=33, num_kv_heads=1, head_dim=2)
    with pytest.raises(ModelError, match=r"33 query heads.*at most 32"):
        NativeBackend(random_checkpoint(spec, 0), num_blocks=1)


@pytest.mark.parametrize("group", [32, 31, 17])
def test_up_to_32_query_heads_a_kv_head_work(group: int) -> None:
    spec = tiny_spec(num_heads=group, num_kv_heads=1, head_dim=4, num_layers=1)
    with opened(random_checkpoint(spec, 0)) as backend:
        assert np.isfinite(Text(backend, [0]).read([1, 2, 3])).all()


@pytest.mark.parametrize("num_blocks", [10**7, 2**31, 2**40, 2**62])
def test_absurd_numbers_of_blocks_do_not_fit(num_blocks: int) -> None:
    checkpoint = random_checkpoint(tiny_spec(), 0)
    with pytest.raises(CapacityError, match=r"\d"):
        NativeBackend(checkpoint, num_blocks=num_blocks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"isa": "sse9"}, r"sse9.*portable"),
        ({"cores": (4095,)}, "core 4095"),
        ({"cores": ()}, "at least one thread"),
    ],
)
def test_machines_that_are_not_there(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=words):
        NativeBackend(random_checkpoint(tiny_spec(), 0), num_blocks=1, **options)


# --- forward passes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_ids": ints(1, 97, 3, 4)}, "token 97 is outside the vocabulary of 97"),
        ({"token_ids": ints(1, -1, 3, 4)}, "token -1 is outside"),
        ({"parents": ints(-1, 0, 2, 1)}, "parent"),
        ({"parents": ints(-1, 0, 3, 1)}, "parent"),
        ({"parents": ints(-1, -1, 0, 1)}, "parent"),
        ({"parents": ints(0, 0, 0, 1)}, "parent"),
        ({"parents": ints(-1, 0, -2, 1)}, "parent"),
        ({"parents": ints(-1, 0, 0)}, "do not fit together"),
        ({"block_table": ints(0, 4)[None], "committed": ints(31)}, "block 4 of 4"),
        ({"block_table": ints(-1, 1)[None]}, "block -1 of 4"),
        ({"block_table": ints(0, 1)[None].repeat(2, 0)}, "do not fit together"),
        ({"committed": ints(62)}, r"positions need 3 K/V blocks, the row has 2"),
        ({"committed": ints(-1)}, r"without nodes|committed"),
        (
            {"block_table": ints(0, 1, 2, 3, 0, 1)[None], "committed": ints(126)},
            r"position 128 is past the context of 128",
        ),
        ({"row_starts": ints(0, 3)}, "row_starts"),
        ({"row_starts": ints(1, 4)}, "row_starts"),
        (
            {
                "row_starts": ints(0, 0, 4),
                "committed": ints(0, 0),
                "block_table": ints(0, 1)[:, None],
            },
            "without nodes",
        ),
        ({"logit_nodes": ints(4)}, "logit node"),
        ({"logit_nodes": ints(-1)}, "logit node"),
    ],
)
def test_bad_batches(backend: NativeBackend, change: dict[str, Any], words: str) -> None:
    batch = replace(GOOD, **change)
    with pytest.raises(REFUSED, match=words):
        backend.forward(batch)


def test_rows_that_run_backwards(backend: NativeBackend) -> None:
    # given a first row that ends behind the nodes, which are the start of longer arrays
    batch = replace(
        GOOD,
        token_ids=ints(1, 2, 3, 4, 5, 6)[:4],
        parents=ints(-1, 0, 1, 2, 3, 4)[:4],
        row_starts=ints(0, 5, 4),
        committed=ints(0, 0),
        block_table=ints(0, 1)[:, None],
    )
    with pytest.raises(REFUSED, match=r"nodes|row_starts"):
        backend.forward(batch)


@pytest.mark.parametrize("layer", [1, -1])
def test_taps_of_layers_that_are_not_there(backend: NativeBackend, layer: int) -> None:
    with pytest.raises(REFUSED, match="layer"):
        backend.forward(replace(GOOD, tap_layers=(layer,)))


def test_an_empty_batch(backend: NativeBackend) -> None:
    empty = ForwardBatch(ints(), ints(), ints(0), ints(), np.zeros((0, 1), np.int32), ints())
    with pytest.raises(REFUSED, match="empty"):
        backend.forward(empty)


def test_the_last_position_of_the_context_works(backend: NativeBackend) -> None:
    batch = batch_of([Row([1], chain(1), 127, [0, 1, 2, 3])])
    assert backend.forward(batch).logits.shape == (1, 97)


@pytest.mark.parametrize(
    "path", [[1], [0, 2, 3], [0, 3], [0, 1, 2], [0, 4], [0, -1], [0, 0], [1, 3]]
)
def test_paths_that_leave_the_tree(backend: NativeBackend, path: list[int]) -> None:
    backend.forward(GOOD)
    with pytest.raises(REFUSED, match="along parents"):
        backend.commit(GOOD, [path])


def test_as_many_paths_as_rows(backend: NativeBackend) -> None:
    backend.forward(GOOD)
    with pytest.raises(REFUSED, match="path"):
        backend.commit(GOOD, [[0], [0]])


# --- choosing and proposing ----------------------------------------------------------------------


def asked(sampler: Sampler, path: tuple[int, ...] = ()) -> Selection:
    return Selection(np.array([5]), ints(0), [sampler], ints(0, len(path)), ints(*path))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(SamplingParams(logit_bias={97: 1.0}), 1),
        Sampler(SamplingParams(allowed_tokens=(3, 97)), 1),
        Sampler(SamplingParams(allowed_tokens=(-1,)), 1),
        Sampler(SamplingParams(repetition_penalty=2.0), 1, prompt_ids=ints(97)),
        Sampler(
            SamplingParams(presence_penalty=1.0), 1, output_ids=ints(-5), output_counts=ints(1)
        ),
    ],
)
def test_sampler_ids_outside_the_vocabulary(backend: NativeBackend, sampler: Sampler) -> None:
    logits = np.zeros((1, 97), np.float32)
    for choose in (backend.select, backend.law):
        with pytest.raises(REFUSED, match="outside the vocabulary of 97"):
            choose(logits, asked(sampler))


def test_selections_that_do_not_fit(backend: NativeBackend) -> None:
    sampler, logits = Sampler(SamplingParams(), 1), np.zeros((2, 97), np.float32)
    with pytest.raises(REFUSED, match="per row"):
        backend.select(logits, asked(sampler))
    with pytest.raises(REFUSED, match="outside the vocabulary"):
        backend.select(logits[:1], asked(sampler, path=(97,)))
    with pytest.raises(REFUSED, match="sampler"):
        backend.select(logits[:1], replace(asked(sampler), sampler_of=ints(1)))
    with pytest.raises(REFUSED, match="row"):
        backend.logprobs(logits, ints(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"catch_up": ints(1, 97)}, "token 97"),
        ({"committed": ints(126)}, "128"),
        ({"block_table": ints(0, 9, 1, 2)[None], "committed": ints(31)}, "block 9 of 4"),
        ({"catch_up_starts": ints(0, 0)}, "rise from 0 to 2"),
        ({"catch_up_starts": ints(1, 2)}, "rise from 0"),
        ({"samplers": [Sampler(SamplingParams(logit_bias={97: 1.0}), 1)]}, "token 97"),
        ({"num_steps": 0}, "proposal"),
        ({"samplers": []}, "proposal"),
    ],
)
def test_bad_proposals(backend: NativeBackend, change: dict[str, Any], words: str) -> None:
    plan = ProposalPlan(
        ints(1, 2),
        ints(0, 2),
        ints(0),
        ints(0, 1, 2, 3)[None],
        [Sampler(SamplingParams(), 1)],
        num_steps=2,
    )
    assert backend.propose(plan).shape == (1, 2)
    with pytest.raises(REFUSED, match=words):
        backend.propose(replace(plan, **change))


def test_a_node_may_be_asked_for_many_times(backend: NativeBackend) -> None:
    # given far more rows of logits than nodes
    batch = replace(GOOD, logit_nodes=np.zeros(5000, np.int32))
    # then each is the node's own
    found = np.array(backend.forward(batch).logits)
    assert (found == found[0]).all()


def test_old_logits_outlive_the_next_forward(backend: NativeBackend) -> None:
    kept = backend.forward(GOOD).logits
    before = np.array(kept)
    backend.forward(replace(GOOD, logit_nodes=np.zeros(9000, np.int32)))
    np.testing.assert_array_equal(kept, before)


def test_commit_refuses_a_batch_that_was_not_computed(backend: NativeBackend) -> None:
    backend.forward(GOOD)
    with pytest.raises(REFUSED, match="last forward"):
        backend.commit(replace(GOOD, committed=GOOD.committed + 1), [[0]])
