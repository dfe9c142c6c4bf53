"""Promise 2: the logits of a position are the same bits however it was computed.

So is the output of every layer on the way there, which is the sharper witness.

The yardstick is always the same: plain decoding, one token a pass, on one thread of the `portable`
path. Everything else must equal it: chunks, trees, mixed batches, threads, instruction paths. The
second arithmetic has the one path, and its own bits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from builders import (
    EVERY_PATH,
    FLOAT32,
    PATHS,
    Floats,
    MemoryCheckpoint,
    Row,
    Text,
    batch_of,
    chain,
    computed,
    decode_tree,
    opened,
    path_to,
    random_checkpoint,
    require_same_bits,
    specs,
    tiny_spec,
    yardstick,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.models.spec import ModelSpec
from forerun.protocols import BLOCK_LEN

few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
seeds = st.integers(0, 2**32 - 1)
thread_counts = st.sampled_from([1, 1, 2])
arithmetics = pytest.mark.parametrize("paths", [PATHS, (FLOAT32,)], ids=["bf16", "float32"])


def some_tokens(spec: ModelSpec, num: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, spec.vocab, num).tolist()


def random_tree(num_nodes: int, seed: int) -> list[int]:
    """Parents of a tree in any shape: some bushy, some nearly chains."""
    rng = np.random.default_rng(seed)
    reach = int(rng.choice([1, 3, num_nodes]))
    return [-1] + [int(rng.integers(max(0, n - reach), n)) for n in range(1, num_nodes)]


def decoded(checkpoint: MemoryCheckpoint, tokens: Sequence[int], isa: str = "portable") -> Floats:
    """The yardstick of a path, which must say something."""
    with opened(checkpoint, isa=yardstick(isa)) as backend:
        logits = Text(backend, range(16)).decode(tokens)
    assert np.isfinite(logits).all()
    return logits


# --- prompts -----------------------------------------------------------------------------------


@arithmetics
@few
@given(specs(), seeds, st.lists(st.integers(1, 33), min_size=1, max_size=4), thread_counts)
def test_prompt_in_any_chunks_equals_decoding(
    paths: tuple[str, ...], spec: ModelSpec, seed: int, chunks: list[int], threads: int
) -> None:
    # given a prompt decoded token by token
    checkpoint, tokens = random_checkpoint(spec, seed), some_tokens(spec, sum(chunks), seed)
    expected = decoded(checkpoint, tokens, paths[0])
    for isa in paths:
        with opened(checkpoint, isa=isa, threads=threads) as backend:
            # when it is read in chunks
            text, ends = Text(backend, range(16)), np.cumsum([0, *chunks])
            parts = [text.read(tokens[a:b]) for a, b in pairwise(ends)]
        # then every position has the same bits
        require_same_bits(np.concatenate(parts), expected, f"{isa}, chunks {chunks}")


@pytest.mark.parametrize("isa", EVERY_PATH)
def test_every_number_of_nodes_from_1_to_33(isa: str) -> None:
    spec = tiny_spec(hidden=72, ffn=75, vocab=50, num_heads=7, num_kv_heads=1, head_dim=80)
    checkpoint = random_checkpoint(spec, 7)
    tokens = some_tokens(spec, 33, 7)
    expected = decoded(checkpoint, tokens, isa)
    with opened(checkpoint, isa=isa) as backend:
        for n in range(1, 34):
            found = (
                Text(backend, [n % 3]).read(tokens[:n])
                if n <= BLOCK_LEN
                else Text(backend, [2, 1]).read(tokens[:n])
            )
            require_same_bits(found, expected[:n], f"{n} nodes")


@pytest.mark.parametrize("isa", EVERY_PATH)
def test_context_across_blocks_and_softmax_chunks(isa: str) -> None:
    # given 1040 positions: past 32 (a block), 512 and 1024 (chunks of one maximum)
    spec = tiny_spec(hidden=40, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=64, ffn=33)
    checkpoint = random_checkpoint(spec, 3)
    tokens = some_tokens(spec, 1040, 3)
    with opened(checkpoint, isa=yardstick(isa), num_blocks=40) as backend:
        expected = Text(backend, range(40)).decode(tokens)
    parents = random_tree(20, 5)
    leaves = some_tokens(spec, 20, 6)
    with opened(checkpoint, isa=isa, num_blocks=40) as backend:
        # when the prompt is read in chunks of 250, and a tree grows over each border
        text = Text(backend, range(39, -1, -1))
        found = [text.read(tokens[at : at + 250]) for at in range(0, 1040, 250)]
        trees = {}
        for committed in (30, 32, 505, 512, 1017, 1024):
            text.committed = committed
            trees[committed] = text.grow(leaves, parents)[1]
    # then both have the bits of decoding
    require_same_bits(np.concatenate(found), expected, "chunks of 250")
    with opened(checkpoint, isa=yardstick(isa), num_blocks=40) as backend:
        for committed, logits in trees.items():
            own = decode_tree(backend, tokens[:committed], leaves, parents)
            require_same_bits(logits, own, f"a tree after {committed}")


# --- trees and batches -------------------------------------------------------------------------


@arithmetics
@few
@given(specs(), seeds, st.integers(0, 40), st.integers(1, 33), thread_counts)
def test_every_tree_node_equals_decoding_its_own_path(
    paths: tuple[str, ...],
    spec: ModelSpec,
    seed: int,
    prefix_len: int,
    num_nodes: int,
    threads: int,
) -> None:
    # given a tree with siblings over a prompt, each node decoded alone along its path
    checkpoint, parents = random_checkpoint(spec, seed), random_tree(num_nodes, seed)
    tokens = some_tokens(spec, prefix_len + num_nodes, seed)
    prefix, nodes = tokens[:prefix_len], tokens[prefix_len:]
    with opened(checkpoint, isa=yardstick(paths[0])) as backend:
        expected = decode_tree(backend, prefix, nodes, parents)
    for isa in paths:
        with opened(checkpoint, isa=isa, threads=threads) as backend:
            # when all nodes are computed in one pass
            text = Text(backend, range(4))
            if prefix:
                text.read(prefix)
            found = text.grow(nodes, parents)[1]
        # then no node sees its siblings
        require_same_bits(found, expected, f"{isa}, tree {parents} after {prefix_len}")


@arithmetics
@few
@given(specs(), seeds, st.integers(2, 5), thread_counts)
def test_rows_of_one_batch_do_not_touch_each_other(
    paths: tuple[str, ...], spec: ModelSpec, seed: int, num_rows: int, threads: int
) -> None:
    # given texts of several lengths, some about to grow a tree and some a chain
    rng = np.random.default_rng(seed)
    checkpoint = random_checkpoint(spec, seed)
    lengths = rng.integers(0, 70, num_rows).tolist()
    sizes = rng.integers(1, 20, num_rows).tolist()
    texts = [
        some_tokens(spec, a + b, seed + i)
        for i, (a, b) in enumerate(zip(lengths, sizes, strict=True))
    ]
    trees = [random_tree(n, seed + i) if i % 2 else chain(n) for i, n in enumerate(sizes)]
    with opened(checkpoint, isa=yardstick(paths[0])) as backend:
        expected = [
            decode_tree(backend, text[:kept], text[kept:], parents)
            for text, kept, parents in zip(texts, lengths, trees, strict=True)
        ]
    # ... whose blocks lie anywhere
    places = rng.permutation(num_rows * 3).reshape(num_rows, 3).tolist()
    for isa in paths:
        with opened(checkpoint, isa=isa, threads=threads) as backend:
            rows = []
            for text, kept, parents, blocks in zip(texts, lengths, trees, places, strict=True):
                if kept:
                    Text(backend, blocks).read(text[:kept])
                rows.append(Row(text[kept:], parents, kept, blocks))
            # when they share one pass
            found = computed(backend, batch_of(rows))
        # then each row is what it is alone
        require_same_bits(found, np.concatenate(expected), f"{isa}, rows of {sizes}")


@arithmetics
@few
@given(specs(), seeds, st.integers(0, 66), st.integers(2, 33), thread_counts)
def test_committed_tree_path_continues_as_plain_decoding(
    paths: tuple[str, ...],
    spec: ModelSpec,
    seed: int,
    prefix_len: int,
    num_nodes: int,
    threads: int,
) -> None:
    # given a tree over a prompt and any of its paths
    checkpoint, parents = random_checkpoint(spec, seed), random_tree(num_nodes, seed)
    tokens = some_tokens(spec, prefix_len + num_nodes + 4, seed)
    prefix, nodes = tokens[:prefix_len], tokens[prefix_len:-4]
    path = path_to(parents, int(np.random.default_rng(seed).integers(num_nodes)))
    whole = prefix + [nodes[n] for n in path] + tokens[-4:]
    expected = decoded(checkpoint, whole, paths[0])
    for isa in paths:
        with opened(checkpoint, isa=isa, threads=threads) as backend:
            text = Text(backend, [3, 9, 1, 0])
            if prefix:
                text.read(prefix)
            # when the path is kept and decoding goes on
            text.keep(text.grow(nodes, parents)[0], path)
            found = np.concatenate([text.decode(tokens[-4:-2]), text.read(tokens[-2:])])
        # then it goes on as if there had been no tree
        require_same_bits(found, expected[-4:], f"{isa}, path {path} of {parents}")


def test_many_rounds_of_trees_equal_plain_decoding() -> None:
    # given a text of 120 tokens
    spec = tiny_spec(head_dim=80, ffn=75, vocab=50, qk_norm=True, num_layers=1)
    checkpoint, tokens = random_checkpoint(spec, 11), some_tokens(spec, 120, 11)
    expected = decoded(checkpoint, tokens)
    rng = np.random.default_rng(0)
    for isa in PATHS:
        with opened(checkpoint, isa=isa) as backend:
            text, rows = Text(backend, [7, 2, 5, 0, 8]), []
            # when it is read through trees that hold its next tokens among wrong siblings
            while text.committed < 100:
                depth = int(rng.integers(1, 7))
                right = tokens[text.committed : text.committed + depth]
                nodes, parents, path = [right[0]], [-1], [0]
                for token in right[1:]:
                    for _ in range(int(rng.integers(0, 3))):
                        nodes.append(int(rng.integers(spec.vocab)))
                        parents.append(int(rng.integers(0, len(nodes) - 1)))
                    nodes.append(token)
                    parents.append(path[-1])
                    path.append(len(nodes) - 1)
                batch, logits = text.grow(nodes, parents)
                rows.extend(logits[path])
                text.keep(batch, path)
        # then every token of it had the logits of plain decoding
        require_same_bits(np.array(rows), expected[: len(rows)], isa)


# --- where K/V lies, and what lay there before ---------------------------------------------------


FLOAT_MAX = float(np.finfo(np.float32).max)


def loud_checkpoint(spec: ModelSpec, loudest: float) -> MemoryCheckpoint:
    """A model in which token 0 alone has K and V of about `loudest`: only its embedding has a
    first element, and only the first input of K and V is that heavy."""
    checkpoint = random_checkpoint(spec, 5)
    embedding = checkpoint.tensor("model.embed_tokens.weight").float32()
    embedding[:, 0] = 0.0
    embedding[0] = 0.0
    embedding[0, 0] = 1.0
    changed = {"model__embed_tokens__weight": embedding}
    for part in "kv":
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        weight = checkpoint.tensor(name).float32()
        weight[:, 0] = loudest / np.sqrt(spec.hidden)
        changed[name.replace(".", "__")] = weight
    return checkpoint.changed(**changed)


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize("loudest", [1e4, 2e38, 1e39])
def test_what_an_earlier_owner_left_in_a_block_changes_nothing(isa: str, loudest: float) -> None:
    # given two blocks full of another text's keys and values: ordinary, huge, infinite
    spec = tiny_spec(vocab=50, head_dim=80, num_layers=1, tied=False)
    checkpoint = loud_checkpoint(spec, loudest)
    tokens = [1 + t % 49 for t in some_tokens(spec, 40, 2)]
    expected = decoded(checkpoint, tokens, isa)
    parents, nodes = random_tree(9, 4), tokens[31:40]
    with opened(checkpoint, isa=isa) as fresh:
        tree_expected = decode_tree(fresh, tokens[:31], nodes, parents)
    with opened(checkpoint, isa=isa) as backend:
        Text(backend, [4, 6]).read([0] * 64)
        # when a new text reads, grows a tree and decodes in the same blocks
        text = Text(backend, [6, 4])
        found = [text.read(tokens[:5]), text.read(tokens[5:31])]
        grown = text.grow(nodes, parents)[1]
        # ... with rejected siblings, and a rejected chain, as loud as the earlier owner's
        text.grow([nodes[0], 0, 0, 0], [-1, 0, 1, 0])
        if loudest < FLOAT_MAX:
            text.grow([nodes[0], 0, 0, 0], chain(4))
        found.append(text.decode(nodes))
    # then its bits are those of a fresh backend
    require_same_bits(np.concatenate(found), expected, isa)
    require_same_bits(grown, tree_expected, f"{isa}, tree")


def test_a_token_whose_values_overflow_does_not_reach_back() -> None:
    # given a model whose token 0 overflows to infinite values
    spec = tiny_spec(vocab=50, head_dim=80, num_layers=1, tied=False)
    checkpoint, tokens = loud_checkpoint(spec, 1e39), [5, 6, 7]
    expected = decoded(checkpoint, tokens)
    with opened(checkpoint) as backend:
        # when a chain that ends with it is computed, and all of it but one node rejected
        text = Text(backend, [0])
        chain_logits = text.read([5, 0, 0])
        text.committed = 1
        after = text.decode([6, 7])
    # then the positions before it, and those after its rejection, never saw it
    require_same_bits(chain_logits[:1], expected[:1], "before")
    require_same_bits(after, expected[1:], "after its rejection")


def test_blocks_may_lie_anywhere() -> None:
    spec = tiny_spec(head_dim=96, num_layers=1)
    checkpoint, tokens = random_checkpoint(spec, 1), some_tokens(spec, 100, 1)
    with opened(checkpoint) as backend:
        expected = Text(backend, [0, 1, 2, 3]).read(tokens)
        for seed in range(10):
            places = np.random.default_rng(seed).permutation(16)[:4].tolist()
            require_same_bits(Text(backend, places).read(tokens), expected, f"blocks {places}")


def test_rows_may_share_the_blocks_of_a_common_prefix() -> None:
    # given two texts with the same 64 tokens in the same two blocks
    spec = tiny_spec(head_dim=64)
    checkpoint = random_checkpoint(spec, 2)
    prefix, one, two = (some_tokens(spec, n, n) for n in (64, 9, 13))
    with opened(checkpoint) as backend:
        Text(backend, [3, 0]).read(prefix)
        # when both go on in one pass, a tree beside a chain
        tree = random_tree(13, 1)
        rows = [Row(one, chain(9), 64, [3, 0, 5]), Row(two, tree, 64, [3, 0, 1])]
        found = computed(backend, batch_of(rows))
    # then each is what it is alone
    with opened(checkpoint, isa="portable") as backend:
        alone = [
            decode_tree(backend, prefix, one, chain(9)),
            decode_tree(backend, prefix, two, tree),
        ]
    require_same_bits(found, np.concatenate(alone), "shared prefix")


# --- threads -----------------------------------------------------------------------------------


def test_busy_neighbours_change_nothing() -> None:
    # given a thread of Python and one of numpy that keep both cores busy
    spec = tiny_spec(hidden=100, head_dim=128, ffn=75, vocab=97, qkv_bias=True)
    checkpoint, tokens = random_checkpoint(spec, 8), some_tokens(spec, 60, 8)
    expected = decoded(checkpoint, tokens)
    stop = threading.Event()

    def multiply() -> None:
        matrix = np.full((128, 128), 0.5, np.float32)
        while not stop.is_set():
            np.dot(matrix, matrix)

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1

    neighbours = [threading.Thread(target=multiply), threading.Thread(target=count)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        # when two threads read the same text, again and again
        with opened(checkpoint, threads=2) as backend:
            for size in (60, 33, 20, 7):
                text = Text(backend, [1, 0])
                found = [text.read(tokens[at : at + size]) for at in range(0, 60, size)]
                # then it has the same bits
                require_same_bits(np.concatenate(found), expected, f"busy, chunks of {size}")
    finally:
        stop.set()
        for neighbour in neighbours:
            neighbour.join()
