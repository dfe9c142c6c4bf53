"""Enlarge a model and its drafters without changing what they compute, for benchmarks of speed.

    python benchmarks/inflate.py --parameters 260M --ratio matched --out /tmp/code-260M
    python benchmarks/inflate.py --parameters 8B --ratio shipped --out DIR --model DIR

The result is an ordinary checkpoint (bf16 safetensors) with the source's bits in every logit
(`forerun.tools.inflation` says why, `tests/native/test_inflate.py` proves it). `--ratio shipped`
copies `lm`, and of drafters on features widens only what reads the target (`inflate_drafters.py`),
which flatters them; `matched` enlarges each to its least share of the target's bytes.
`inflation.json` beside the weights records what was done. An enlarged model must never be
measured with early exit: the layers behind the source's own are identities.

Memory stays at some megabytes whatever the size. Until the end all is under `OUT.partial`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from inflate_drafters import FeatureEnlargement, feature_enlargement
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from forerun.errors import CapacityError, ForerunError, OptionError
from forerun.models.resolve import resolve_model
from forerun.models.shards import INDEX_NAME, SINGLE_NAME
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.weights import Checkpoint, expected_tensors, open_checkpoint
from forerun.tools.drafter_inflation import KINDS, Targets
from forerun.tools.inflation import (
    LEAST_RATIO,
    SIZES,
    Size,
    drafter_spec,
    grown_rows,
    require_known,
    spec_bytes,
    target_spec,
)
from forerun.tools.random_model import bf16_header

MAX_SHARD_BYTES = 4_000_000_000
RECORD_NAME = "inflation.json"
# What goes with the weights as it is; cards and curves describe the small model and stay behind.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, slots=True)
class Enlargement:
    """A checkpoint and the shape it takes; its own shape means a plain copy."""

    source: Checkpoint
    grown: ModelSpec

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors in the end."""
        return self.source.num_bytes if self.is_copy else spec_bytes(self.grown)

    @property
    def is_copy(self) -> bool:
        """Whether nothing is enlarged."""
        return self.grown == self.source.spec

    @property
    def num_parameters(self) -> int:
        """All its weights, a tied table once."""
        return self.grown.num_parameters

    @property
    def stored(self) -> Checkpoint:
        """The files it comes from."""
        return self.source

    @property
    def shapes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Its shape before and after."""
        return _shape(self.source.spec), _shape(self.grown)

    @property
    def done(self) -> str:
        """In a record, what was made of it."""
        return "copied" if self.is_copy else "enlarged"


AnyEnlargement: TypeAlias = Enlargement | FeatureEnlargement


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written: a target, and its drafters by kind."""

    target: Enlargement
    drafters: Mapping[str, AnyEnlargement]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return self.target.num_bytes + sum(one.num_bytes for one in self.drafters.values())


def main(arguments: list[str] | None = None) -> int:
    """0: written. 2: refused, with a sentence. 130: interrupted. Nothing half-done stays behind."""
    options = _parser().parse_args(arguments)
    try:
        plan = make_plan(resolve_model(options.model), SIZES[options.parameters], options.ratio)
        asked = {key: getattr(options, key) for key in ("parameters", "ratio", "seed", "model")}
        write(plan, options.out, asked)
    except ForerunError as error:
        print(f"inflate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("inflate: interrupted; nothing was kept", file=sys.stderr)
        return 130
    print(json.dumps({"out": str(options.out), **_record(plan, asked)}))
    return 0


def make_plan(directory: Path, size: Size, ratio: str) -> Plan:
    """Decide every shape, and refuse what cannot keep its bits, before a byte is written."""
    source = open_checkpoint(directory)
    target = Enlargement(source, target_spec(source.spec, size))
    drafters: dict[str, AnyEnlargement] = {}
    for path in sorted(path for path in (directory / "drafters").glob("*") if path.is_dir()):
        kind = path.name
        require_known(kind)
        if kind in KINDS:
            between = Targets(source.spec, target.grown)
            drafters[kind] = feature_enlargement(path, between, kind, ratio, target.num_bytes)
            continue
        drafter = open_checkpoint(path)
        grown = drafter.spec
        if ratio == "matched":
            grown = drafter_spec(drafter.spec, kind, size, target.num_bytes)
        drafters[kind] = Enlargement(drafter, grown)
    return Plan(target, drafters)


def write(
    plan: Plan, out: Path, asked: Mapping[str, Any], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write target, drafters and record to `out`, which appears whole or not at all.

    Raises:
        OptionError: `out` exists. CapacityError: the disk has no room.
    """
    if out.exists():
        raise OptionError(f"{out} exists: an enlarged model is written to a new directory")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        _require_room(plan, partial)
        with _progress() as progress:
            task = progress.add_task("", total=plan.num_bytes)
            for directory, one in _places(plan, partial):
                for num_bytes in _written(one, directory, asked["seed"], max_shard_bytes):
                    progress.advance(task, num_bytes)
                if one.is_copy:
                    continue
                _write_json(directory / RECORD_NAME, {"forerun_inflated": True})
        _write_json(partial / RECORD_NAME, _record(plan, asked))
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _written(
    one: AnyEnlargement, directory: Path, seed: int, max_shard_bytes: int
) -> Iterator[int]:
    if isinstance(one, FeatureEnlargement):
        return one.write(directory, seed)
    return _write_one(one, directory, seed, max_shard_bytes)


def _places(plan: Plan, root: Path) -> Iterator[tuple[Path, AnyEnlargement]]:
    yield root, plan.target
    for kind, drafter in plan.drafters.items():
        yield root / "drafters" / kind, drafter


def write_one(one: Enlargement, directory: Path) -> None:
    """One checkpoint by itself, as in `write`."""
    for _ in _write_one(one, directory, 0, MAX_SHARD_BYTES):
        pass


def _write_one(one: Enlargement, directory: Path, seed: int, max_shard_bytes: int) -> Iterator[int]:
    """Writes one checkpoint; yields how many bytes went out, as they go."""
    origin = one.source.directory
    if one.is_copy:
        ignored = shutil.ignore_patterns("drafters", ".*")
        shutil.copytree(origin, directory, ignore=ignored, dirs_exist_ok=True)
        yield one.num_bytes
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, directory / name)
    config = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    _write_json(directory / "config.json", grown_config(config, one.grown))
    yield from _write_tensors(one, directory, seed, max_shard_bytes)
    # What is read back is what was meant: names, shapes and sizes are checked in full.
    assert open_checkpoint(directory).spec == one.grown == read_spec(directory)


def _write_tensors(
    one: Enlargement, directory: Path, seed: int, max_shard_bytes: int
) -> Iterator[int]:
    shapes = expected_tensors(one.grown)
    files = _shards(shapes, max_shard_bytes)
    for file, names in files.items():
        with (directory / file).open("wb") as stream:
            stream.write(bf16_header({name: shapes[name] for name in names}))
            for name in names:
                for rows in grown_rows(one.source, one.grown, name, seed):
                    stream.write(rows.data)
                    yield rows.nbytes
                one.source.drop_pages()
    if len(files) > 1:
        _write_json(directory / INDEX_NAME, _index(files, one.num_bytes))


def _shards(shapes: Mapping[str, tuple[int, ...]], max_bytes: int) -> dict[str, list[str]]:
    """Which file has which tensors, in order; a tensor is never cut."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        num_bytes = 2 * math.prod(shape)
        if groups[-1] and used + num_bytes > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += num_bytes
    if len(groups) == 1:
        return {SINGLE_NAME: groups[0]}
    named = (f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1))
    return dict(zip(named, groups, strict=True))


def _index(files: Mapping[str, list[str]], num_bytes: int) -> dict[str, Any]:
    weight_map = {name: file for file, names in files.items() for name in names}
    return {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}


def grown_config(config: Mapping[str, Any], grown: ModelSpec) -> dict[str, Any]:
    """The source's `config.json` in the new shape; whatever else it says stays."""
    changed = {
        **config,
        "hidden_size": grown.hidden,
        "intermediate_size": grown.ffn,
        "num_hidden_layers": grown.num_layers,
        "num_attention_heads": grown.num_heads,
        "num_key_value_heads": grown.num_kv_heads,
        "head_dim": grown.head_dim,
    }
    if "max_window_layers" in config:
        changed["max_window_layers"] = grown.num_layers
    if config.get("layer_types"):
        types = list(config["layer_types"])
        changed["layer_types"] = types + types[-1:] * (grown.num_layers - len(types))
    return changed


def _record(plan: Plan, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What `inflation.json` says: enough to know the files and to make them again."""
    num_layers = plan.target.source.spec.num_layers
    return {
        "forerun_inflated": True,
        "early_exit": f"forbidden: all layers from {num_layers} on are identities",
        **asked,
        **_description(plan.target),
        "drafters": {
            kind: {
                **_description(one),
                "byte_ratio": one.num_bytes / plan.target.num_bytes,
                "least_matched_ratio": str(LEAST_RATIO[kind]),
            }
            for kind, one in plan.drafters.items()
        },
    }


def _description(one: AnyEnlargement) -> dict[str, Any]:
    before, after = one.shapes
    return {
        "is_copy": one.is_copy,
        "done": one.done,
        "num_parameters": one.num_parameters,
        "num_bytes": one.num_bytes,
        "shape": after,
        "source_shape": before,
        "source_sha256": {path.name: _sha256(path) for path in sorted(one.stored.buffers)},
    }


def _shape(spec: ModelSpec) -> dict[str, int]:
    names = ("hidden", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn", "vocab")
    return {name: value for name, value in asdict(spec).items() if name in names}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_room(plan: Plan, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if plan.num_bytes > free:
        raise CapacityError(
            f"the enlarged model takes {plan.num_bytes:,} bytes, the disk of {directory.parent} has"
            f" {free:,} free: choose another --out or a smaller size"
        )


def _progress() -> Progress:
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", choices=SIZES, required=True)
    parser.add_argument("--ratio", choices=("shipped", "matched"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a directory that does not exist")
    parser.add_argument("--model", default="forerun-code", help="what to enlarge")
    parser.add_argument("--seed", type=int, default=0, help="of the filler, which changes no logit")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
