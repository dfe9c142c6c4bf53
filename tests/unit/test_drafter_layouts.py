"""Drafters' configs: every way to say a thing is read, and what is not known is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drafter_cases import (
    BODY,
    CAUSAL,
    DEFAULT_EAGLE,
    DFLASH,
    DSPARK,
    EAGLE,
    MAPPED,
    NORMED,
    NUM_TARGET_LAYERS,
    RECURRENT,
    ROUND_TRIPS,
    SHIFTED,
    SLIDING,
    Change,
    change_config,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.errors import ModelError
from forerun.models.drafter_configs import config_of
from forerun.models.drafter_files import drafter_tensors, open_drafter
from forerun.models.drafter_layouts import LAYOUTS, read_layout
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, MarkovKind, spread_taps
from forerun.models.spec import ModelSpec

TARGET = replace(BODY, num_layers=NUM_TARGET_LAYERS, max_position=512)


def test_given_the_keys_beside_dflash_config_then_they_are_read_too(tmp_path: Path) -> None:
    def flatten(config: dict[str, Any]) -> None:
        config.update(config.pop("dflash_config"))

    assert open_drafter(change_config(write(tmp_path, DFLASH, "z-lab"), flatten)).spec == DFLASH


def test_given_no_tap_list_then_the_rule_of_the_paper(tmp_path: Path) -> None:
    def forget(config: dict[str, Any]) -> None:
        del config["dflash_config"]["target_layer_ids"]
        config["num_target_layers"] = 36

    config = config_of(DFLASH, "z-lab")
    forget(config)
    assert read_layout(config, "config")[1].tap_layers == spread_taps(36, 2) == (1, 33)
    del config["num_target_layers"]
    assert read_layout(config, "config", TARGET)[1].tap_layers == (1, 3)
    with pytest.raises(ModelError, match=r"nor says how many there are; open it together with"):
        read_layout(config, "config")


@pytest.mark.parametrize(("first", "windows"), [(0, (16, 16)), (1, (0, 16)), (2, (0, 0))])
def test_given_no_kinds_of_layers_then_those_from_max_window_layers_on_slide(
    first: int, windows: tuple[int, ...]
) -> None:
    config = config_of(SLIDING, "z-lab")
    del config["layer_types"]
    spec = read_layout({**config, "max_window_layers": first}, "config")[1]
    assert isinstance(spec, BlockSpec)
    assert spec.windows == windows
    assert spec.is_causal == tuple(map(bool, windows))


def test_given_no_block_size_then_sixteen() -> None:
    config = config_of(DFLASH, "z-lab")
    del config["block_size"]
    spec = read_layout(config, "config")[1]
    assert isinstance(spec, BlockSpec)
    assert (spec.block_len, spec.max_drafted) == (16, 15)


def test_given_the_usual_taps_then_eagle3_says_only_how_many_layers() -> None:
    config = config_of(DEFAULT_EAGLE, "eagle3")
    assert "eagle_config" not in config
    del config["num_target_layers"]
    twelve = replace(TARGET, num_layers=12)
    assert read_layout(config, "config", twelve)[1].tap_layers == (1, 5, 8)
    with pytest.raises(ModelError, match="open it together with its target"):
        read_layout(config, "config")


@pytest.mark.parametrize(
    ("keys", "taps"),
    [
        ({"target_layer_ids": [0, 2, 4]}, (0, 2, 4)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 4]}}, (0, 2, 4)),
        ({"eagle_aux_hidden_state_layer_ids": [1, 3, 5]}, (0, 2, 4)),
    ],
)
def test_given_the_ways_to_say_taps_then_outputs_are_meant(
    keys: dict[str, Any], taps: tuple[int, ...]
) -> None:
    config = config_of(EAGLE, "eagle3")
    del config["eagle_config"]
    assert read_layout({**config, **keys}, "config")[1].tap_layers == taps


def test_given_the_original_eagle3_name_then_its_small_head_tells(tmp_path: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        config["architectures"] = ["LlamaForCausalLM"]

    drafter = open_drafter(change_config(write(tmp_path, MAPPED, "eagle3"), rename))
    assert (drafter.layout, drafter.spec) == ("eagle3", MAPPED)


@pytest.mark.parametrize(
    ("windows", "is_causal", "is_said"),
    [
        ((0, 0), (False, False), True),
        ((16, 16), (False, False), True),
        ((16, 16), (True, True), False),
        ((0, 16), (False, True), False),
    ],
)
def test_given_speculators_then_a_reader_that_asks_no_windows_hears_whether_layers_look_ahead(
    windows: tuple[int, ...], is_causal: tuple[bool, ...], is_said: bool
) -> None:
    spec = replace(DFLASH, windows=windows, is_causal=is_causal)
    config = config_of(spec, "speculators")
    assert config["sliding_window_non_causal"] is is_said
    assert read_layout(config, "config")[1] == spec


def edited(**changes: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        config.update(changes)

    return change


def nested(**changes: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        key = "dflash_config" if "dflash_config" in config else "transformer_layer_config"
        config[key].update(changes)

    return change


WRONG_CONFIGS: dict[str, tuple[DrafterSpec, str, Change, str]] = {
    "dflash2": (DFLASH, "z-lab", edited(architectures=["DFlash2DraftModel"]),
                r"describes DFlash2 \(conv.*not supported; forerun reads DFlash, DSpark and EAGLE"),
    "dflash2 of speculators": (DFLASH, "speculators", edited(speculators_model_type="dflash2"),
                               "describes DFlash2"),
    "domino": (DFLASH, "z-lab", nested(projector_type="domino"), "describes Domino"),
    "domino of speculators": (DFLASH, "speculators", edited(projector_type="domino"),
                              "describes Domino"),
    "jetspec": (DFLASH, "speculators", edited(speculators_model_type="jetspec"),
                "describes JetSpec"),
    "unknown of speculators": (DFLASH, "speculators", edited(speculators_model_type="next"),
                               "speculators_model_type 'next' is not known; forerun reads"),
    "gemma": (DSPARK, "deepspec", edited(architectures=["Gemma4DSparkModel"]), "Gemma layers"),
    "a language model": (EAGLE, "eagle3",
                         lambda config: (config.update(architectures=["Qwen3ForCausalLM"]),
                                         config.pop("draft_vocab_size"))[1],
                         "describes a language model.*used with lm:DIR"),
    "unknown": (EAGLE, "eagle3", edited(architectures=["Other"]),
                "architecture 'Other' is not a drafter that is known; forerun reads"),
    "no layers": (DFLASH, "speculators", lambda config: config.pop("transformer_layer_config"),
                  "transformer_layer_config is missing"),
    "markov head": (DSPARK, "deepspec", edited(markov_head_type="lstm"),
                    "markov_head_type='lstm' is not sup.*; 'vanilla', 'gated', 'rnn' are"),
    "markov head of speculators": (RECURRENT, "speculators", edited(markov_head_type=3),
                                   "markov_head_type='3' is not supported; 'vanilla', 'gated'"),
    "no mask": (DFLASH, "z-lab", nested(mask_token_id=None),
                "mask_token_id is None: without it nobody.*drafter's card"),
    "mask by name": (DFLASH, "z-lab", nested(mask_token_id="<|MASK|>"), "mask_token_id is '<|MASK"),
    "embedding tap": (DSPARK, "deepspec", edited(target_layer_ids=[-1, 1, 2]),
                      "taps the target's embedding, which is not supported"),
    "embedding tap, counted from one": (
        DFLASH, "speculators", edited(aux_hidden_state_layer_ids=[0, 2, 3]), "target's embedding"),
    "tap twice": (DFLASH, "z-lab", nested(target_layer_ids=[1, 1, 2]), "must be different"),
    "taps of words": (DFLASH, "z-lab", nested(target_layer_ids=["1"]), "list of integers"),
    "no small vocabulary": (DFLASH, "speculators", edited(draft_vocab_size=0), "draft_vocab_size"),
    "soft capping": (DFLASH, "z-lab", nested(final_logit_softcapping=30.0),
                     r"final_logit_softcapping=30\.0 is not supported"),
    "scaled table": (DFLASH, "z-lab", edited(input_embedding_scale=8.0), "input_embedding_scale"),
    "biases": (DFLASH, "z-lab", edited(attention_bias=True), "attention_bias=true"),
    "block of one": (DFLASH, "z-lab", edited(block_size=1), "leaves nothing to draft"),
    "kinds of layers": (DFLASH, "z-lab", edited(layer_types=["linear_attention", "full_attention"]),
                        "must name 2 layers, each full_attention or"),
    "too few kinds": (DFLASH, "z-lab", edited(layer_types=["full_attention"]), "must name 2"),
    "window unsaid": (SLIDING, "z-lab", edited(sliding_window=None), "sliding_window must be"),
    "window denied": (SLIDING, "z-lab", edited(use_sliding_window=False), "one of the two"),
    "quantized": (DFLASH, "z-lab", edited(quantization_config={"bits": 4}), "quantized"),
    "causal in words": (DFLASH, "z-lab", edited(is_causal="yes"), "is_causal must be true or"),
    "two layers of eagle3": (EAGLE, "eagle3", edited(num_hidden_layers=2), "read with one layer"),
    "qwen layer": (EAGLE, "speculators", nested(model_type="qwen3"), "only Llama's is supported"),
    "norm before fc": (EAGLE, "speculators", edited(norm_before_fc=True), "norm_before_fc=True"),
    "rope": (DFLASH, "z-lab", edited(rope_parameters={"rope_type": "yarn"}), "'yarn' is not"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "layout", "change", "sentence"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS
)
def test_given_a_config_that_is_not_known_then_it_is_refused_by_name(
    tmp_path: Path, spec: DrafterSpec, layout: str, change: Change, sentence: str
) -> None:
    directory = write(tmp_path, spec, layout)
    assert open_drafter(directory).spec == spec  # what is refused below is the change alone
    with pytest.raises(ModelError, match=sentence) as caught:
        open_drafter(change_config(directory, change))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("layout", ["deepspec", "speculators"])
def test_given_a_markov_head_then_its_kind_is_read_if_said_and_else_it_is_plain(
    layout: str,
) -> None:
    for kind in MarkovKind:
        spec = replace(DSPARK, markov_kind=kind)
        config = config_of(spec, layout)
        assert config["markov_head_type"] == kind.value
        assert read_layout(config, "config") == (layout, spec)
    for unsaid in ({"markov_head_type": None}, {"markov_head_type": "Vanilla"}):
        assert read_layout(config | unsaid, "config") == (layout, DSPARK)
    # and where there are no tables, what kind they would be is of no account
    bare = config_of(SHIFTED, layout) | {"markov_head_type": "lstm"}
    assert read_layout(bare, "config") == (layout, SHIFTED)


UNSAYABLE: dict[str, tuple[DrafterSpec, str, str]] = {
    "shifted": (SHIFTED, "z-lab", "holds plain DFlash.*write 'deepspec' or 'speculators'"),
    "markov": (DSPARK, "z-lab", "holds plain DFlash"),
    "recurrent": (RECURRENT, "z-lab", "holds plain DFlash"),
    "same place": (DFLASH, "deepspec", "slots say the next place"),
    "causal": (CAUSAL, "speculators", "causal layers only where there is a window"),
    "one of two causal": (replace(CAUSAL, is_causal=(True, False)), "z-lab", "all are, none is"),
    "two windows": (replace(SLIDING, windows=(8, 16)), "z-lab", "different windows"),
    "eagle in z-lab": (EAGLE, "z-lab", "has no EAGLE-3 in it: write 'eagle3' or 'speculators'"),
    "block in eagle3": (DFLASH, "eagle3", "has no block drafter in it"),
    "normed": (NORMED, "eagle3", "cannot say norm_before_residual: write 'speculators'"),
    "llama": (replace(DFLASH, body=EAGLE.body), "z-lab", "build its spec with that family"),
}


@pytest.mark.parametrize(("spec", "layout", "sentence"), UNSAYABLE.values(), ids=UNSAYABLE)
def test_given_what_a_layout_cannot_say_then_nothing_is_written(
    tmp_path: Path, spec: DrafterSpec, layout: str, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        write(tmp_path / "drafter", spec, layout)
    assert not (tmp_path / "drafter").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)
CASES = [(spec, layout) for spec, layout, _ in ROUND_TRIPS.values()]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_given_any_value_for_any_key_then_a_spec_or_a_sentence(data: st.DataObject) -> None:
    config = config_of(*data.draw(st.sampled_from(CASES)))
    places = [config, *(one for one in config.values() if isinstance(one, dict))]
    place = data.draw(st.sampled_from(places))
    key = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    else:
        del place[key]
    target: ModelSpec | None = data.draw(st.sampled_from([None, TARGET]))
    said = None
    try:
        layout, spec = read_layout(config, "config", target)
    except ModelError as error:
        said = str(error)
    if said is not None:
        assert said.startswith("config")
        return
    assert layout in LAYOUTS
    assert all(type(tap) is int and tap >= 0 for tap in spec.tap_layers)
    drafter_tensors(spec)
