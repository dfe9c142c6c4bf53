"""A drafter's directory, whatever its layout: opened under one set of names, and written.

Knows which tensors a `DrafterSpec` needs, in what shape, and what each layout calls them. Must not
know what a forward pass does with them. As with models, all of a file is checked before the first
tensor is handed out, and data are mapped, never read twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import ModelError
from forerun.models.drafter_configs import config_of
from forerun.models.drafter_layouts import DEEPSPEC, SPECULATORS, SPECULATORS_EAGLE3, read_layout
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec, MarkovKind
from forerun.models.shards import (
    READABLE,
    SINGLE_NAME,
    TensorEntry,
    map_file,
    read_entries,
    write_tensors,
)
from forerun.models.spec import ModelSpec, read_json
from forerun.models.weights import Checkpoint, WeightTensor

TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
TOKEN_OFFSETS, IS_DRAFTED = "d2t", "t2d"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Copies of the target's and what follows from others: present in some files, never needed.
_SPARE = (TABLE, HEAD, TOKEN_OFFSETS, IS_DRAFTED, "verifier_lm_head.weight", "verifier_norm.weight")
_LAYER, _STORED_LAYER = "midlayer.", "layers.0."


@dataclass(frozen=True, slots=True, eq=False)
class DrafterCheckpoint:
    """A drafter's weights, whole and checked, under the names of `drafter_tensors`.

    `token_map`: `[draft vocabulary]` int64, the target's id of each draft id; None where they are
    the same. `own_table` and `own_head`: whether the files hold `embed_tokens.weight` and
    `lm_head.weight` that `tensor` gives too; a block drafter is run with the target's all the same,
    but for a head with a vocabulary of its own.
    """

    directory: Path
    spec: DrafterSpec
    layout: str
    stored: Checkpoint
    token_map: NDArray[np.int64] | None
    own_table: bool
    own_head: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that is needed, and the drafter's own table and head where it has them."""
        return self.stored.names

    @property
    def num_bytes(self) -> int:
        """Bytes of these tensors as stored."""
        return self.stored.num_bytes

    def tensor(self, name: str) -> WeightTensor:
        """The tensor of that name, as a view of the mapped file.

        Raises:
            ModelError: no such tensor.
        """
        return self.stored.tensor(name)

    def drop_pages(self) -> None:
        """Give back the memory of everything read so far; it is read from disk when asked again."""
        self.stored.drop_pages()


def drafter_tensors(spec: DrafterSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a drafter needs, but for the map of its tokens."""
    hidden, width = spec.body.hidden, spec.feature_width
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (hidden, width)}
    if isinstance(spec, EagleSpec):
        shapes |= _layer_tensors(spec.body, _LAYER, 2 * hidden)
        shapes[f"{_LAYER}hidden_norm.weight"] = (hidden,)
        return shapes | {"norm.weight": (hidden,), HEAD: (spec.body.vocab, hidden)}
    shapes["hidden_norm.weight"] = (hidden,)
    for layer in range(spec.body.num_layers):
        shapes |= _layer_tensors(spec.body, f"layers.{layer}.", hidden)
    own_head = {HEAD: (spec.draft_vocab, hidden)} if spec.draft_vocab else {}
    return shapes | {"norm.weight": (hidden,)} | own_head | _head_tensors(spec)


def _layer_tensors(body: ModelSpec, prefix: str, num_inputs: int) -> dict[str, tuple[int, ...]]:
    hidden, queries = body.hidden, body.num_heads * body.head_dim
    keys = body.num_kv_heads * body.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, num_inputs),
        "self_attn.k_proj.weight": (keys, num_inputs),
        "self_attn.v_proj.weight": (keys, num_inputs),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (body.ffn, hidden),
        "mlp.up_proj.weight": (body.ffn, hidden),
        "mlp.down_proj.weight": (hidden, body.ffn),
    }
    if body.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (body.head_dim,)
    return {prefix + name: shape for name, shape in shapes.items()}


def mixing_name(spec: BlockSpec) -> str | None:
    """What the matrix of a Markov head that hears more than a token is called; None without one."""
    if not spec.markov_inputs:
        return None
    return f"markov_head.{'gate' if spec.markov_kind is MarkovKind.GATED else 'joint'}_proj"


def _head_tensors(spec: BlockSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if spec.markov_rank:
        tables = ((1, spec.target_vocab), (2, spec.head_vocab))
        shapes = {f"markov_head.markov_w{at}.weight": (num, spec.markov_rank) for at, num in tables}
    mixing = mixing_name(spec)
    if mixing is not None:
        shapes[f"{mixing}.weight"] = (spec.markov_outputs, spec.markov_inputs)
        shapes[f"{mixing}.bias"] = (spec.markov_outputs,)
    if spec.has_confidence:
        shapes["confidence_head.proj.weight"] = (1, spec.body.hidden + spec.markov_rank)
        shapes["confidence_head.proj.bias"] = (1,)
    return shapes


def open_drafter(directory: Path, target: ModelSpec | None = None) -> DrafterCheckpoint:
    """Open a drafter's directory of any layout that is known, after checking all of it.

    `target` fills in what some files leave to it: which of its layers are tapped. How many it has,
    `spec.num_target_layers`, is 0 where the file does not say. Whether they fit is not asked here.

    Raises:
        ModelError: no drafter, or one of a kind or with a tensor that is not supported; a missing
            key or tensor, one of another shape or type; a file that is not whole.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory with a drafter in it")
    path = directory / "config.json"
    layout, spec = read_layout(read_json(path), str(path), target)
    found = {_canonical(layout, name): one for name, one in read_entries(directory).items()}
    expected = drafter_tensors(spec)
    kept = expected | _own_tensors(spec, layout, found)
    _refuse_missing(directory, layout, found, expected)
    for name, shape in kept.items():
        _refuse_mismatched(found[name], name, shape)
    _refuse_unknown(found, expected, layout)
    buffers = {file: map_file(file) for file in {entry.file for entry in found.values()}}
    stored = Checkpoint(directory, spec.body, {name: found[name] for name in kept}, buffers)
    is_mapped = spec.has_token_map or isinstance(spec, EagleSpec)
    token_map = _token_map(spec, found, stored) if is_mapped else None
    if isinstance(spec, EagleSpec):  # a map may also stand between vocabularies of one size
        spec = replace(spec, has_token_map=token_map is not None)
    return DrafterCheckpoint(
        directory, spec, layout, stored, token_map, own_table=TABLE in kept, own_head=HEAD in kept
    )


def write_drafter(
    directory: Path,
    spec: DrafterSpec,
    tensors: Mapping[str, NDArray[Any]],
    *,
    layout: str,
    tokenizer_from: Path | None = None,
    verifier: str | None = None,
) -> None:
    """Write a drafter so that `open_drafter` gives back its spec and tensors.

    `tensors` has the names of `drafter_tensors`, and `d2t` (int64 offsets) where there is a token
    map; uint16 is taken for the bits of bf16. For the layout of DeepSpec it may have the target's
    table and head too, which its readers elsewhere may insist on. `tokenizer_from` is a directory
    whose tokenizer is copied, `verifier` what other engines are told the target is called. Stop ids
    and `bos_id` of the body are the target's and are not kept.

    Raises:
        ModelError: the layout cannot say this drafter; a tensor is missing, of another shape, or
            has no place.
    """
    config = config_of(spec, layout, verifier)
    expected = drafter_tensors(spec)
    if layout == DEEPSPEC and TABLE in tensors:
        expected |= dict.fromkeys((TABLE, HEAD), (spec.body.vocab, spec.body.hidden))
    offsets = {TOKEN_OFFSETS: (spec.head_vocab,)} if spec.has_token_map else {}
    _refuse_unfit(tensors, expected | offsets)
    written = {name: np.asarray(tensors[name]) for name in expected}
    if spec.has_token_map:
        written |= _map_tensors(tensors[TOKEN_OFFSETS], spec, str(directory))
    if isinstance(spec, EagleSpec) and layout == SPECULATORS:
        layout = SPECULATORS_EAGLE3
    directory.mkdir(parents=True, exist_ok=True)
    stored = {_stored(layout, name): array for name, array in written.items()}
    write_tensors(directory / SINGLE_NAME, stored)
    if tokenizer_from is not None:
        _copy_tokenizer(tokenizer_from, directory)
    text = json.dumps({key: value for key, value in config.items() if value is not None}, indent=2)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


def _map_tensors(offsets: NDArray[Any], spec: DrafterSpec, where: str) -> dict[str, NDArray[Any]]:
    """The token map, and as other engines want it too: which of the target's tokens it has."""
    is_drafted = np.zeros(spec.target_vocab, np.bool_)
    is_drafted[_targets(np.asarray(offsets), spec, where)] = True
    return {TOKEN_OFFSETS: np.asarray(offsets, np.int64), IS_DRAFTED: is_drafted}


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for file in TOKENIZER_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, directory / file)


def _canonical(layout: str, name: str) -> str:
    renamed = layout == SPECULATORS_EAGLE3 and name.startswith(_STORED_LAYER)
    return _LAYER + name.removeprefix(_STORED_LAYER) if renamed else name


def _stored(layout: str, name: str) -> str:
    renamed = layout == SPECULATORS_EAGLE3 and name.startswith(_LAYER)
    return _STORED_LAYER + name.removeprefix(_LAYER) if renamed else name


def _own_tensors(
    spec: DrafterSpec, layout: str, found: Mapping[str, TensorEntry]
) -> dict[str, tuple[int, ...]]:
    """The drafter's own table and head; DeepSpec's, frozen copies of the target's, are skipped."""
    if layout == DEEPSPEC:
        return {}
    hidden = spec.body.hidden
    own = {TABLE: (spec.target_vocab, hidden), HEAD: (spec.head_vocab, hidden)}
    return {name: shape for name, shape in own.items() if name in found}


def _refuse_missing(
    directory: Path,
    layout: str,
    found: Mapping[str, TensorEntry],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{directory} has no tensor {_stored(layout, missing[0])!r}{more}: a drafter of the"
            f" layout {layout!r} as config.json describes it needs {len(expected)} tensors, the"
            f" files have {len(found)}; take it whole from where it came from"
        )


def _refuse_mismatched(entry: TensorEntry, name: str, shape: tuple[int, ...]) -> None:
    if entry.shape != shape:
        raise ModelError(
            f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}, config.json asks for"
            f" {list(shape)}: the two do not belong together"
        )
    if entry.dtype not in READABLE:
        raise ModelError(
            f"{entry.file}: tensor {name!r} is {entry.dtype}; forerun reads"
            f" {', '.join(READABLE)}: use the bf16, f16 or f32 checkpoint"
        )


def _refuse_unknown(
    found: Mapping[str, TensorEntry], expected: Mapping[str, tuple[int, ...]], layout: str
) -> None:
    for name, entry in found.items():
        spare = name in _SPARE or name.endswith("rotary_emb.inv_freq")
        # A confidence head that is not described scales lengths only, never what is drafted.
        if name not in expected and not spare and not name.startswith("confidence_head.proj."):
            raise ModelError(
                f"{entry.file}: tensor {_stored(layout, name)!r} {list(entry.shape)} has no place"
                f" in a drafter of the layout {layout!r}: leaving it out would change what is"
                " drafted, so this is another kind of drafter, which is not supported"
            )


def _token_map(
    spec: DrafterSpec, found: Mapping[str, TensorEntry], stored: Checkpoint
) -> NDArray[np.int64] | None:
    entry = found.get(TOKEN_OFFSETS)
    if entry is None:
        if not spec.has_token_map:
            return None
        raise ModelError(
            f"{stored.directory} has no tensor {TOKEN_OFFSETS!r}: a head of {spec.head_vocab} of"
            f" {spec.target_vocab} tokens needs it to say which; take the drafter whole"
        )
    if entry.dtype != "I64" or entry.shape != (spec.head_vocab,):
        raise ModelError(
            f"{entry.file}: tensor {TOKEN_OFFSETS!r} is {entry.dtype}{list(entry.shape)}, must be"
            f" I64[{spec.head_vocab}]: an offset for each token of the head"
        )
    targets = _targets(entry.map(stored.buffers[entry.file]), spec, str(entry.file))
    is_same = not spec.has_token_map and np.array_equal(targets, np.arange(spec.head_vocab))
    return None if is_same else targets


def _targets(offsets: NDArray[Any], spec: DrafterSpec, where: str) -> NDArray[np.int64]:
    """The target's id of each draft id; each must be one of its, and none twice."""
    targets: NDArray[np.int64] = np.arange(spec.head_vocab, dtype=np.int64) + offsets
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= spec.target_vocab:
        raise ModelError(
            f"{where}: {TOKEN_OFFSETS!r} leads to tokens {low} to {high}, the target has 0 to"
            f" {spec.target_vocab - 1}: the map is of another vocabulary"
        )
    if np.unique(targets).size != targets.size:
        raise ModelError(
            f"{where}: {TOKEN_OFFSETS!r} leads two draft ids to one token, which would count it"
            " twice: the map is damaged"
        )
    return targets


def _refuse_unfit(
    tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        raise ModelError(
            f"a drafter of this spec has {len(expected)} tensors; missing are {missing[:3]},"
            f" without a place {unknown[:3]}: give those of `drafter_tensors(spec)`"
        )
    for name, shape in expected.items():
        if tuple(np.shape(tensors[name])) != shape:
            raise ModelError(
                f"tensor {name!r} has shape {list(np.shape(tensors[name]))}, its spec asks for"
                f" {list(shape)}"
            )
