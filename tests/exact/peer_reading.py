"""The second reading against package `speculators` (vLLM project) on the same random weights.

Run by hand in an environment that has the package (0.9.0 was read), torch and pytest:
`PYTHONPATH=src python -m pytest -W ignore -o filterwarnings= tests/exact/peer_reading.py`.
It computes softmax and angles in float32, so agreement is to about 1e-6. Slots see a training mask:
one anchor stands for the pending token, and what is behind it in the text is noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exact.second_reading import block_logits, eagle_logits
from exact.second_reading_cases import Case, apart, cases, drawn
from exact.second_reading_slowly import paths_of

pytest.importorskip("speculators")
torch = pytest.importorskip("torch")

ALL = {case.name: case for case in cases()}
BLOCKS = [name for name, case in ALL.items() if case.is_block]
EAGLES = [name for name, case in ALL.items() if not case.is_block]
CLOSE, FAR = 1e-5, 1e-2


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def layer_config(case: Case, **changes: Any) -> Any:
    """The case's body as a Transformers config."""
    from transformers import LlamaConfig, Qwen3Config

    body = case.spec["body"]
    fields = {
        "hidden_size": body["hidden"],
        "num_hidden_layers": body["num_layers"],
        "num_attention_heads": body["num_heads"],
        "num_key_value_heads": body["num_kv_heads"],
        "head_dim": body["head_dim"],
        "intermediate_size": body["ffn"],
        "vocab_size": len(case.table),
        "max_position_embeddings": body["max_position"],
        "rms_norm_eps": body["norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": body["rope"]["theta"]},
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return (Qwen3Config if case.is_block else LlamaConfig)(**fields | changes)


def loaded(model: Any, case: Case) -> Any:
    """The package's model with the case's tensors, in float64."""
    tensors = {"embed_tokens.weight": case.table, "lm_head.weight": case.head}
    tensors |= {name.replace("midlayer.", "layers.0."): one for name, one in case.tensors.items()}
    if "d2t" in tensors:
        known = np.zeros(len(case.table), bool)
        known[tensors["d2t"] + np.arange(len(tensors["d2t"]))] = True
        tensors["t2d"] = known
    given = {name: torch.from_numpy(one.copy()) for name, one in tensors.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert not unexpected
    assert all(name.startswith("verifier_") for name in missing)
    return model.double().eval()


def behind(case: Case, num_tokens: int) -> Any:
    """The case's features and, after them, noise for the positions from the pending one on."""
    noise = drawn(case.seed, "noise", (num_tokens - case.start, case.features.shape[1])) / 32
    return torch.from_numpy(np.concatenate([case.features, noise]))[None].double()


# --- block drafters -------------------------------------------------------------------------------


def block_model(case: Case) -> Any:
    from speculators import DFlashSpeculatorConfig, DSparkSpeculatorConfig
    from speculators.models.dflash import DFlashDraftModel
    from speculators.models.dspark import DSparkDraftModel

    spec, changes = case.spec, {}
    if any(spec["windows"]):
        kinds = {True: "sliding_attention", False: "full_attention"}
        changes = {
            "layer_types": [kinds[bool(one)] for one in spec["windows"]],
            "sliding_window": max(spec["windows"]),
            "use_sliding_window": True,
        }
    fields = {
        "transformer_layer_config": layer_config(case, **changes),
        "draft_vocab_size": len(case.table),
        "block_size": spec["block_len"],
        "aux_hidden_state_layer_ids": [one + 1 for one in spec["tap_layers"]],
        "mask_token_id": spec["mask_id"],
        "sample_from_anchor": spec["is_shifted"],
    }
    if not spec["markov_rank"]:
        return loaded(DFlashDraftModel(DFlashSpeculatorConfig(**fields)), case)
    head = {"markov_rank": spec["markov_rank"], "markov_head_type": str(spec["markov_kind"])}
    config = DSparkSpeculatorConfig(**fields, **head, enable_confidence_head=spec["has_confidence"])
    return loaded(DSparkDraftModel(config), case)


def block_states(case: Case, model: Any) -> tuple[Any, Any]:
    """Normed states and logits of the block whose anchor is the pending token."""
    num_tokens = case.start + 1 + case.spec["block_len"]
    ids = torch.full((1, num_tokens), 7)
    ids[0, : case.start + 1] = torch.from_numpy(case.tokens)
    anchors = torch.zeros((1, num_tokens))
    anchors[0, case.start] = 1
    with torch.no_grad():
        hidden, logits, *_ = model._backbone_forward(
            behind(case, num_tokens),
            ids,
            anchors,
            torch.zeros((1, num_tokens, case.spec["body"]["hidden"]), dtype=torch.float64),
            torch.zeros((1, num_tokens), dtype=torch.long),
            max_anchors=1,
        )
    return hidden[0], logits[0]


MARKOVS = [name for name in BLOCKS if ALL[name].spec["markov_rank"]]


@pytest.mark.parametrize("name", ["block_same_position", *MARKOVS])
def test_blocks_agree(name: str) -> None:
    case = ALL[name]
    _, logits = block_states(case, block_model(case))
    assert apart(logits.numpy(), case.answers["logits"]) < CLOSE


@pytest.mark.parametrize("name", MARKOVS)
def test_both_heads_agree(name: str) -> None:
    case = ALL[name]
    model = block_model(case)
    hidden, logits = block_states(case, model)
    before = torch.tensor([[case.pending, *case.answers["greedy"][:-1]]])
    with torch.no_grad():
        added = model.markov_head.block_bias(prev_token_ids=before, hidden_states=hidden[None])
    assert apart((logits + added[0]).numpy(), case.answers["greedy_logits"]) < CLOSE
    if case.spec["has_confidence"]:
        with torch.no_grad():
            codes = model.markov_head.prev_embeddings(before)
            sure = model.confidence_head(torch.cat([hidden[None], codes], dim=-1)).sigmoid()
        assert apart(sure[0].numpy(), case.answers["confidence"]) < CLOSE


@pytest.mark.parametrize("name", [name for name in MARKOVS if ALL[name].has_tree])
def test_paths_of_a_tree_agree(name: str) -> None:
    case = ALL[name]
    model = block_model(case)
    hidden, logits = block_states(case, model)
    for path, expected in zip(paths_of(case), case.answers["tree_logits"], strict=True):
        before, num_slots = torch.tensor([[case.pending, *path]]), len(path) + 1
        with torch.no_grad():
            added = model.markov_head.block_bias(
                prev_token_ids=before, hidden_states=hidden[None, :num_slots]
            )
        assert apart((logits[:num_slots] + added[0])[-1].numpy(), expected) < CLOSE


def test_a_window_without_its_edge_agrees() -> None:
    # given a window that reaches further back than the text, so that only its being causal tells
    case = ALL["block_window_causal"]
    case = replace(case, spec=case.spec | {"windows": (64, 0)})
    _, logits = block_states(case, block_model(case))
    expected = reading_of(case)
    assert apart(logits.numpy(), expected) < CLOSE
    assert apart(logits.numpy(), case.answers["logits"]) > FAR


def test_a_window_is_counted_from_the_anchor_there() -> None:
    # given a window of eight, which the package counts from the anchor for all slots: the eight
    # context positions before it, where the second reading has slot k see 7 - k of them
    case = ALL["block_window_causal"]
    _, logits = block_states(case, block_model(case))
    assert apart(logits.numpy(), case.answers["logits"]) > FAR
    # then only the windowed layer's mask is another: alone, it is that of the last eight features
    # without a window
    alone = replace(
        case,
        spec=case.spec
        | {"windows": (8,), "is_causal": (True,), "body": case.spec["body"] | {"num_layers": 1}},
        tensors={
            name: one for name, one in case.tensors.items() if not name.startswith("layers.1.")
        },
    )
    _, logits = block_states(alone, block_model(alone))
    short = replace(alone, spec=alone.spec | {"windows": (0,)}, features=alone.features[-8:])
    assert apart(logits.numpy(), reading_of(short, start=case.start)) < CLOSE


def reading_of(case: Case, start: int | None = None) -> Any:
    """The second reading's logits of a whole block."""
    given = case.tensors, case.spec, case.features, case.table, case.head, case.pending
    return block_logits(*given, case.start if start is None else start, case.spec["block_len"])


# --- EAGLE-3 --------------------------------------------------------------------------------------


def eagle_model(case: Case) -> Any:
    from speculators import Eagle3SpeculatorConfig
    from speculators.models.eagle3 import Eagle3DraftModel

    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer_config(case),
        draft_vocab_size=case.spec["body"]["vocab"],
        norm_before_residual=case.spec["norm_before_residual"],
        eagle_aux_hidden_state_layer_ids=[one + 1 for one in case.spec["tap_layers"]],
    )
    return loaded(Eagle3DraftModel(config), replace(case, head=case.tensors["lm_head.weight"]))


def chained(case: Case, model: Any) -> Any:
    """Logits of the pending token's row as training unrolls it along the greedy chain."""
    chain = torch.from_numpy(case.answers["greedy"])
    tokens = torch.cat([torch.from_numpy(case.tokens[1:]), chain])[None]
    seen: list[Any] = []
    hook = model.lm_head.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        model(
            behind(case, tokens.shape[1]),
            tokens,
            torch.zeros_like(tokens),
            ttt_steps=len(chain),
        )
    hook.remove()
    return torch.stack([one[0, case.start - 1] for one in seen])


@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize("name", EAGLES)
def test_chains_agree(name: str, is_normed: bool) -> None:
    case = ALL[name]
    case = replace(case, spec=case.spec | {"norm_before_residual": is_normed})
    chain = [int(one) for one in case.answers["greedy"]]
    given = case.tensors, case.spec, case.features, list(case.tokens), case.table
    expected = eagle_logits(*given, chain, range(len(chain)))[:-1]
    found = chained(case, eagle_model(case)).numpy()
    assert apart(found, expected) < CLOSE
    if is_normed:
        assert apart(found, case.answers["greedy_logits"]) > FAR
    else:
        assert apart(found, case.answers["greedy_logits"]) < CLOSE
