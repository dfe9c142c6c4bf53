"""Drafters' files: what is written in a layout is what is read; what is not known is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafter_cases import (
    BODY,
    CONFIDENT,
    DFLASH,
    DSPARK,
    EAGLE,
    FEW,
    FEW_HEARD,
    GATED,
    MAPPED,
    RECURRENT,
    ROUND_TRIPS,
    change_config,
    random_tensors,
    write,
)
from safetensors import safe_open

from forerun.errors import ModelError
from forerun.models.drafter_files import (
    DrafterCheckpoint,
    drafter_tensors,
    open_drafter,
    write_drafter,
)
from forerun.models.drafter_layouts import LAYOUTS
from forerun.models.drafter_match import compare
from forerun.models.drafter_spec import DrafterSpec
from forerun.models.shards import SINGLE_NAME, write_tensors


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


def test_given_the_targets_table_and_head_then_files_of_deepspec_have_them(tmp_path: Path) -> None:
    table = np.ones((BODY.vocab, BODY.hidden), np.uint16)
    copies = {"embed_tokens.weight": table, "lm_head.weight": table + 1}
    tensors = random_tensors(DSPARK)
    write_drafter(tmp_path / "a", DSPARK, tensors | copies, layout="deepspec")

    stored = stored_tensors(tmp_path / "a" / SINGLE_NAME)
    assert set(stored) == set(drafter_tensors(DSPARK)) | set(copies)
    np.testing.assert_array_equal(stored["lm_head.weight"], table + 1)
    assert not open_drafter(tmp_path / "a").own_head
    half = tensors | {"embed_tokens.weight": table}
    with pytest.raises(ModelError, match=r"missing are \['lm_head\.weight'\]"):
        write_drafter(tmp_path / "b", DSPARK, half, layout="deepspec")
    with pytest.raises(ModelError, match=r"without a place \['embed_tokens\.weight'"):
        write_drafter(tmp_path / "b", DFLASH, random_tensors(DFLASH) | copies, layout="z-lab")


def test_given_a_confidence_head_that_sees_no_token_then_it_is_left_out(tmp_path: Path) -> None:
    def blind(config: dict[str, Any]) -> None:
        config["confidence_head_with_markov"] = False

    directory = change_config(write(tmp_path, CONFIDENT, "deepspec"), blind)
    drafter = open_drafter(
        add_tensors(directory, confidence_head__proj__weight=np.zeros((1, 64), np.uint16))
    )
    assert drafter.spec == DSPARK


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
    "joint of a gated one": (GATED, "deepspec", {"markov_head__joint_proj__bias": bits(24)},
                             r"'markov_head\.joint_proj\.bias'.*has no place"),
    "no gate": (GATED, "speculators", {"drop": ("markov_head.gate_proj.weight",)},
                r"has no tensor 'markov_head\.gate_proj\.weight': a drafter.*needs 29"),
    "no shift of a gate": (GATED, "deepspec", {"drop": ("markov_head.gate_proj.bias",)},
                           r"has no tensor 'markov_head\.gate_proj\.bias'"),
    "gate without states": (GATED, "deepspec", {"markov_head__gate_proj__weight": bits(8, 8)},
                            r"has shape \[8, 8\], config\.json asks for \[8, 72\]"),
    "no joint": (RECURRENT, "deepspec",
                 {"drop": ("markov_head.joint_proj.weight", "markov_head.joint_proj.bias")},
                 r"has no tensor 'markov_head\.joint_proj\.weight' and 1 more"),
    "joint without a state": (RECURRENT, "speculators",
                              {"markov_head__joint_proj__weight": bits(24, 72)},
                              r"has shape \[24, 72\], config\.json asks for \[24, 80\]"),
    "joint of two parts": (RECURRENT, "deepspec", {"markov_head__joint_proj__bias": bits(16)},
                           r"has shape \[16\], config\.json asks for \[24\]"),
    "query norm": (EAGLE, "speculators", {"layers__0__self_attn__q_norm__weight": bits(32)},
                   r"'layers\.0\.self_attn\.q_norm\.weight'.*no place"),
    "own table": (DFLASH, "speculators", {"embed_tokens__weight": bits(10, 64)}, r"\[272, 64\]"),
    "no map": (MAPPED, "eagle3", {"drop": ("d2t",)}, "head of 100 of 272 tokens needs it"),
    "no map of a block": (FEW, "speculators", {"drop": ("d2t",)}, "head of 100 of 272 tokens"),
    "no head of a block": (FEW, "speculators", {"drop": ("lm_head.weight",)},
                           r"has no tensor 'lm_head\.weight'"),
    "whole head of a block": (FEW, "speculators", {"lm_head__weight": bits(272, 64)},
                              r"has shape \[272, 64\], config\.json asks for \[100, 64\]"),
    "markov read by draft ids": (FEW_HEARD, "speculators",
                                 {"markov_head__markov_w1__weight": bits(100, 8)},
                                 r"has shape \[100, 8\], config\.json asks for \[272, 8\]"),
    "markov for every token": (FEW_HEARD, "speculators",
                               {"markov_head__markov_w2__weight": bits(272, 8)},
                               r"has shape \[272, 8\], config\.json asks for \[100, 8\]"),
    "map of a block beyond": (FEW, "speculators", {"d2t": np.full(100, 200)},
                              "leads to tokens 200 to 299, the target has 0 to 271"),
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


@pytest.mark.parametrize("layout", ["z-lab", "deepspec"])
def test_given_few_tokens_then_only_the_layout_that_can_say_so_is_written(
    tmp_path: Path, layout: str
) -> None:
    spec = FEW if layout == "z-lab" else replace(FEW_HEARD, has_confidence=False)
    with pytest.raises(ModelError, match="knows 100 of 272 tokens: write 'speculators'"):
        write(tmp_path / "drafter", spec, layout)
    written = open_drafter(write(tmp_path / "drafter", spec, "speculators"))
    target = replace(BODY, num_layers=6, family="llama")
    found = {one.name: one for one in compare(written, target)}
    assert found["vocabulary"].sentence == "272 tokens, of which it drafts 100"
    assert {one.state for one in found.values()} <= {"passed", "warning"}
