"""Block drafters and EAGLE-3 read a second time: plain float64 numpy, from the papers' description.

Knows DFlash (arXiv:2602.06036), DSpark (2607.05147), EAGLE-3 (2503.01840) and the names of tensors;
must not know any backend or trainer, whose judge it is. Arrays of a row of tokens come first in
every shape: `[positions, heads, head_dim]`. Specs are plain dicts of the fields of `BlockSpec` and
`EagleSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]
Values = Mapping[str, Any]


# --- what every layer is made of ------------------------------------------------------------------


def linear(x: Array, weight: NDArray[Any]) -> Array:
    """Without bias; a weight is `[out, in]`."""
    return np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T


def rms_norm(x: Array, weight: NDArray[Any], eps: float) -> Array:
    """Over the last axis, eps added to the mean square."""
    x = np.asarray(x, np.float64)
    root = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return x / root * np.asarray(weight, np.float64)


def rotate(x: Array, positions: NDArray[np.int64], theta: float) -> Array:
    """Rotary embedding of `[positions, heads, head_dim]`; element i turns with i + head_dim / 2."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(queries: Array, keys: Array, values: Array, visible: NDArray[np.bool_]) -> Array:
    """Attention of `[queries, heads, head_dim]`, of which neighbours share a K/V head."""
    shared = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, shared, axis=1), np.repeat(values, shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(queries.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, values).reshape(len(queries), -1)


def swiglu(x: Array, weights: Weights, at: str) -> Array:
    """The gated feed-forward part `{at}gate_proj`, `{at}up_proj`, `{at}down_proj`."""
    gate = linear(x, weights[f"{at}gate_proj.weight"])
    hidden = gate / (1.0 + np.exp(-gate)) * linear(x, weights[f"{at}up_proj.weight"])
    return linear(hidden, weights[f"{at}down_proj.weight"])


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def heads_of(x: Array, weight: NDArray[Any], head_dim: int) -> Array:
    """A projection `[positions, heads, head_dim]`."""
    return linear(x, weight).reshape(len(x), -1, head_dim)


# --- block drafters -------------------------------------------------------------------------------


class Proposal(NamedTuple):
    """A greedy block: the tokens proposed, the logits each was chosen from, and how sure the
    confidence head is of each (None without one)."""

    tokens: NDArray[np.int64]
    logits: Array
    confidence: Array | None


def fuse(weights: Weights, spec: Values, features: NDArray[Any]) -> Array:
    """Features `[tokens, taps * target_hidden]` as `[tokens, hidden]`, once for all layers."""
    fused = linear(np.asarray(features, np.float64), weights["fc.weight"])
    return rms_norm(fused, weights["hidden_norm.weight"], spec["body"]["norm_eps"])


def visible_to_block(
    spec: Values, layer: int, rows: NDArray[np.int64], context: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """`[rows, context + rows]`: what each position of the block sees in a layer.

    A window of w is a query's own position and the w - 1 before it.
    """
    keys = np.concatenate([context, rows])
    behind = rows[:, None] - keys[None, :]
    visible = np.ones(behind.shape, bool)
    if spec["is_causal"][layer]:
        visible &= behind >= 0
    if spec["windows"][layer]:
        visible &= behind < spec["windows"][layer]
    return visible


def block_states(weights: Weights, spec: Values, context: Array, block: Array, start: int) -> Array:
    """Normed states `[slots, hidden]` of embedded slots that stand at `start`, `start + 1`, ...
    behind fused features of the positions just before `start`."""
    body = spec["body"]
    eps, head_dim, theta = body["norm_eps"], body["head_dim"], body["rope"]["theta"]
    rows = start + np.arange(len(block))
    places = np.arange(start - len(context), start)
    states = np.asarray(block, np.float64)
    for layer in range(body["num_layers"]):
        at = f"layers.{layer}."
        normed = rms_norm(states, weights[f"{at}input_layernorm.weight"], eps)
        read = np.concatenate([context, normed])  # the context is not normed again
        queries = heads_of(normed, weights[f"{at}self_attn.q_proj.weight"], head_dim)
        keys = heads_of(read, weights[f"{at}self_attn.k_proj.weight"], head_dim)
        values = heads_of(read, weights[f"{at}self_attn.v_proj.weight"], head_dim)
        queries = rms_norm(queries, weights[f"{at}self_attn.q_norm.weight"], eps)
        keys = rms_norm(keys, weights[f"{at}self_attn.k_norm.weight"], eps)
        queries = rotate(queries, rows, theta)
        keys = rotate(keys, np.concatenate([places, rows]), theta)
        seen = attend(queries, keys, values, visible_to_block(spec, layer, rows, places))
        states = states + linear(seen, weights[f"{at}self_attn.o_proj.weight"])
        normed = rms_norm(states, weights[f"{at}post_attention_layernorm.weight"], eps)
        states = states + swiglu(normed, weights, f"{at}mlp.")
    return rms_norm(states, weights["norm.weight"], eps)


def slot_states(
    weights: Weights,
    spec: Values,
    features: NDArray[Any],
    token_embedding: NDArray[Any],
    pending: int,
    start: int,
    num_slots: int,
) -> Array:
    """Normed states of a block: the pending token at `start`, then `num_slots - 1` masks."""
    ids = [pending, *[spec["mask_id"]] * (num_slots - 1)]
    block = np.asarray(token_embedding, np.float64)[ids]
    return block_states(weights, spec, fuse(weights, spec, features), block, start)


def block_logits(
    weights: Weights,
    spec: Values,
    features: NDArray[Any],
    token_embedding: NDArray[Any],
    head: NDArray[Any],
    pending: int,
    start: int,
    num_slots: int,
) -> Array:
    """Logits `[num_slots, vocab]` of every slot fed, before any Markov head.

    `features [tokens, F]` are of the positions just before `start`, where the pending token stands.
    Slot k speaks of position `start + k`, or of `start + k + 1` if the spec is shifted.
    """
    states = slot_states(weights, spec, features, token_embedding, pending, start, num_slots)
    return linear(states, head)


class Heard(NamedTuple):
    """What a Markov head makes of one slot: `bias [vocab]` on its logits, `code [rank]` of the
    token before it, and `memory [rank]`, which the slots below go on with."""

    bias: Array
    code: Array
    memory: Array


def hear(weights: Weights, spec: Values, memory: Array, before: int, state: Array) -> Heard:
    """The Markov head at a slot of normed `state [hidden]` behind token `before` (DSpark, 3).

    `memory [rank]` is what the slot above left, zeros above the first; only an rnn changes it.
    """
    code = np.asarray(weights["markov_head.markov_w1.weight"], np.float64)[before]
    said = code
    if spec["markov_kind"] == "gated":
        mixed = linear(np.concatenate([state, code]), weights["markov_head.gate_proj.weight"])
        said = sigmoid(mixed + weights["markov_head.gate_proj.bias"]) * code
    if spec["markov_kind"] == "rnn":
        read = np.concatenate([memory, code, state])
        mixed = linear(read, weights["markov_head.joint_proj.weight"])
        mixed = mixed + weights["markov_head.joint_proj.bias"]
        gate, candidate, output = np.split(mixed, 3)
        kept = sigmoid(gate)
        memory = kept * memory + (1.0 - kept) * np.tanh(candidate)
        said = np.tanh(output)
    return Heard(linear(said, weights["markov_head.markov_w2.weight"]), code, memory)


def drafted_logits(
    weights: Weights,
    spec: Values,
    states: Array,
    head: NDArray[Any],
    pending: int,
    drafted: Sequence[int] = (),
    parents: Sequence[int] = (),
) -> Array:
    """Logits `[1 + drafted, vocab]` below the pending token, then below each drafted node.

    With a Markov head, from `slot_states`. Node n >= 1 is `drafted[n - 1]` below `parents[n - 1]`
    < n; what comes below it is said by the slot of its depth and by its parent's memory gone on.
    """
    states = states if spec["is_shifted"] else states[1:]
    unary = linear(states, head)
    first = hear(weights, spec, np.zeros(spec["markov_rank"]), pending, states[0])
    logits, memories, depths = [unary[0] + first.bias], [first.memory], [0]
    for token, parent in zip(drafted, parents, strict=True):
        depth = depths[parent] + 1
        heard = hear(weights, spec, memories[parent], token, states[depth])
        logits.append(unary[depth] + heard.bias)
        memories.append(heard.memory)
        depths.append(depth)
    return np.array(logits)


def propose_block(
    weights: Weights, spec: Values, states: Array, head: NDArray[Any], pending: int
) -> Proposal:
    """The greedy block from `slot_states`, slot after slot; lowest id on ties.

    With a Markov head the tokens before a slot's own, pending or proposed, add to its logits.
    """
    states = states if spec["is_shifted"] else states[1:]
    before, tokens, logits, codes = pending, [], [], []
    memory = np.zeros(spec["markov_rank"])
    for state, unary in zip(states, linear(states, head), strict=True):
        law = unary
        if spec["markov_rank"]:
            heard = hear(weights, spec, memory, before, state)
            law, memory = unary + heard.bias, heard.memory
            codes.append(heard.code)
        before = int(law.argmax())
        tokens.append(before)
        logits.append(law)
    sure = None
    if spec["has_confidence"]:
        read = np.concatenate([states, np.array(codes)], axis=1) if codes else states
        score = linear(read, weights["confidence_head.proj.weight"])[:, 0]
        sure = sigmoid(score + float(weights["confidence_head.proj.bias"][0]))
    return Proposal(np.array(tokens), np.array(logits), sure)


# --- EAGLE-3 --------------------------------------------------------------------------------------


class EagleRows(NamedTuple):
    """What a pass of EAGLE-3's layer leaves: outputs before the norm, keys, values."""

    states: Array
    keys: Array
    values: Array


def eagle_rows(
    weights: Weights,
    spec: Values,
    embedded: Array,
    features: Array,
    positions: NDArray[np.int64],
    past: EagleRows | None,
    visible: NDArray[np.bool_],
) -> EagleRows:
    """The layer over rows of (token, feature before it); `visible [rows, past + rows]`.

    The result's states are of the rows, its keys and values of `past` and rows.
    """
    body, at = spec["body"], "midlayer."
    eps, head_dim, theta = body["norm_eps"], body["head_dim"], body["rope"]["theta"]
    token = rms_norm(embedded, weights[f"{at}input_layernorm.weight"], eps)
    feature = rms_norm(features, weights[f"{at}hidden_norm.weight"], eps)
    read = np.concatenate([token, feature], axis=-1)
    queries = heads_of(read, weights[f"{at}self_attn.q_proj.weight"], head_dim)
    keys = heads_of(read, weights[f"{at}self_attn.k_proj.weight"], head_dim)
    values = heads_of(read, weights[f"{at}self_attn.v_proj.weight"], head_dim)
    queries, keys = rotate(queries, positions, theta), rotate(keys, positions, theta)
    if past is not None:
        keys = np.concatenate([past.keys, keys])
        values = np.concatenate([past.values, values])
    seen = attend(queries, keys, values, visible)
    residual = feature if spec["norm_before_residual"] else features
    states = residual + linear(seen, weights[f"{at}self_attn.o_proj.weight"])
    normed = rms_norm(states, weights[f"{at}post_attention_layernorm.weight"], eps)
    return EagleRows(states + swiglu(normed, weights, f"{at}mlp."), keys, values)


def eagle_logits(
    weights: Weights,
    spec: Values,
    features: NDArray[Any],
    tokens: Sequence[int],
    token_embedding: NDArray[Any],
    drafted: Sequence[int] = (),
    parents: Sequence[int] = (),
) -> Array:
    """Logits `[1 + drafted, draft vocabulary]`: the pending token's row, then each drafted node's.

    `features [p, F]` are of positions 0 to p - 1 and `tokens` those of 0 to p, the pending one
    last. Node 0 is the pending token; node n >= 1 is `drafted[n - 1]` below `parents[n - 1]` < n.
    """
    table = np.asarray(token_embedding, np.float64)
    fused = linear(np.asarray(features, np.float64), weights["fc.weight"])
    num_known = len(fused)
    causal = np.tril(np.ones((num_known, num_known), bool))
    rows = eagle_rows(
        weights, spec, table[list(tokens[1:])], fused, np.arange(num_known), None, causal
    )
    states, lineages = [rows.states[-1]], [[num_known - 1]]
    for node, (token, parent) in enumerate(zip(drafted, parents, strict=True)):
        lineage = [*lineages[parent], num_known + node]
        visible = np.arange(num_known + node + 1) < num_known
        visible[lineage] = True
        position = np.array([num_known + len(lineage) - 2])
        rows = eagle_rows(
            weights, spec, table[[token]], states[parent][None], position, rows, visible[None]
        )
        states.append(rows.states[0])
        lineages.append(lineage)
    normed = rms_norm(np.array(states), weights["norm.weight"], spec["body"]["norm_eps"])
    return linear(normed, weights["lm_head.weight"])


def target_ids(weights: Weights, spec: Values, draft_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of the target that ids of the drafter's own vocabulary stand for."""
    if not spec["has_token_map"]:
        return draft_ids
    return draft_ids + np.asarray(weights["d2t"], np.int64)[draft_ids]


def propose_eagle(
    weights: Weights,
    spec: Values,
    features: NDArray[Any],
    tokens: Sequence[int],
    token_embedding: NDArray[Any],
    num_drafted: int,
) -> Proposal:
    """The greedy chain, lowest id on ties: tokens of the target, logits of the drafter's ids."""
    chain: list[int] = []
    while True:
        parents = range(len(chain))
        logits = eagle_logits(weights, spec, features, tokens, token_embedding, chain, parents)
        if len(chain) == num_drafted:
            return Proposal(np.array(chain), logits[:-1], None)
        chain.append(int(target_ids(weights, spec, logits[-1:].argmax(axis=-1))[0]))
