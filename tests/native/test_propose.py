"""A proposal in one native call is what decoding and choosing one token at a time would propose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from builders import (
    PATHS,
    Floats,
    Text,
    opened,
    random_checkpoint,
    require_same_bits,
    tiny_spec,
)

from forerun import sampling
from forerun.models.weights import WeightTensor
from forerun.options import SamplingParams
from forerun.protocols import ProposalPlan, Sampler

SPEC = tiny_spec(head_dim=80, num_heads=7, num_kv_heads=1, vocab=50, ffn=75)
CHECKPOINT = random_checkpoint(SPEC, 3)
SAMPLERS = [
    Sampler(SamplingParams(), 1),
    Sampler(SamplingParams(temperature=0.7), 2),
    Sampler(SamplingParams(temperature=1.2, top_p=0.8, presence_penalty=1.5), 2**60 + 1),
    Sampler(SamplingParams(repetition_penalty=3.0, allowed_tokens=tuple(range(10))), 4),
]
KEPT, NEW = [0, 29, 31, 64], [1, 5, 33, 2]  # tokens kept, and not yet seen, of each row
BLOCKS = [[4, 0, 9, 2], [1, 8, 3, 10], [5, 13, 6, 12], [7, 11, 15, 14]]


def known_text(row: int) -> list[int]:
    rng = np.random.default_rng(row)
    return rng.integers(0, SPEC.vocab, KEPT[row] + NEW[row]).tolist()


def step_by_step(row: int, num_steps: int) -> tuple[list[int], Floats]:
    """The tokens that plain decoding and the definition of choice give, and the last pass."""
    with opened(CHECKPOINT, isa="portable") as backend:
        text = Text(backend, range(4))
        found = text.decode(known_text(row))[-1]
        drafted: list[int] = []
        for _ in range(num_steps):
            logits = found[: SPEC.vocab]
            drafted.append(sampling.select(logits, SAMPLERS[row], text.committed, drafted))
            found = text.decode(drafted[-1:])[0]
    return drafted, found


def plan_of(rows: Sequence[int], num_steps: int) -> ProposalPlan:
    return ProposalPlan(
        catch_up=np.array([t for row in rows for t in known_text(row)[KEPT[row] :]], np.int32),
        catch_up_starts=np.cumsum([0, *(NEW[row] for row in rows)]).astype(np.int32),
        committed=np.array([KEPT[row] for row in rows], np.int32),
        block_table=np.array([BLOCKS[row] for row in rows], np.int32),
        samplers=[SAMPLERS[row] for row in rows],
        num_steps=num_steps,
    )


@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_proposal_is_decoding_and_choosing_step_by_step(isa: str, threads: int) -> None:
    expected = [step_by_step(row, 6) for row in range(4)]
    with opened(CHECKPOINT, isa=isa, threads=threads) as backend:
        texts = [Text(backend, blocks) for blocks in BLOCKS]
        for row, text in enumerate(texts):
            if KEPT[row]:
                text.read(known_text(row)[: KEPT[row]])
        # when four rows with other parameters and lengths propose at once, then each alone
        together = backend.propose(plan_of(range(4), 6))
        alone = [backend.propose(plan_of([row], 6))[0].tolist() for row in range(4)]
        # then both are what single steps give
        assert together.tolist() == alone == [drafted for drafted, _ in expected]
        # ... and the K/V of all but the last stayed, so that its logits are one pass away
        for row, text in enumerate(texts):
            text.committed = KEPT[row] + NEW[row] + 5
            require_same_bits(text.decode([alone[row][5]])[0], expected[row][1], f"row {row}")


def test_a_nan_ends_the_proposal_of_its_row_alone() -> None:
    # given a model in which token 7 is broken
    name, spec = "model.embed_tokens.weight", tiny_spec(vocab=50, tied=False)
    checkpoint = random_checkpoint(spec, 1)
    bits = checkpoint.tensor(name).array.copy()
    bits[7] = 0x7FC0  # NaN
    checkpoint.tensors[name] = WeightTensor(bits, "BF16")

    def proposed(*pending: int) -> list[list[int]]:
        rows = len(pending)
        plan = ProposalPlan(
            catch_up=np.array(pending, np.int32),
            catch_up_starts=np.arange(rows + 1, dtype=np.int32),
            committed=np.zeros(rows, np.int32),
            block_table=np.arange(rows, dtype=np.int32)[:, None],
            samplers=SAMPLERS[:1] * rows,
            num_steps=3,
        )
        found: list[list[int]] = backend.propose(plan).tolist()
        return found

    with opened(checkpoint) as backend:
        (sound,) = proposed(2)
        # then a row that reads it proposes nothing, and its neighbours what they would alone
        assert proposed(7, 2) == [[-1] * 3, sound]
        assert proposed(2, 7) == [sound, [-1] * 3]
        assert -1 not in sound
