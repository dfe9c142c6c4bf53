"""Which config.json says which drafter: the layouts that published drafters come in.

Knows foreign keys, their conventions and their fall-backs, and turns them into a `DrafterSpec`.
Must not know tensors. What is refused is refused by its name, with the way out. No layout could be
tried on published files here; `UNTESTED` says so wherever a layout is named to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from forerun.errors import ModelError
from forerun.models.drafter_spec import (
    BlockSpec,
    DrafterSpec,
    EagleSpec,
    MarkovKind,
    spread_taps,
)
from forerun.models.spec import FAMILIES, ConfigReader, ModelSpec, architecture_of, body_from_config

Z_LAB, DEEPSPEC, SPECULATORS = "z-lab", "deepspec", "speculators"
EAGLE3, SPECULATORS_EAGLE3 = "eagle3", "speculators-eagle3"
LAYOUTS = (Z_LAB, DEEPSPEC, SPECULATORS, EAGLE3, SPECULATORS_EAGLE3)
UNTESTED = "layout-compatible, untested on published files"
DEFAULT_BLOCK_LEN = 16  # what z-lab's loader takes where a config does not say

_FOREIGN = {
    "DFlash2DraftModel": "DFlash2 (convolutions in each layer and a selector of candidates)",
    "dflash2": "DFlash2 (convolutions in each layer and a selector of candidates)",
    "Gemma4DSparkModel": "a DSpark drafter with Gemma layers",
    "dsv4_dspark": "a DSpark drafter with mixture-of-experts layers",
    "MuseGlimmerAssistantModel": "a DFlash drafter with layers of Muse",
    "dflare": "DFlare (a fusion of features for each layer)",
    "jetspec": "JetSpec (a causal head of its own)",
    "dels_spec": "DeLS-Spec (a second, local head)",
    "eagle": "EAGLE of the first or second kind",
    "mtp": "layers for multi-token prediction",
    "fast_mtp": "layers for multi-token prediction",
    "medusa": "Medusa heads",
    "hydra": "Hydra heads",
    "pard2": "PARD",
}
_WAY_OUT = (
    "forerun reads DFlash, DSpark and EAGLE-3: take a drafter of one of these for the target, or"
    " train one with `forerun train dflash`"
)
# Of Gemma-like targets: what they do to the table's rows and to logits, forerun's targets do not.
_SCALARS = {"input_embedding_scale": 1.0, "output_multiplier": 1.0, "final_logit_softcapping": 0.0}


@dataclass(frozen=True, slots=True)
class _Source:
    """One config: the keys about drafting, the keys about layers, and the target where known."""

    keys: ConfigReader
    layers: Mapping[str, Any]
    target: ModelSpec | None

    @property
    def where(self) -> str:
        return self.keys.where

    @property
    def num_target_layers(self) -> int:
        """As the file says, 0 where it does not."""
        for config in (self.keys.config, self.layers):
            if config.get("num_target_layers") is not None:
                return ConfigReader(config, self.where).count("num_target_layers")
        return 0

    def refuse(self, what: str, way_out: str = _WAY_OUT) -> NoReturn:
        raise ModelError(f"{self.where}: {what}; {way_out}")


def read_layout(
    config: Mapping[str, Any], where: str, target: ModelSpec | None = None
) -> tuple[str, DrafterSpec]:
    """The layout of a drafter's config and the drafter it describes.

    `target` fills in what some files leave to it: which layers are tapped. `num_target_layers` is 0
    where the file does not say. Bodies come without stop ids, and `tied`, since a drafter has at
    most one table-sized matrix of its own.

    Raises:
        ModelError: not a drafter, one of a kind that is not supported, a missing or bad key.
    """
    kind = config.get("speculators_model_type")
    architecture = architecture_of(config)
    _refuse_foreign(config, str(kind or architecture), where)
    if kind is not None:
        layers = config.get("transformer_layer_config")
        if not isinstance(layers, dict):
            raise ModelError(f"{where}: transformer_layer_config is missing: the file is not whole")
        source = _Source(ConfigReader(config, where), layers, target)
        if kind == "eagle3":
            return SPECULATORS_EAGLE3, _speculators_eagle(source)
        return SPECULATORS, _speculators_block(source, kind)
    nested = config.get("dflash_config")
    merged = {**config, **nested} if isinstance(nested, dict) else dict(config)
    source = _Source(ConfigReader(merged, where), config, target)
    if architecture == "Qwen3DSparkModel":
        return DEEPSPEC, _deepspec(source)
    if architecture == "DFlashDraftModel" or nested is not None:
        return Z_LAB, _z_lab(source)
    return EAGLE3, _eagle(source)


def _refuse_foreign(config: Mapping[str, Any], kind: str, where: str) -> None:
    nested = config.get("dflash_config")
    keys = {**config, **nested} if isinstance(nested, dict) else config
    what = _FOREIGN.get(kind)
    if keys.get("projector_type") == "domino":
        what = "Domino (a recurrent head that corrects the block)"
    if what is not None:
        raise ModelError(f"{where} describes {what}, which is not supported; {_WAY_OUT}")
    if config.get("speculators_model_type") is not None:
        if kind not in ("dflash", "dspark", "eagle3"):
            raise ModelError(f"{where}: speculators_model_type {kind!r} is not known; {_WAY_OUT}")
        return
    known = kind in ("DFlashDraftModel", "Qwen3DSparkModel") or nested is not None
    if known or "eagle3" in kind.lower():
        return
    if kind in FAMILIES and "draft_vocab_size" in config:  # EAGLE-3 names itself after its layer
        return
    if kind in FAMILIES:
        raise ModelError(
            f"{where} describes a language model ({kind}), not a drafter that reads features: as a"
            " drafter it is used with lm:DIR"
        )
    raise ModelError(f"{where}: architecture {kind!r} is not a drafter that is known; {_WAY_OUT}")


def _z_lab(source: _Source) -> BlockSpec:
    """DFlash as its authors and SpecForge store it; each key in `dflash_config` or beside it."""
    keys = source.keys
    sliding = _sliding(source)
    is_causal = tuple(sliding)
    if keys.config.get("is_causal") is not None:
        is_causal = (keys.flag("is_causal"),) * len(sliding)
    if keys.flag("causal_head"):
        is_causal = (True,) * len(sliding)
    is_shifted = keys.flag("sample_from_anchor") or keys.flag("shift_label")
    block_len = keys.count("block_size", DEFAULT_BLOCK_LEN)
    return _block(source, block_len, _taps(source, keys.ids("target_layer_ids")), is_causal,
                  is_shifted=is_shifted)  # fmt: skip


def _deepspec(source: _Source) -> BlockSpec:
    """DFlash and DSpark of DeepSpec: shifted, so that a block of n slots drafts n tokens."""
    keys = source.keys
    taps = _taps(source, keys.ids("target_layer_ids"))
    is_causal = (False,) * len(_sliding(source))
    return _block(source, keys.count("block_size"), taps, is_causal, is_shifted=True)


def _speculators_block(source: _Source, kind: str) -> BlockSpec:
    """DFlash and DSpark of speculators, whose tap ids are those of layers' inputs."""
    keys = source.keys
    vocab = ConfigReader(source.layers, source.where).count("vocab_size")
    draft_vocab = keys.count("draft_vocab_size", vocab)
    ids = keys.ids("aux_hidden_state_layer_ids")
    taps = _taps(source, None if ids is None else tuple(one - 1 for one in ids))
    is_bidirectional = keys.flag("sliding_window_non_causal")
    is_causal = tuple(one and not is_bidirectional for one in _sliding(source))
    is_shifted = keys.flag("sample_from_anchor", default=kind == "dspark")
    is_shifted = is_shifted or keys.flag("shift_label")
    spec = _block(source, keys.count("block_size", 8), taps, is_causal, is_shifted=is_shifted)
    return replace(spec, draft_vocab=0 if draft_vocab == vocab else draft_vocab)


def _block(
    source: _Source,
    block_len: int,
    taps: tuple[int, ...],
    is_causal: tuple[bool, ...],
    *,
    is_shifted: bool,
) -> BlockSpec:
    keys = source.keys
    _refuse_scalars(source)
    if block_len < 2:
        source.refuse(f"block_size={block_len} leaves nothing to draft", "it must be 2 or more")
    body = _body(source, source.layers, "qwen3")
    rank = _markov_rank(source)
    has_confidence = keys.flag("enable_confidence_head")
    if rank:  # one that does not see the token before says less than the contract asks for
        has_confidence = has_confidence and keys.flag("confidence_head_with_markov", default=True)
    return BlockSpec(
        body=body,
        block_len=block_len,
        is_shifted=is_shifted,
        tap_layers=taps,
        target_hidden=keys.count("target_hidden_size", body.hidden),
        num_target_layers=source.num_target_layers,
        mask_id=_mask_id(source),
        windows=_windows(source),
        is_causal=is_causal,
        markov_rank=rank,
        markov_kind=_markov_kind(source) if rank else MarkovKind.VANILLA,
        has_confidence=has_confidence,
    )


def _eagle(source: _Source) -> EagleSpec:
    """EAGLE-3 as its authors, SpecForge and DeepSpec store it."""
    keys = source.keys
    nested = keys.config.get("eagle_config")
    inner = ConfigReader(nested if isinstance(nested, dict) else {}, source.where)
    # Nested ids are those of outputs (SpecForge), the key beside them is of inputs (speculators).
    taps = keys.ids("target_layer_ids") or inner.ids("eagle_aux_hidden_state_layer_ids")
    if not taps:
        inputs = keys.ids("eagle_aux_hidden_state_layer_ids")
        taps = tuple(one - 1 for one in inputs) if inputs else None
    return _eagle_spec(source, taps)


def _speculators_eagle(source: _Source) -> EagleSpec:
    """EAGLE-3 of speculators, whose tap ids are those of layers' inputs."""
    if source.layers.get("model_type", "llama") != "llama":
        source.refuse(
            f"its layer is of {source.layers['model_type']!r}; only Llama's is supported here"
        )
    inputs = source.keys.ids("eagle_aux_hidden_state_layer_ids")
    return _eagle_spec(source, tuple(one - 1 for one in inputs) if inputs else None)


def _eagle_spec(source: _Source, taps: tuple[int, ...] | None) -> EagleSpec:
    keys = source.keys
    for switch in ("norm_before_fc", "norm_output", "fc_norm", "use_aux_norm"):
        if keys.config.get(switch):
            source.refuse(f"{switch}={keys.config[switch]!r} is not supported")
    target_vocab = ConfigReader(source.layers, source.where).count("vocab_size")
    vocab = keys.count("draft_vocab_size", target_vocab)
    body = _body(source, {**source.layers, "vocab_size": vocab}, "llama")
    if body.num_layers != 1:
        source.refuse(f"num_hidden_layers={body.num_layers}; EAGLE-3 is read with one layer")
    return EagleSpec(
        body=body,
        tap_layers=_eagle_taps(source, taps),
        target_hidden=keys.count("target_hidden_size", body.hidden),
        num_target_layers=source.num_target_layers,
        target_vocab=target_vocab,
        has_token_map=vocab != target_vocab,
        norm_before_residual=keys.flag("norm_before_residual"),
    )


def default_eagle_taps(num_layers: int) -> tuple[int, ...]:
    """Where EAGLE-3 taps a target unless told: inputs of layers 2, n // 2 and n - 3 are outputs."""
    return (1, num_layers // 2 - 1, num_layers - 4)


def _eagle_taps(source: _Source, taps: tuple[int, ...] | None) -> tuple[int, ...]:
    return _checked(source, taps or default_eagle_taps(_layers_needed(source)))


def _taps(source: _Source, taps: tuple[int, ...] | None) -> tuple[int, ...]:
    if taps:
        return _checked(source, taps)
    # Before configs listed them, a drafter had as many taps as layers.
    num_taps = ConfigReader(source.layers, source.where).count("num_hidden_layers")
    return _checked(source, spread_taps(_layers_needed(source), num_taps))


def _layers_needed(source: _Source) -> int:
    num_layers = source.num_target_layers
    if not num_layers and source.target is not None:
        num_layers = source.target.num_layers
    if not num_layers:
        source.refuse(
            "it neither lists the target's layers that are tapped nor says how many there are",
            "open it together with its target, or add num_target_layers to it",
        )
    return num_layers


def _checked(source: _Source, taps: tuple[int, ...]) -> tuple[int, ...]:
    if -1 in taps:
        source.refuse("it taps the target's embedding, which is not supported", _WAY_OUT)
    if min(taps) < 0 or len(set(taps)) != len(taps):
        source.refuse(
            f"the tapped layers {list(taps)} must be different, and 0 or more",
            "the config was changed or is of a layout that counts otherwise",
        )
    return taps


def _body(source: _Source, layers: Mapping[str, Any], family: str) -> ModelSpec:
    body = body_from_config(layers, family, where=source.where)
    if body.qkv_bias:
        source.refuse("attention_bias=true is not supported in a drafter's layers")
    return replace(body, tied=True, bos_id=None)


def _mask_id(source: _Source) -> int:
    value = source.keys.config.get("mask_token_id")
    if type(value) is not int or value < 0:
        source.refuse(
            f"mask_token_id is {value!r}: without it nobody knows which token fills the block",
            "take it from the drafter's card and write it into dflash_config",
        )
    return value


def _markov_rank(source: _Source) -> int:
    keys = source.keys
    return keys.count("markov_rank") if keys.config.get("markov_rank") else 0


def _markov_kind(source: _Source) -> MarkovKind:
    kind = str(source.keys.config.get("markov_head_type") or "vanilla").lower()
    if kind not in list(MarkovKind):
        known = ", ".join(repr(one.value) for one in MarkovKind)
        source.refuse(f"markov_head_type={kind!r} is not supported; {known} are")
    return MarkovKind(kind)


def _refuse_scalars(source: _Source) -> None:
    for key, neutral in _SCALARS.items():
        value = source.keys.config.get(key)
        if value is not None and value != neutral:
            source.refuse(f"{key}={value!r} is not supported: its target is of another family")


def _sliding(source: _Source) -> list[bool]:
    """Of each layer, whether its attention is of the sliding kind."""
    layers = ConfigReader(source.layers, source.where)
    num_layers = layers.count("num_hidden_layers")
    kinds = source.layers.get("layer_types")
    if kinds is None:
        uses = layers.flag("use_sliding_window") and bool(source.layers.get("sliding_window"))
        last_full = source.layers.get("max_window_layers") != 0  # 0 is said where all slide
        first = layers.count("max_window_layers", num_layers) if uses and last_full else 0
        return [uses and layer >= first for layer in range(num_layers)]
    known = {"full_attention": False, "sliding_attention": True}
    is_list = isinstance(kinds, list) and len(kinds) == num_layers
    if not is_list or any(str(kind) not in known for kind in kinds):
        source.refuse(
            f"layer_types={kinds!r} must name {num_layers} layers, each full_attention or"
            " sliding_attention",
            "other kinds of layers are not supported",
        )
    return [known[str(kind)] for kind in kinds]


def _windows(source: _Source) -> tuple[int, ...]:
    sliding = _sliding(source)
    if not any(sliding):
        return (0,) * len(sliding)
    if source.layers.get("use_sliding_window") is False:
        source.refuse(
            "layer_types names sliding_attention and use_sliding_window is false",
            "one of the two is wrong: see the drafter's card",
        )
    window = ConfigReader(source.layers, source.where).count("sliding_window")
    return tuple(window if one else 0 for one in sliding)
