"""The torch backend: the plain decoder's logits, and bits that no company changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from forerun import sampling  # noqa: E402  after the skip
from forerun.backends.prefill import prefill  # noqa: E402
from forerun.backends.torch.attention import _leaf_paths  # noqa: E402
from forerun.backends.torch.backend import TorchBackend  # noqa: E402
from forerun.errors import BackendError  # noqa: E402
from forerun.models.weights import open_checkpoint  # noqa: E402
from forerun.options import SamplingParams  # noqa: E402
from forerun.protocols import ForwardBatch, ProposalPlan, Sampler, Selection  # noqa: E402

NUM_BLOCKS = 24


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def opened(directory, **options):
    return TorchBackend(open_checkpoint(directory), num_blocks=NUM_BLOCKS, **options)


@pytest.fixture(scope="module")
def backend(tiny_checkpoint_dir):
    return opened(tiny_checkpoint_dir("qwen3", 0))


def batch_of(rows, table):
    """Rows are (tokens, parents, committed); all logits are wanted."""
    starts = np.cumsum([0] + [len(tokens) for tokens, _, _ in rows])
    return ForwardBatch(
        token_ids=np.concatenate([np.array(tokens) for tokens, _, _ in rows]).astype(np.int32),
        parents=np.concatenate([np.array(parents) for _, parents, _ in rows]).astype(np.int32),
        row_starts=starts.astype(np.int32),
        committed=np.array([committed for _, _, committed in rows], np.int32),
        block_table=np.array(table, np.int32),
        logit_nodes=np.arange(starts[-1], dtype=np.int32),
    )


def chain(tokens, committed=0):
    return tokens, list(range(-1, len(tokens) - 1)), committed


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_given_a_family_then_logits_are_those_of_the_plain_decoder(family, tiny_checkpoint_dir):
    backend = opened(tiny_checkpoint_dir(family, 3), dtype="float64")
    tokens = text(70)

    made = backend.forward(batch_of([chain(tokens)], [[5, 2, 9]])).logits

    with torch.inference_mode():
        expected = backend._decoder(torch.tensor([tokens]))[0]
    assert backend.numerics == "torch-cpu-float64"
    assert torch.allclose(made.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_given_any_company_then_a_position_has_the_bits_of_one_by_one_decoding(
    tiny_checkpoint_dir, dtype
):
    backend = opened(tiny_checkpoint_dir("qwen3", 0), dtype=dtype)
    tokens = text(75)
    alone = one_by_one(backend, tokens)

    for cut in (1, 31, 33, 74):
        prefill(backend, np.array([[7, 8, 9]], np.int32), tokens[:cut], 0)
        rest = chain(tokens[cut:], cut)
        other = chain(text(45, seed=1))
        made = backend.forward(batch_of([other, rest], [[3, 4, 5], [7, 8, 9]])).logits
        assert torch.equal(made[45:], alone[cut:])
    assert backend.exactness == "tokens"


def one_by_one(backend, tokens):
    logits = []
    for place, token in enumerate(tokens):
        batch = batch_of([chain([token], place)], [[0, 1, 2]])
        logits.append(backend.forward(batch).logits)
        backend.commit(batch, [[0]])
    return torch.cat(logits)


def test_given_a_tree_then_each_node_has_the_bits_of_its_own_path(backend):
    known = text(40)
    table = [[0, 1, 2]]
    prefill(backend, np.array(table, np.int32), known, 0)
    tokens, parents = [1, 2, 3, 4, 5, 6, 7], [-1, 0, 0, 1, 2, 4, 1]

    made = backend.forward(batch_of([(tokens, parents, 40)], table)).logits

    for node in range(len(tokens)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        line = chain([tokens[one] for one in path], 40)
        alone = backend.forward(batch_of([line], table)).logits
        assert torch.equal(made[node], alone[-1])


def test_given_a_kept_path_then_what_follows_is_as_if_it_had_been_a_chain(backend):
    known = text(31)
    table = [[4, 6]]
    prefill(backend, np.array(table, np.int32), known, 0)
    tree = batch_of([([1, 2, 3, 4], [-1, 0, 0, 2], 31)], table)
    backend.forward(tree)
    backend.commit(tree, [[0, 2, 3]])

    made = backend.forward(batch_of([chain([9], 34)], table)).logits

    assert torch.equal(made[0], one_by_one(backend, [*known, 1, 3, 4, 9])[-1])


def test_given_an_empty_path_then_nothing_is_kept(backend):
    table = [[3], [4]]
    before = backend._keys[0].clone()
    batch = batch_of([chain([1, 2]), chain([3])], table)
    backend.forward(batch)

    backend.commit(batch, [[], []])

    assert torch.equal(backend._keys[0], before)


def test_given_a_commit_of_another_batch_then_it_is_refused(backend):
    backend.forward(batch_of([chain([1])], [[0]]))

    with pytest.raises(BackendError, match="must follow the forward"):
        backend.commit(batch_of([chain([1])], [[0]]), [[0]])


def test_given_a_tree_then_its_leaf_paths_cover_every_node_once():
    parents = [-1, 0, 0, 1, 2, 4, 1]

    paths = _leaf_paths(parents)

    fresh = [node for nodes, num_old in paths for node in nodes[num_old:]]
    assert sorted(fresh) == list(range(len(parents)))
    for nodes, num_old in paths:
        assert all(parents[below] == above for above, below in itertools.pairwise(nodes))
        assert set(nodes[:num_old]).isdisjoint(nodes[num_old:])


def selection_of(samplers, positions):
    num = len(positions)
    return Selection(
        np.array(positions, np.int64),
        np.arange(num, dtype=np.int32) % len(samplers),
        samplers,
        np.zeros(num + 1, np.int32),
        np.zeros(0, np.int32),
    )


def test_given_rows_then_select_law_and_logprobs_are_the_reference_s(backend):
    samplers = [
        Sampler(SamplingParams(temperature=0.0), 1),
        Sampler(SamplingParams(temperature=0.8, top_p=0.9), 2),
    ]
    logits = backend.forward(batch_of([chain([1, 2])], [[0]])).logits
    rows = logits.numpy()

    chosen = backend.select(logits, selection_of(samplers, [10, 11]))
    laws = backend.law(logits, selection_of(samplers, [10, 11]))

    for row, sampler in enumerate(samplers):
        assert chosen[row] == sampling.select(rows[row], sampler, 10 + row)
        expected = sampling.law(sampling.process(rows[row], sampler))
        assert np.allclose(laws[row], expected, atol=1e-7)
    values = backend.logprobs(logits, np.array([1], np.int32))
    assert np.allclose(values, torch.log_softmax(logits[1:], -1).numpy(), atol=1e-5)


def test_given_nan_logits_then_only_that_row_has_no_choice(backend):
    logits = torch.zeros((2, 272))
    logits[0, 3] = torch.nan

    chosen = backend.select(logits, selection_of([Sampler(SamplingParams(), 1)], [4, 4]))

    assert chosen.tolist() == [-1, 0]


def test_given_a_proposal_then_it_is_what_the_model_would_say_one_by_one(backend):
    params = SamplingParams(temperature=0.9, repetition_penalty=1.3, presence_penalty=0.5)
    texts = [text(40, seed=2), text(5, seed=3)]
    samplers = [
        Sampler(params, seed, np.unique(np.array(tokens, np.int32)))
        for seed, tokens in enumerate(texts)
    ]
    table = np.array([[0, 1], [2, 3]], np.int32)
    prefill(backend, table[:1], texts[0][:37], 0)
    plan = ProposalPlan(
        catch_up=np.array(texts[0][37:] + texts[1], np.int32),
        catch_up_starts=np.array([0, 3, 8], np.int32),
        committed=np.array([37, 0], np.int32),
        block_table=table,
        samplers=samplers,
        num_steps=4,
    )

    proposed = backend.propose(plan)

    for row, tokens in enumerate(texts):
        line: list[int] = []
        for _ in range(4):
            whole = [*tokens, *line]
            logits = backend.forward(batch_of([chain(whole)], [[5, 6]])).logits[-1].numpy()
            line.append(sampling.select(logits, samplers[row], len(whole), line))
        assert proposed[row].tolist() == line


def test_given_an_unusable_device_then_the_message_says_which(tiny_checkpoint_dir):
    with pytest.raises(BackendError, match="device 'abacus'"):
        opened(tiny_checkpoint_dir("qwen3", 0), device="abacus")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_given_an_accelerator_then_logits_agree_with_the_cpu(tiny_checkpoint_dir, backend):
    tokens = text(70)
    there = opened(tiny_checkpoint_dir("qwen3", 0), device="cuda")

    made = there.forward(batch_of([chain(tokens)], [[5, 2, 9]])).logits

    expected = backend.forward(batch_of([chain(tokens)], [[5, 2, 9]])).logits
    assert there.numerics == "torch-cuda-float32"
    assert torch.allclose(made.cpu(), expected, rtol=1e-3, atol=1e-3)
