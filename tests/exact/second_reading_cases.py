"""Tiny drafters with known answers: seeded weights, stored inputs, stored float64 logits.

Every value of a weight or feature is a small integer times a power of two, made of raw bytes of a
counter, so that it is the same on every machine and exact in bf16. `known_answers/NAME.npz` holds
what the second reading made of them; `PYTHONPATH=tests python -m exact.second_reading_cases`
writes them anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from exact.second_reading import (
    block_logits,
    drafted_logits,
    eagle_logits,
    propose_block,
    propose_eagle,
    slot_states,
)
from forerun.models.drafter_spec import BlockSpec, EagleSpec, MarkovKind
from forerun.models.spec import ModelSpec, Rope

KNOWN = Path(__file__).parent / "known_answers"
VOCAB, MASK_ID, NUM_CHAINED = 96, 1, 5
SHORT_SLOTS = 3  # a block may be fed fewer masks than it was trained with
TREE_PARENTS = (0, 0, 1, 1, 3, 2, 5, 5)  # two children of the pending token, and below them
GREEDY_KEYS = ("greedy", "greedy_logits")


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A drafter, a text and what is known of it.

    `spec`: fields of `BlockSpec` or `EagleSpec` (`built_spec` builds one). `tensors` float32 by
    canonical name, `d2t` int64; `table`, `head [vocab, hidden]` are the target's. `features [p, F]`
    float32 are of positions 0 to p - 1, `tokens [p + 1]` of 0 to p, the pending one last. Of EAGLE
    drafters, and of blocks whose Markov head reads more than the token before, `drafted` is a tree
    below it: node n >= 1 is `drafted[n - 1]` below `parents[n - 1]`.

    `answers`, float64 unless said: of blocks `logits [block_len, V]` of every slot without Markov
    head, `short_logits [SHORT_SLOTS, V]` with fewer masks fed, and of those with a tree
    `tree_logits [1 + N, V]` with Markov head; of EAGLE drafters `logits [1 + N,
    Vd]` of node 0 and each drafted node; of both `greedy [K]` int64, the target's ids proposed, and
    `greedy_logits [K, V or Vd]`, what each was chosen from, Markov head included; `confidence [K]`
    of each where there is such a head.
    """

    name: str
    seed: int
    spec: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    table: NDArray[np.float32]
    head: NDArray[np.float32]
    features: NDArray[np.float32]
    tokens: NDArray[np.int64]
    drafted: NDArray[np.int64]
    parents: NDArray[np.int64]
    answers: dict[str, NDArray[Any]]

    @property
    def is_block(self) -> bool:
        return "block_len" in self.spec

    @property
    def has_tree(self) -> bool:
        return len(self.drafted) > 0

    @property
    def pending(self) -> int:
        return int(self.tokens[-1])

    @property
    def start(self) -> int:
        """Position of the pending token: the number of features."""
        return len(self.features)

    def built_spec(self) -> BlockSpec | EagleSpec:
        body = ModelSpec(**self.spec["body"] | {"rope": Rope(**self.spec["body"]["rope"])})
        kind = BlockSpec if self.is_block else EagleSpec
        return kind(**self.spec | {"body": body})


# --- shapes and seeded values ---------------------------------------------------------------------


def body(
    family: str, num_layers: int, hidden: int, head_dim: int, **changes: Any
) -> dict[str, Any]:
    """Fields of a `ModelSpec` with two heads on one K/V head."""
    return {
        "family": family,
        "hidden": hidden,
        "num_layers": num_layers,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": head_dim,
        "ffn": 2 * hidden,
        "vocab": VOCAB,
        "max_position": 256,
        "norm_eps": 1e-6,
        "rope": {"theta": 10000.0},
        "tied": False,
        "qkv_bias": False,
        "qk_norm": family == "qwen3",
        "eos_ids": (0,),
        "bos_id": None,
        "dtype": "bfloat16",
    } | changes


def layer_shapes(fields: dict[str, Any], at: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer whose queries, keys and values are made of `width` values."""
    hidden, ffn, head_dim = fields["hidden"], fields["ffn"], fields["head_dim"]
    q, kv = fields["num_heads"] * head_dim, fields["num_kv_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    if fields["qk_norm"]:
        shapes |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    return {f"{at}{name}.weight": shape for name, shape in shapes.items()}


def markov_shapes(kind: MarkovKind, rank: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what a Markov head has beside its two tables."""
    if kind is MarkovKind.VANILLA:
        return {}
    name, rows, width = {
        MarkovKind.GATED: ("gate_proj", rank, hidden + rank),
        MarkovKind.RNN: ("joint_proj", 3 * rank, 2 * rank + hidden),
    }[kind]
    return {f"markov_head.{name}.weight": (rows, width), f"markov_head.{name}.bias": (rows,)}


def tensor_shapes(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name and shape of every floating point tensor of a drafter."""
    fields = spec["body"]
    hidden = fields["hidden"]
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, len(spec["tap_layers"]) * spec["target_hidden"]),
        "norm.weight": (hidden,),
    }
    if "block_len" not in spec:
        shapes |= layer_shapes(fields, "midlayer.", 2 * hidden)
        return shapes | {
            "midlayer.hidden_norm.weight": (hidden,),
            "lm_head.weight": (fields["vocab"], hidden),
        }
    shapes["hidden_norm.weight"] = (hidden,)
    for layer in range(fields["num_layers"]):
        shapes |= layer_shapes(fields, f"layers.{layer}.", hidden)
    if spec["markov_rank"]:
        shapes |= {
            f"markov_head.markov_w{one}.weight": (VOCAB, spec["markov_rank"]) for one in (1, 2)
        }
    shapes |= markov_shapes(spec["markov_kind"], spec["markov_rank"], hidden)
    if spec["has_confidence"]:
        shapes["confidence_head.proj.weight"] = (1, hidden + spec["markov_rank"])
        shapes["confidence_head.proj.bias"] = (1,)
    return shapes


def drawn(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Whole numbers from -127 to 127, of a stream that numpy promises never to change."""
    words = np.random.PCG64([seed, crc32(name.encode())]).random_raw(math.prod(shape))
    return ((words >> np.uint64(32)) % np.uint64(255)).astype(np.int64).reshape(shape) - 127


def drawn_tensor(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A matrix that about keeps the size of what it maps, gains from 0.5 to 1.5, or shifts of a
    Markov head from -1 to 1.

    The Markov head's are larger, so that what it adds changes choices, and queries are: slots of
    equal masks differ by their positions alone.
    """
    whole = drawn(seed, name, shape)
    if len(shape) == 1 and name.startswith("markov"):
        return (whole / 128).astype(np.float32)
    if len(shape) == 1:
        sharpness = 2.0 if "q_norm" in name else 1.0
        return (sharpness * (1.0 + (whole >> 1) / 128)).astype(np.float32)
    exponent = round(math.log2(math.sqrt(3.0 / shape[1]) / 128)) + name.startswith("markov")
    return (whole * 2.0**exponent).astype(np.float32)


# --- the cases ------------------------------------------------------------------------------------


def block_spec(fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    num_layers = fields["num_layers"]
    return {
        "body": fields,
        "block_len": 8,
        "is_shifted": False,
        "tap_layers": (1, 5, 9),
        "target_hidden": fields["hidden"],
        "num_target_layers": 12,
        "mask_id": MASK_ID,
        "windows": (0,) * num_layers,
        "is_causal": (False,) * num_layers,
        "markov_rank": 0,
        "markov_kind": MarkovKind.VANILLA,
        "has_confidence": False,
    } | changes


def eagle_spec(fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "body": fields,
        "tap_layers": (1, 5, 8),
        "target_hidden": fields["hidden"],
        "num_target_layers": 12,
        "target_vocab": VOCAB,
        "has_token_map": False,
        "norm_before_residual": False,
    } | changes


SPECS = {
    "block_same_position": block_spec(body("qwen3", 2, 48, 16)),
    "block_shifted_markov": block_spec(
        body("qwen3", 2, 64, 32, rope={"theta": 1e6}),
        is_shifted=True,
        tap_layers=(1, 9),
        markov_rank=8,
        has_confidence=True,
    ),
    "block_window_causal": block_spec(
        body("qwen3", 2, 64, 32), is_shifted=True, windows=(8, 0), is_causal=(True, False)
    ),
    "block_gated": block_spec(
        body("qwen3", 2, 48, 16), is_shifted=True, markov_rank=16, markov_kind=MarkovKind.GATED
    ),
    "block_rnn": block_spec(
        body("qwen3", 2, 64, 32),
        is_shifted=True,
        tap_layers=(1, 9),
        markov_rank=8,
        markov_kind=MarkovKind.RNN,
        has_confidence=True,
    ),
    "eagle_full_vocabulary": eagle_spec(body("llama", 1, 48, 16, norm_eps=1e-5)),
    "eagle_token_map": eagle_spec(
        body("llama", 1, 64, 32, vocab=40, rope={"theta": 500000.0}),
        tap_layers=(1, 8),
        has_token_map=True,
    ),
}
# Of which greedy tokens differ from each other, with no near ties.
SEEDS = dict(zip(SPECS, (55, 138, 126, 484, 293, 124, 12), strict=True))
CONTEXT_LENS = {"block_window_causal": 44}


def unanswered(name: str, seed: int | None = None) -> Case:
    """The case as its own seed or another makes it, with no answers."""
    spec, seed = SPECS[name], SEEDS[name] if seed is None else seed
    fields, context_len = spec["body"], CONTEXT_LENS.get(name, 13)
    shapes = tensor_shapes(spec)
    tensors: dict[str, NDArray[Any]] = {
        one: drawn_tensor(seed, one, shape) for one, shape in shapes.items()
    }
    if spec.get("has_token_map"):
        known = np.sort(
            np.argsort(drawn(seed, "known", (VOCAB,)), kind="stable")[: fields["vocab"]]
        )
        tensors["d2t"] = known - np.arange(len(known))
    table = drawn(seed, "table", (VOCAB, fields["hidden"])) / 512
    head = drawn(seed, "head", (VOCAB, fields["hidden"])) / 512
    features = drawn(seed, "features", (context_len, shapes["fc.weight"][1])) / 32
    one_law_a_slot = spec.get("markov_kind") is MarkovKind.VANILLA
    num_drafted = 0 if one_law_a_slot else len(TREE_PARENTS)
    words = (drawn(seed, "tokens", (context_len + 1 + num_drafted,)) + 127) % (VOCAB - 2) + 2
    return Case(
        name=name,
        seed=seed,
        spec=spec,
        tensors=tensors,
        table=table.astype(np.float32),
        head=head.astype(np.float32),
        features=features.astype(np.float32),
        tokens=words[: context_len + 1],
        drafted=words[context_len + 1 :],
        parents=np.array(TREE_PARENTS[:num_drafted], np.int64),
        answers={},
    )


def answers(case: Case) -> dict[str, NDArray[Any]]:
    """What the second reading says of a case."""
    if not case.is_block:
        given = case.tensors, case.spec, case.features, list(case.tokens), case.table
        greedy = propose_eagle(*given, num_drafted=NUM_CHAINED)
        logits = eagle_logits(*given, list(case.drafted), list(case.parents))
        return dict(zip(GREEDY_KEYS, greedy, strict=False)) | {"logits": logits}
    given = case.tensors, case.spec, case.features, case.table
    block_len = case.spec["block_len"]
    states = slot_states(*given, case.pending, case.start, block_len)
    greedy = propose_block(case.tensors, case.spec, states, case.head, case.pending)
    found = dict(zip(GREEDY_KEYS, greedy, strict=False))
    if greedy.confidence is not None:
        found["confidence"] = greedy.confidence
    if case.has_tree:
        below = case.pending, list(case.drafted), list(case.parents)
        found["tree_logits"] = drafted_logits(case.tensors, case.spec, states, case.head, *below)
    for key, num_slots in (("logits", block_len), ("short_logits", SHORT_SLOTS)):
        found[key] = block_logits(*given, case.head, case.pending, case.start, num_slots)
    return found


def fingerprint(case: Case) -> int:
    """Of all that the seed makes, so that a stream that changed is not taken for a wrong answer."""
    everything = [case.table, case.head, case.features, case.tokens, case.drafted]
    everything += [case.tensors[name] for name in sorted(case.tensors)]
    return crc32(b"".join(one.tobytes() for one in everything))


def apart(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, in standard deviations of what was expected."""
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / expected.std())


def cases() -> list[Case]:
    """Every case with its stored answers."""
    found = [unanswered(name) for name in SPECS]
    for case in found:
        with np.load(KNOWN / f"{case.name}.npz") as stored:
            case.answers.update({key: stored[key] for key in stored.files})
    return found


def write() -> None:
    """Writes every case's inputs and answers anew."""
    for case in [unanswered(name) for name in SPECS]:
        inputs = {"features": case.features, "tokens": case.tokens, "drafted": case.drafted}
        made = {"fingerprint": np.array(fingerprint(case)), **inputs, **answers(case)}
        np.savez_compressed(KNOWN / f"{case.name}.npz", **made)


if __name__ == "__main__":
    write()
