"""Checkpoints: what is read is what was written, and every bad file is refused as a whole."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from forerun.errors import ModelError
from forerun.models.shards import INDEX_NAME, SINGLE_NAME
from forerun.models.weights import EMBEDDING, HEAD, expected_tensors, open_checkpoint
from forerun.tools.random_model import write_random_model

Write = Callable[..., Path]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def model_dir(tiny_checkpoint_dir: Write, tmp_path: Path) -> Path:
    """A checkpoint of one's own, free to be broken."""
    return Path(shutil.copytree(tiny_checkpoint_dir("qwen3"), tmp_path / "model"))


@pytest.fixture
def sharded_dir(model_dir: Path) -> Path:
    """The same weights in two shards with an index."""
    tensors = load_file(model_dir / SINGLE_NAME)
    weight_map = {name: f"model-{rank % 2 + 1:05}.safetensors" for rank, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, model_dir / file)
    (model_dir / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (model_dir / SINGLE_NAME).unlink()
    return model_dir


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_read_as_written(
    tiny_checkpoint_dir: Write, family: str, tied: bool
) -> None:
    directory = tiny_checkpoint_dir(family, tie_word_embeddings=tied)
    written = load_file(directory / SINGLE_NAME)
    checkpoint = open_checkpoint(directory)
    assert set(checkpoint.names) == set(written)
    assert checkpoint.num_bytes == sum(array.nbytes for array in written.values())
    for name, array in written.items():
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == "F32"
        assert not tensor.array.flags.writeable
        np.testing.assert_array_equal(tensor.float32(), array)


def test_shards_are_read_as_one(sharded_dir: Path, tiny_checkpoint_dir: Write) -> None:
    whole, parts = open_checkpoint(tiny_checkpoint_dir("qwen3")), open_checkpoint(sharded_dir)
    assert whole.names == parts.names
    for name in whole.names:
        np.testing.assert_array_equal(whole.tensor(name).array, parts.tensor(name).array)


def test_half_precision_widens_exactly(model_dir: Path) -> None:
    tensors = load_file(model_dir / SINGLE_NAME)
    save_file({n: t.astype(np.float16) for n, t in tensors.items()}, model_dir / SINGLE_NAME)
    tensor = open_checkpoint(model_dir).tensor(EMBEDDING)
    assert tensor.dtype == "F16"
    expected = tensors[EMBEDDING].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(tensor.float32(), expected)


def test_bfloat16_is_its_upper_half(tmp_path: Path, tiny_checkpoint_dir: Write) -> None:
    config = json.loads((tiny_checkpoint_dir("qwen3") / "config.json").read_text())
    spec = write_random_model(config, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensor = checkpoint.tensor(EMBEDDING)
    assert (tensor.dtype, tensor.array.dtype) == ("BF16", np.uint16)
    assert tensor.array.shape == (spec.vocab, spec.hidden)
    bits = tensor.float32().view(np.uint32)
    np.testing.assert_array_equal(bits >> 16, tensor.array)
    assert not np.any(bits & 0xFFFF)
    assert checkpoint.num_bytes == 2 * spec.num_parameters


def test_expected_tensors_are_all_the_parameters(tiny_checkpoint_dir: Write) -> None:
    spec = open_checkpoint(tiny_checkpoint_dir("qwen2", tie_word_embeddings=False)).spec
    sizes = [int(np.prod(shape)) for shape in expected_tensors(spec).values()]
    assert sum(sizes) == spec.num_parameters


def test_data_at_an_odd_byte_is_read(model_dir: Path) -> None:
    path = model_dir / SINGLE_NAME
    header, data = read_raw(path)
    text = json.dumps(header).encode()
    text += b" " * (1 + len(text) % 2)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert (8 + len(text)) % 2 == 1
    assert open_checkpoint(model_dir).tensor(EMBEDDING).array.flags.aligned


def test_a_tied_head_that_equals_the_embedding_is_left_out(model_dir: Path) -> None:
    rewrite(model_dir, lambda tensors: tensors | {HEAD: tensors[EMBEDDING]})
    assert HEAD not in open_checkpoint(model_dir).names


def test_a_tied_head_that_differs_is_refused(model_dir: Path) -> None:
    rewrite(model_dir, lambda tensors: tensors | {HEAD: tensors[EMBEDDING] + 1})
    with pytest.raises(ModelError, match=r"lm_head.*differs.*tie_word_embeddings"):
        open_checkpoint(model_dir)


def test_an_untied_model_without_a_head_is_refused(
    tiny_checkpoint_dir: Write, tmp_path: Path
) -> None:
    source = tiny_checkpoint_dir("qwen3", tie_word_embeddings=False)
    directory = Path(shutil.copytree(source, tmp_path / "model"))
    rewrite(directory, lambda tensors: without(tensors, HEAD))
    with pytest.raises(ModelError, match=r"lm_head\.weight.*tie_word_embeddings=false"):
        open_checkpoint(directory)


REFUSED = [
    pytest.param(
        lambda tensors: without(tensors, Q_PROJ),
        rf"no tensor '{Q_PROJ}'.*needs 24 tensors, the files have 23",
        id="missing",
    ),
    pytest.param(
        lambda tensors: tensors | {Q_PROJ: np.zeros((128, 63), np.float32)},
        rf"{Q_PROJ}' has shape \[128, 63\], config.json asks for \[128, 64\]",
        id="shape",
    ),
    pytest.param(
        lambda tensors: tensors | {Q_PROJ: tensors[Q_PROJ].astype(np.float64)},
        rf"{Q_PROJ}' is F64; forerun reads BF16, F16, F32",
        id="type",
    ),
    pytest.param(
        lambda tensors: tensors | {"model.layers.2.self_attn.q_proj.weight": tensors[Q_PROJ]},
        r"model\.layers\.2\..* has no place in a qwen3 model of 2 layers",
        id="unknown",
    ),
    pytest.param(
        lambda tensors: tensors | {"model.layers.0.self_attn.o_proj.bias": np.zeros(64, "f4")},
        r"o_proj\.bias.*would change the answers",
        id="bias",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_tensors_that_do_not_fit_the_config(
    model_dir: Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    rewrite(model_dir, change)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(model_dir)


def test_a_rotary_table_is_no_weight(model_dir: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(model_dir, lambda tensors: tensors | {name: np.ones(16, np.float32)})
    assert name not in open_checkpoint(model_dir).names


@pytest.mark.parametrize("num_missing", [1, 1000])
def test_a_truncated_file_is_refused_with_both_sizes(model_dir: Path, num_missing: int) -> None:
    path = model_dir / SINGLE_NAME
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-num_missing])
    with pytest.raises(
        ModelError, match=rf"truncated.*{size} bytes, the file has {size - num_missing}"
    ):
        open_checkpoint(model_dir)


@pytest.mark.parametrize(
    "content", [b"", b"\x01", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"x" * 4000]
)
def test_no_safetensors_file_at_all(model_dir: Path, content: bytes) -> None:
    (model_dir / SINGLE_NAME).write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        open_checkpoint(model_dir)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 100_000, "unreadable safetensors header"),
        (b'{"a": {}, "a": {}}', "a key appears twice"),
        (b"\xff\xfe{}", "unreadable safetensors header"),
    ],
)
def test_a_header_that_is_no_json(model_dir: Path, header: bytes, message: str) -> None:
    (model_dir / SINGLE_NAME).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(model_dir)


def _overlap(header: dict[str, Any]) -> None:
    header[Q_PROJ]["data_offsets"] = header["model.layers.0.self_attn.q_proj.weight"][
        "data_offsets"
    ]


def _swap_sizes(header: dict[str, Any]) -> None:
    header[Q_PROJ]["shape"] = [1, 1]


def _no_type(header: dict[str, Any]) -> None:
    del header[Q_PROJ]["dtype"]


def _odd_type(header: dict[str, Any]) -> None:
    header[Q_PROJ]["dtype"] = "F33"


def _negative(header: dict[str, Any]) -> None:
    header[Q_PROJ]["shape"] = [-1, -8192]


def _list(header: dict[str, Any]) -> None:
    header[Q_PROJ] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_overlap, r"starts at byte \d+, expected \d+: it overlaps"),
        (_swap_sizes, r"F32\[1, 1\] = 4 bytes, but its data_offsets are"),
        (_no_type, "no valid dtype"),
        (_odd_type, "unknown dtype 'F33'"),
        (_negative, "no valid dtype, shape"),
        (_list, "no valid dtype"),
    ],
)
def test_a_header_that_contradicts_itself(
    model_dir: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = model_dir / SINGLE_NAME
    header, data = read_raw(path)
    damage(header)
    write_raw(path, header, data)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(model_dir)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_header_is_refused_and_never_anything_else(
    tiny_checkpoint_dir: Write, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = tiny_checkpoint_dir("qwen3")
    content = bytearray((source / SINGLE_NAME).read_bytes())
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    directory = tmp_path_factory.mktemp("damaged")
    shutil.copy(source / "config.json", directory)
    (directory / SINGLE_NAME).write_bytes(content)
    try:
        checkpoint = open_checkpoint(directory)
    except ModelError:
        return
    for name in checkpoint.names:
        checkpoint.tensor(name).float32()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.pt"])
def test_pickle_weights_are_refused_with_the_way_out(model_dir: Path, name: str) -> None:
    (model_dir / SINGLE_NAME).rename(model_dir / name)
    with pytest.raises(ModelError, match=rf"only pickle weights \({name}\).*save_pretrained"):
        open_checkpoint(model_dir)


def test_other_formats_are_named(model_dir: Path) -> None:
    (model_dir / SINGLE_NAME).rename(model_dir / "model.gguf")
    with pytest.raises(ModelError, match="GGUF"):
        open_checkpoint(model_dir)
    (model_dir / "model.gguf").unlink()
    with pytest.raises(ModelError, match=r"has no weights: expected model\.safetensors"):
        open_checkpoint(model_dir)


def test_a_missing_shard_is_named(sharded_dir: Path) -> None:
    (sharded_dir / "model-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lists model-00002\.safetensors, which is not there"):
        open_checkpoint(sharded_dir)


def test_shards_without_an_index_are_refused(sharded_dir: Path) -> None:
    (sharded_dir / INDEX_NAME).unlink()
    with pytest.raises(ModelError, match=r"2 \.safetensors files but no model\.safetensors\.index"):
        open_checkpoint(sharded_dir)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../secret.safetensors"}}',
        '{"weight_map": {"a": "model-00001.safetensors"}}',
    ],
)
def test_a_broken_index_is_refused(sharded_dir: Path, index: str) -> None:
    (sharded_dir / INDEX_NAME).write_text(index)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(sharded_dir)


def test_a_tensor_in_two_shards_is_refused(sharded_dir: Path) -> None:
    first, second = (sharded_dir / f"model-0000{n}.safetensors" for n in (1, 2))
    tensors = load_file(first)
    save_file(load_file(second) | dict(list(tensors.items())[:1]), second)
    with pytest.raises(ModelError, match="is in both"):
        open_checkpoint(sharded_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*not supported; known are"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, found None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, found 0"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"vocab_size": 1000}, r"has shape \[272, 64\], config.json asks for \[1000, 64\]"),
        ({"quantization_config": {"bits": 4}}, "quantized checkpoints are not supported"),
    ],
)
def test_a_config_that_is_not_this_model(
    model_dir: Path, changes: dict[str, Any], message: str
) -> None:
    path = model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(model_dir)


def test_no_directory_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a directory"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        open_checkpoint(tmp_path)


def rewrite(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = directory / SINGLE_NAME
    save_file(change(load_file(path)), path)


def without(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {other: tensor for other, tensor in tensors.items() if other != name}


def read_raw(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
