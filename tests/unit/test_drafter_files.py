"""Drafters' files: what is written in a layout is what is read; what is not known is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafter_cases import (
    BODY,
    CAUSAL,
    CONFIDENT,
    DEFAULT_EAGLE,
    DFLASH,
    DSPARK,
    EAGLE,
    MAPPED,
    NORMED,
    NUM_TARGET_LAYERS,
    ROUND_TRIPS,
    SHIFTED,
    SLIDING,
    random_tensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from forerun.errors import ModelError
from forerun.models.drafter_configs import config_of
from forerun.models.drafter_files import (
    DrafterCheckpoint,
    drafter_tensors,
    open_drafter,
    write_drafter,
)
from forerun.models.drafter_layouts import LAYOUTS, read_layout
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, spread_taps
from forerun.models.shards import SINGLE_NAME, write_tensors
from forerun.models.spec import ModelSpec

Change = Callable[[dict[str, Any]], None]
TARGET = replace(BODY, num_layers=NUM_TARGET_LAYERS, max_position=512)


def write(directory: Path, spec: DrafterSpec, layout: str) -> Path:
    write_drafter(directory, spec, random_tensors(spec), layout=layout)
    return directory


def change_config(directory: Path, change: Change) -> Path:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return directory


def add_tensors(directory: Path, drop: tuple[str, ...] = (), **more: np.ndarray) -> Path:
    """Write the file again, with tensors more or less; `__` in a name stands for a dot."""
    path = directory / SINGLE_NAME
    tensors = stored_tensors(path)
    tensors = {name: one for name, one in tensors.items() if name not in drop}
    write_tensors(path, tensors | {name.replace("__", "."): one for name, one in more.items()})
    return directory


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """What a file holds, read by another library; bf16 as its bits."""
    torch = pytest.importorskip("torch")
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  no mapping
            value = file.get_tensor(name)
            bits = value.view(torch.uint16) if value.dtype == torch.bfloat16 else value
            tensors[name] = bits.numpy().copy()
    return tensors


@pytest.mark.parametrize(("spec", "layout", "read_as"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_given_a_drafter_when_written_in_a_layout_then_read_as_it_was(
    tmp_path: Path, spec: DrafterSpec, layout: str, read_as: str
) -> None:
    tensors = random_tensors(spec)
    write_drafter(tmp_path / "drafter", spec, tensors, layout=layout)

    drafter = open_drafter(tmp_path / "drafter")

    assert (drafter.spec, drafter.layout) == (spec, read_as)
    assert set(drafter.names) == set(drafter_tensors(spec))
    assert drafter.num_bytes == sum(2 * tensors[name].size for name in drafter_tensors(spec))
    for name in drafter_tensors(spec):
        tensor = drafter.tensor(name)
        assert tensor.dtype == "BF16"
        assert not tensor.array.flags.writeable
        np.testing.assert_array_equal(tensor.array, tensors[name])
    drafter.drop_pages()
    assert_token_map(drafter, tensors)


def assert_token_map(drafter: DrafterCheckpoint, tensors: dict[str, Any]) -> None:
    if "d2t" not in tensors:
        assert drafter.token_map is None
        return
    assert drafter.token_map is not None
    assert drafter.token_map.dtype == np.int64
    expected = tensors["d2t"] + np.arange(tensors["d2t"].size)
    np.testing.assert_array_equal(drafter.token_map, expected)


def test_given_every_layout_then_a_round_trip_covers_it() -> None:
    assert {read_as for _, _, read_as in ROUND_TRIPS.values()} == set(LAYOUTS)


def test_given_a_written_file_then_another_library_reads_the_names_of_its_layout(
    tmp_path: Path,
) -> None:
    plain = stored_tensors(write(tmp_path / "plain", DFLASH, "z-lab") / SINGLE_NAME)
    assert set(plain) == set(drafter_tensors(DFLASH))
    assert len(plain) == 3 + 11 * 2  # the published ones: 58 with five layers

    renamed = stored_tensors(write(tmp_path / "renamed", MAPPED, "speculators") / SINGLE_NAME)
    assert {"layers.0.hidden_norm.weight", "d2t", "t2d"} <= set(renamed)
    assert not any(name.startswith("midlayer") for name in renamed)
    drafted = np.flatnonzero(renamed["t2d"])
    np.testing.assert_array_equal(drafted, renamed["d2t"] + np.arange(renamed["d2t"].size))


def test_given_float_weights_then_they_are_kept_as_they_are(tmp_path: Path) -> None:
    tensors = {
        name: np.full(shape, 0.1, np.float32) for name, shape in drafter_tensors(DFLASH).items()
    }
    write_drafter(tmp_path, DFLASH, tensors, layout="z-lab")
    assert open_drafter(tmp_path).tensor("fc.weight").dtype == "F32"


def test_given_a_tokenizer_then_it_goes_along(
    tmp_path: Path, tiny_checkpoint_dir: Callable[..., Path]
) -> None:
    model = tiny_checkpoint_dir("qwen3")
    write_drafter(tmp_path, DFLASH, random_tensors(DFLASH), layout="z-lab", tokenizer_from=model)
    own = (tmp_path / "tokenizer.json").read_bytes()
    assert own == (model / "tokenizer.json").read_bytes()


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


def test_given_frozen_copies_then_deepspec_skips_them_and_speculators_shows_them(
    tmp_path: Path,
) -> None:
    table = np.ones((BODY.vocab, BODY.hidden), np.uint16)
    copies = {"embed_tokens__weight": table, "lm_head__weight": table}
    skipped = open_drafter(add_tensors(write(tmp_path / "a", DSPARK, "deepspec"), **copies))
    assert (skipped.own_table, skipped.own_head) == (False, False)
    with pytest.raises(ModelError, match=r"no tensor 'lm_head\.weight'"):
        skipped.tensor("lm_head.weight")

    shown = open_drafter(add_tensors(write(tmp_path / "b", DSPARK, "speculators"), **copies))
    assert (shown.own_table, shown.own_head) == (True, True)
    np.testing.assert_array_equal(shown.tensor("lm_head.weight").array, table)


def test_given_a_confidence_head_that_sees_no_token_then_it_is_left_out(tmp_path: Path) -> None:
    def blind(config: dict[str, Any]) -> None:
        config["confidence_head_with_markov"] = False

    directory = change_config(write(tmp_path, CONFIDENT, "deepspec"), blind)
    drafter = open_drafter(
        add_tensors(directory, confidence_head__proj__weight=np.zeros((1, 64), np.uint16))
    )
    assert drafter.spec == DSPARK


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
    "gated": (DSPARK, "deepspec", edited(markov_head_type="gated"),
              "markov_head_type='gated' is not supported; 'vanilla' is"),
    "recurrent": (DSPARK, "speculators", edited(markov_head_type="rnn"), "'rnn' is not supported"),
    "no mask": (DFLASH, "z-lab", nested(mask_token_id=None),
                "mask_token_id is None: without it nobody.*drafter's card"),
    "mask by name": (DFLASH, "z-lab", nested(mask_token_id="<|MASK|>"), "mask_token_id is '<|MASK"),
    "embedding tap": (DSPARK, "deepspec", edited(target_layer_ids=[-1, 1, 2]),
                      "taps the target's embedding, which is not supported"),
    "embedding tap, counted from one": (
        DFLASH, "speculators", edited(aux_hidden_state_layer_ids=[0, 2, 3]), "target's embedding"),
    "tap twice": (DFLASH, "z-lab", nested(target_layer_ids=[1, 1, 2]), "must be different"),
    "taps of words": (DFLASH, "z-lab", nested(target_layer_ids=["1"]), "list of integers"),
    "small vocabulary": (DFLASH, "speculators", edited(draft_vocab_size=100),
                         "draft_vocab_size=100 of 272.*target's whole vocabulary"),
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


def bits(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint16)


WRONG_TENSORS: dict[str, tuple[DrafterSpec, str, dict[str, Any], str]] = {
    "missing": (DFLASH, "z-lab", {"drop": ("hidden_norm.weight", "norm.weight")},
                r"has no tensor 'hidden_norm\.weight' and 1 more.*needs 25 tensors.*have 23"),
    "missing, by its stored name": (EAGLE, "speculators",
                                    {"drop": ("layers.0.mlp.up_proj.weight",)},
                                    r"'layers\.0\.mlp\.up_proj\.weight'"),
    "shape": (DFLASH, "z-lab", {"fc__weight": bits(64, 64)},
              r"'fc\.weight' has shape \[64, 64\], config\.json asks for \[64, 192\]"),
    "type": (DFLASH, "z-lab", {"fc__weight": np.zeros((64, 192), np.int64)},
             "is I64; forerun reads"),
    "convolution": (DFLASH, "z-lab", {"layers__0__mlp_conv__base_kernel": bits(2, 2, 64)},
                    r"'layers\.0\.mlp_conv\.base_kernel'.*has no place.*another kind of drafter"),
    "gate": (DSPARK, "deepspec", {"markov_head__gate_proj__weight": bits(8, 72)}, "has no place"),
    "query norm": (EAGLE, "speculators", {"layers__0__self_attn__q_norm__weight": bits(32)},
                   r"'layers\.0\.self_attn\.q_norm\.weight'.*no place"),
    "own table": (DFLASH, "speculators", {"embed_tokens__weight": bits(10, 64)}, r"\[272, 64\]"),
    "no map": (MAPPED, "eagle3", {"drop": ("d2t",)}, "head of 100 of 272 tokens needs it"),
    "map type": (MAPPED, "eagle3", {"d2t": np.zeros(100, np.float32)}, r"must be I64\[100\]"),
    "map beyond": (MAPPED, "eagle3", {"d2t": np.full(100, 200)},
                   "leads to tokens 200 to 299, the target has 0 to 271"),
    "map twice": (MAPPED, "eagle3", {"d2t": np.where(np.arange(100) == 1, -1, 0)},
                  "two draft ids to one token"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "layout", "change", "sentence"), WRONG_TENSORS.values(), ids=WRONG_TENSORS
)
def test_given_tensors_that_do_not_fit_then_the_file_is_refused(
    tmp_path: Path, spec: DrafterSpec, layout: str, change: dict[str, Any], sentence: str
) -> None:
    directory = write(tmp_path, spec, layout)
    assert open_drafter(add_tensors(directory)).spec == spec
    with pytest.raises(ModelError, match=sentence):
        open_drafter(add_tensors(directory, **change))


def test_given_no_drafter_at_all_then_the_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone is not a directory with a drafter in it"):
        open_drafter(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        open_drafter(tmp_path)


UNSAYABLE: dict[str, tuple[DrafterSpec, str, str]] = {
    "shifted": (SHIFTED, "z-lab", "holds plain DFlash.*write 'deepspec' or 'speculators'"),
    "markov": (DSPARK, "z-lab", "holds plain DFlash"),
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


def test_given_tensors_of_another_spec_then_nothing_is_written(tmp_path: Path) -> None:
    tensors = random_tensors(DFLASH)
    out = tmp_path / "drafter"
    with pytest.raises(ModelError, match=r"without a place \['extra'\]"):
        write_drafter(out, DFLASH, tensors | {"extra": bits(1)}, layout="z-lab")
    rest = {name: one for name, one in tensors.items() if name != "fc.weight"}
    with pytest.raises(ModelError, match=r"missing are \['fc\.weight'\]"):
        write_drafter(out, DFLASH, rest, layout="z-lab")
    with pytest.raises(ModelError, match=r"shape \[1\], its spec asks for \[64, 192\]"):
        write_drafter(out, DFLASH, tensors | {"fc.weight": bits(1)}, layout="z-lab")
    wrong = random_tensors(MAPPED) | {"d2t": np.full(100, 200)}
    with pytest.raises(ModelError, match="leads to tokens"):
        write_drafter(out, MAPPED, wrong, layout="eagle3")
    assert not out.exists()


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
