"""A third, slow reading of the same drafters, right or with one known mistake.

It takes one query, one head and one key at a time, turns pairs as complex numbers and
keeps no keys of a tree: each node is read along its own path alone, from the text's first token.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np

from exact.second_reading_cases import Case, drawn

Vector = np.ndarray[Any, np.dtype[np.float64]]
BLOCK_MISTAKES = (
    "context has the pending token",
    "block counts from zero",
    "context is normed again",
    "context is not normed at all",
    "turned before normed",
    "taps in another order",
)
GATED_MISTAKES = (
    "the gate is of another slot",
    "hidden and embedding swapped",
    "the gate is no gate",
    "the gate closes",
)
RNN_MISTAKES = (
    "state forgotten",
    "state of the node before",
    "gate and candidate swapped",
    "candidate and output swapped",
    "hidden and embedding swapped",
    "state and embedding swapped",
    "the gate closes",
    "the new state speaks",
    "output is not squashed",
)
EAGLE_MISTAKES = (
    "feature with its own token",
    "feature first",
    "feature given on is normed",
    "feature kept is normed",
    "drafted rows one further",
    "only four rows are kept",
)


def normed(x: Vector, weight: Vector, eps: float) -> Vector:
    root = math.sqrt(sum(float(one) ** 2 for one in x) / len(x) + eps)
    return np.array([float(one) / root * float(gain) for one, gain in zip(x, weight, strict=True)])


def turned(x: Vector, position: int, theta: float) -> Vector:
    half = len(x) // 2
    pairs = [
        complex(x[at], x[at + half]) * cmath.exp(1j * position / theta ** (at / half))
        for at in range(half)
    ]
    return np.array([one.real for one in pairs] + [one.imag for one in pairs])


def attended(query: Vector, seen: list[tuple[Vector, Vector]]) -> Vector:
    """What one query of one head reads of (key, value) pairs."""
    weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key, _ in seen]
    total = sum(weights)
    return sum(weight / total * value for weight, (_, value) in zip(weights, seen, strict=True))


def fed_forward(state: Vector, tensors: dict[str, Vector], at: str, eps: float) -> Vector:
    x = normed(state, tensors[f"{at}post_attention_layernorm.weight"], eps)
    gate, up = (tensors[f"{at}mlp.{one}_proj.weight"] @ x for one in ("gate", "up"))
    inner = np.array([g / (1.0 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)])
    return state + tensors[f"{at}mlp.down_proj.weight"] @ inner


def slow_head(
    case: Case, tensors: dict[str, Vector], at: str, wrong: str, x: Vector, part: str, place: int
) -> list[Vector]:
    """All heads of a query or a key of one token at its place."""
    fields = case.spec["body"]
    eps, theta, head_dim = fields["norm_eps"], fields["rope"]["theta"], fields["head_dim"]
    heads = (tensors[f"{at}self_attn.{part}_proj.weight"] @ x).reshape(-1, head_dim)
    if not fields["qk_norm"]:
        return [turned(one, place, theta) for one in heads]
    gains = tensors[f"{at}self_attn.{part}_norm.weight"]
    if wrong == "turned before normed":
        return [normed(turned(one, place, theta), gains, eps) for one in heads]
    return [turned(normed(one, gains, eps), place, theta) for one in heads]


def slow_context(case: Case, tensors: dict[str, Vector], wrong: str) -> list[Vector]:
    """The fused features of the context."""
    features = case.features.astype(np.float64)
    if wrong == "context has the pending token":
        own = drawn(case.seed, "own", (1, features.shape[1])) / 32
        features = np.concatenate([features, own])
    if wrong == "taps in another order":
        taps = features.reshape(len(features), -1, case.spec["target_hidden"])
        features = taps[:, ::-1].reshape(features.shape)
    fused = [tensors["fc.weight"] @ one for one in features]
    if wrong == "context is not normed at all":
        return fused
    eps = case.spec["body"]["norm_eps"]
    return [normed(one, tensors["hidden_norm.weight"], eps) for one in fused]


def slow_block(case: Case, num_slots: int, wrong: str = "") -> Vector:
    """Logits of every slot, with one mistake or none."""
    fields, tensors = case.spec["body"], in_float64(case)
    eps, head_dim, per_kv = fields["norm_eps"], fields["head_dim"], 2
    context = slow_context(case, tensors, wrong)
    ids = [case.pending] + [case.spec["mask_id"]] * (num_slots - 1)
    states = [case.table[one].astype(np.float64) for one in ids]
    turn = 0 if wrong == "block counts from zero" else case.start
    for layer in range(fields["num_layers"]):
        at = f"layers.{layer}."
        gains = tensors[f"{at}input_layernorm.weight"]
        block = [normed(one, gains, eps) for one in states]
        again = wrong == "context is normed again"
        read = [(one, place, place) for place, one in enumerate(context)]
        read = (
            [(normed(one, gains, eps), place, place) for one, place, _ in read] if again else read
        )
        read += [(one, case.start + slot, turn + slot) for slot, one in enumerate(block)]
        keyed = [
            (
                place,
                slow_head(case, tensors, at, wrong, one, "k", turn_at),
                (tensors[f"{at}self_attn.v_proj.weight"] @ one).reshape(-1, head_dim),
            )
            for one, place, turn_at in read
        ]
        after = []
        for slot, state in enumerate(states):
            queries = slow_head(case, tensors, at, wrong, block[slot], "q", turn + slot)
            heads = []
            for head, query in enumerate(queries):
                seen = [
                    (keys[head // per_kv], values[head // per_kv])
                    for place, keys, values in keyed
                    if sees(case, layer, case.start + slot, place)
                ]
                heads.append(attended(query, seen))
            out = tensors[f"{at}self_attn.o_proj.weight"] @ np.concatenate(heads)
            after.append(fed_forward(state + out, tensors, at, eps))
        states = after
    head = case.head.astype(np.float64)
    return np.array([head @ normed(one, tensors["norm.weight"], eps) for one in states])


def sees(case: Case, layer: int, position: int, place: int) -> bool:
    window = case.spec["windows"][layer]
    if case.spec["is_causal"][layer] and place > position:
        return False
    return not window or place > position - window


def opened(x: Vector, wrong: str) -> Vector:
    shares = np.array([1.0 / (1.0 + math.exp(-float(one))) for one in x])
    return 1.0 - shares if wrong == "the gate closes" else shares


def slow_gated(tensors: dict[str, Vector], code: Vector, hidden: Vector, wrong: str) -> Vector:
    weight, shift = (tensors[f"markov_head.gate_proj.{one}"] for one in ("weight", "bias"))
    pair = [code, hidden] if wrong == "hidden and embedding swapped" else [hidden, code]
    mixed = np.array([row @ np.concatenate(pair) for row in weight]) + shift
    shares = mixed if wrong == "the gate is no gate" else opened(mixed, wrong)
    return np.array([share * one for share, one in zip(shares, code, strict=True)])


def slow_recurrent(
    tensors: dict[str, Vector], memory: Vector, code: Vector, hidden: Vector, wrong: str
) -> tuple[Vector, Vector]:
    """What is said of a slot, and the memory that goes on."""
    weight, shift = (tensors[f"markov_head.joint_proj.{one}"] for one in ("weight", "bias"))
    read = {
        "hidden and embedding swapped": [memory, hidden, code],
        "state and embedding swapped": [code, memory, hidden],
        "state forgotten": [0.0 * memory, code, hidden],
    }.get(wrong, [memory, code, hidden])
    mixed = np.array([row @ np.concatenate(read) for row in weight]) + shift
    rank = len(code)
    gate, candidate, output = (mixed[at : at + rank] for at in (0, rank, 2 * rank))
    if wrong == "gate and candidate swapped":
        gate, candidate = candidate, gate
    if wrong == "candidate and output swapped":
        candidate, output = output, candidate
    after = np.array(
        [
            share * old + (1.0 - share) * math.tanh(new)
            for share, old, new in zip(opened(gate, wrong), memory, candidate, strict=True)
        ]
    )
    said = after if wrong == "the new state speaks" else output
    squashed = np.array([math.tanh(one) for one in said])
    return (output if wrong == "output is not squashed" else squashed), after


def slow_markov(case: Case, states: Vector, paths: list[list[int]], wrong: str = "") -> Vector:
    """Logits below each path of tokens under the pending one, read along it alone.

    `states [slots, hidden]` are normed.
    """
    tensors, rank = in_float64(case), case.spec["markov_rank"]
    first, second = (tensors[f"markov_head.markov_w{one}.weight"] for one in (1, 2))
    found, left = [], np.zeros(rank)
    for path in paths:
        memory = left if wrong == "state of the node before" else np.zeros(rank)
        for slot, token in enumerate([case.pending, *path]):
            hidden = states[slot + (wrong == "the gate is of another slot")]
            if case.spec["markov_kind"] == "gated":
                said = slow_gated(tensors, first[token], hidden, wrong)
            else:
                said, memory = slow_recurrent(tensors, memory, first[token], hidden, wrong)
        left = memory
        found.append(case.head.astype(np.float64) @ states[len(path)] + second @ said)
    return np.array(found)


def slow_chain(case: Case, below: list[int], wrong: str) -> Vector:
    """Logits behind the last of `below`, tokens one after another below the pending one."""
    fields, tensors = case.spec["body"], in_float64(case)
    eps, head_dim, at = fields["norm_eps"], fields["head_dim"], "midlayer."
    features = [tensors["fc.weight"] @ one for one in case.features.astype(np.float64)]
    own = wrong == "feature with its own token"
    tokens = [*(case.tokens[:-1] if own else case.tokens[1:]), *below]
    keys: list[list[Vector]] = []
    values: list[Vector] = []
    outputs: list[Vector] = []
    for row, token in enumerate(tokens):
        feature = features[row] if row < len(features) else outputs[-1]
        if wrong == "feature given on is normed" and row >= len(features):
            feature = normed(feature, tensors["norm.weight"], eps)
        beside = normed(feature, tensors[f"{at}hidden_norm.weight"], eps)
        word = normed(case.table[token], tensors[f"{at}input_layernorm.weight"], eps)
        read = np.concatenate([beside, word] if wrong == "feature first" else [word, beside])
        place = row + (wrong == "drafted rows one further" and row >= len(features))
        keys.append(slow_head(case, tensors, at, wrong, read, "k", place))
        values.append((tensors[f"{at}self_attn.v_proj.weight"] @ read).reshape(-1, head_dim))
        first = max(0, row - 3) if wrong == "only four rows are kept" else 0
        heads = [
            attended(
                query,
                [(keys[one][head // 2], values[one][head // 2]) for one in range(first, row + 1)],
            )
            for head, query in enumerate(slow_head(case, tensors, at, wrong, read, "q", place))
        ]
        kept = beside if wrong == "feature kept is normed" else feature
        out = kept + tensors[f"{at}self_attn.o_proj.weight"] @ np.concatenate(heads)
        outputs.append(fed_forward(out, tensors, at, eps))
    return tensors["lm_head.weight"] @ normed(outputs[-1], tensors["norm.weight"], eps)


def paths_of(case: Case) -> list[list[int]]:
    """The tokens from below the pending one to each node of the case's tree; its own are none."""
    paths: list[list[int]] = [[]]
    for token, parent in zip(case.drafted, case.parents, strict=True):
        paths.append([*paths[parent], int(token)])
    return paths


def slow_eagle(case: Case, wrong: str = "") -> Vector:
    """Logits of the pending token's row and of each node, with one mistake or none."""
    return np.array([slow_chain(case, path, wrong) for path in paths_of(case)])


def in_float64(case: Case) -> dict[str, Vector]:
    return {name: one.astype(np.float64) for name, one in case.tensors.items()}
