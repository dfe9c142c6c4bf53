"""The config.json of a drafter in each layout: the inverse of `drafter_layouts`.

Knows foreign keys. Must not know tensors or files. A drafter that a layout cannot say is refused,
since a loader elsewhere would run it as something else.
"""

from __future__ import annotations

from typing import Any

from forerun.errors import ModelError
from forerun.models.drafter_layouts import (
    DEEPSPEC,
    EAGLE3,
    SPECULATORS,
    SPECULATORS_EAGLE3,
    Z_LAB,
    default_eagle_taps,
)
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec
from forerun.models.spec import ModelSpec, Rope


def config_of(spec: DrafterSpec, layout: str, verifier: str | None = None) -> dict[str, Any]:
    """What `read_layout` reads as this spec; `verifier` names the target for other engines.

    Raises:
        ModelError: the layout is not one of this kind of drafter, or cannot say what this one is.
    """
    if isinstance(spec, EagleSpec):
        if layout == EAGLE3:
            return _eagle(spec)
        if layout in (SPECULATORS, SPECULATORS_EAGLE3):
            return _speculators_eagle(spec, verifier)
        raise ModelError(
            f"the layout {layout!r} has no EAGLE-3 in it: write {EAGLE3!r} or {SPECULATORS!r}"
        )
    if layout == Z_LAB:
        return _z_lab(spec)
    if layout == DEEPSPEC:
        return _deepspec(spec)
    if layout == SPECULATORS:
        return _speculators_block(spec, verifier)
    raise ModelError(
        f"the layout {layout!r} has no block drafter in it: write {Z_LAB!r}, {DEEPSPEC!r} or"
        f" {SPECULATORS!r}"
    )


def _refuse_draft_vocab(spec: BlockSpec, layout: str) -> None:
    if spec.draft_vocab:
        raise ModelError(
            f"the layout {layout!r} cannot say that this drafter knows {spec.draft_vocab} of"
            f" {spec.target_vocab} tokens: write {SPECULATORS!r}"
        )


def _z_lab(spec: BlockSpec) -> dict[str, Any]:
    _refuse_draft_vocab(spec, Z_LAB)
    if spec.is_shifted or spec.markov_rank or spec.has_confidence:
        raise ModelError(
            f"the layout {Z_LAB!r} holds plain DFlash, whose slots say their own place; this"
            f" drafter is shifted or has another head: write {DEEPSPEC!r} or {SPECULATORS!r}"
        )
    config = {
        "architectures": ["DFlashDraftModel"],
        **_layers(spec.body, "qwen3"),
        **_attention(spec),
        "block_size": spec.block_len,
        "num_target_layers": spec.num_target_layers or None,
        "target_hidden_size": spec.target_hidden,
        "dflash_config": {"mask_token_id": spec.mask_id, "target_layer_ids": list(spec.tap_layers)},
    }
    if spec.is_causal != tuple(map(bool, spec.windows)):
        if len(set(spec.is_causal)) > 1:
            raise ModelError(
                f"the layout {Z_LAB!r} cannot say that layers are causal as {spec.is_causal}: all"
                " are, none is, or those with a window are"
            )
        config["is_causal"] = spec.is_causal[0]
    return config


def _deepspec(spec: BlockSpec) -> dict[str, Any]:
    _refuse_draft_vocab(spec, DEEPSPEC)
    if not spec.is_shifted or any(spec.is_causal):
        raise ModelError(
            f"the layout {DEEPSPEC!r} holds drafters whose slots say the next place and see all of"
            f" the block; this one does not: write {Z_LAB!r} or {SPECULATORS!r}"
        )
    return {
        "architectures": ["Qwen3DSparkModel"],
        **_layers(spec.body, "qwen3"),
        **_attention(spec),
        "block_size": spec.block_len,
        "num_target_layers": spec.num_target_layers or None,
        "target_hidden_size": spec.target_hidden,
        "target_layer_ids": list(spec.tap_layers),
        "mask_token_id": spec.mask_id,
        "num_anchors": 512,
        **_heads(spec),
    }


def _speculators_block(spec: BlockSpec, verifier: str | None) -> dict[str, Any]:
    kind = "dspark" if spec.markov_rank or spec.has_confidence else "dflash"
    causal = {one for one, window in zip(spec.is_causal, spec.windows, strict=True) if window}
    plain = [one for one, window in zip(spec.is_causal, spec.windows, strict=True) if not window]
    if any(plain) or len(causal) > 1:
        raise ModelError(
            f"the layout {SPECULATORS!r} has causal layers only where there is a window, and then"
            f" all of them; this drafter's are {spec.is_causal}: write {Z_LAB!r}"
        )
    return {
        "architectures": ["DSparkSpeculator" if kind == "dspark" else "DFlashSpeculator"],
        "speculators_model_type": kind,
        "transformer_layer_config": {
            **_layers(spec.body, "qwen3"),
            **_attention(spec),
            "num_target_layers": spec.num_target_layers or None,
        },
        "draft_vocab_size": spec.head_vocab,
        "block_size": spec.block_len,
        "target_hidden_size": spec.target_hidden,
        "aux_hidden_state_layer_ids": [tap + 1 for tap in spec.tap_layers],
        "mask_token_id": spec.mask_id,
        # Without windows it says nothing, but vLLM takes it for every layer there is.
        "sliding_window_non_causal": True not in causal,
        "sample_from_anchor": spec.is_shifted,
        **(_heads(spec) if kind == "dspark" else {}),
        "speculators_config": _speculators(kind, spec.max_drafted, verifier),
        "tie_word_embeddings": False,
        "dtype": spec.body.dtype,
        "torch_dtype": spec.body.dtype,
    }


def _eagle(spec: EagleSpec) -> dict[str, Any]:
    if spec.norm_before_residual:
        raise ModelError(
            f"the layout {EAGLE3!r} cannot say norm_before_residual: write {SPECULATORS!r}"
        )
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_layers(spec.body, "llama"),
        "vocab_size": spec.target_vocab,
        "draft_vocab_size": spec.body.vocab,
        "num_target_layers": spec.num_target_layers or None,
        "target_hidden_size": spec.target_hidden,
    }
    # Readers elsewhere disagree on whether these are ids of outputs: said only where they must be.
    if not spec.num_target_layers or spec.tap_layers != default_eagle_taps(spec.num_target_layers):
        config["eagle_config"] = {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": list(spec.tap_layers),
        }
    return config


def _speculators_eagle(spec: EagleSpec, verifier: str | None) -> dict[str, Any]:
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": {
            **_layers(spec.body, "llama"),
            "vocab_size": spec.target_vocab,
            "num_target_layers": spec.num_target_layers or None,
        },
        "draft_vocab_size": spec.body.vocab,
        "target_hidden_size": spec.target_hidden,
        "eagle_aux_hidden_state_layer_ids": [tap + 1 for tap in spec.tap_layers],
        "norm_before_residual": spec.norm_before_residual,
        "speculators_config": _speculators("eagle3", 3, verifier),
        "tie_word_embeddings": False,
        "dtype": spec.body.dtype,
        "torch_dtype": spec.body.dtype,
    }


def _heads(spec: BlockSpec) -> dict[str, Any]:
    return {
        "markov_rank": spec.markov_rank,
        "markov_head_type": spec.markov_kind.value,
        "enable_confidence_head": spec.has_confidence,
        "confidence_head_with_markov": spec.has_confidence and spec.markov_rank > 0,
    }


def _speculators(algorithm: str, num_drafted: int, verifier: str | None) -> dict[str, Any]:
    method = {"proposal_type": "greedy", "speculative_tokens": num_drafted}
    return {
        "algorithm": algorithm,
        "default_proposal_method": "greedy",
        "proposal_methods": [method],
        "verifier": {"name_or_path": verifier, "architectures": []},
    }


def _attention(spec: BlockSpec) -> dict[str, Any]:
    widths = {window for window in spec.windows if window}
    if len(widths) > 1:
        raise ModelError(
            f"no layout has layers with different windows, and these are {spec.windows}: give all"
            " sliding layers one window"
        )
    kinds = ["sliding_attention" if window else "full_attention" for window in spec.windows]
    return {
        "layer_types": kinds,
        "use_sliding_window": bool(widths),
        "sliding_window": widths.pop() if widths else None,
        "max_window_layers": spec.body.num_layers,
    }


def _layers(body: ModelSpec, family: str) -> dict[str, Any]:
    """The keys of its layers, old and new spellings both present."""
    if body.family != family or body.qkv_bias or body.qk_norm != (family == "qwen3"):
        raise ModelError(
            f"the body of this drafter is {body.family!r}, written is {family!r} without biases:"
            " build its spec with that family"
        )
    scaling = _rope_scaling(body.rope)
    return {
        "model_type": family,
        "vocab_size": body.vocab,
        "hidden_size": body.hidden,
        "intermediate_size": body.ffn,
        "num_hidden_layers": body.num_layers,
        "num_attention_heads": body.num_heads,
        "num_key_value_heads": body.num_kv_heads,
        "head_dim": body.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": body.max_position,
        "rms_norm_eps": body.norm_eps,
        "rope_theta": body.rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            **(scaling or {"rope_type": "default"}),
            "rope_theta": body.rope.theta,
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": body.dtype,
        "torch_dtype": body.dtype,
    }


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.kind == "default":
        return None
    return {
        "rope_type": rope.kind,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position,
    }
