"""Drafters on features beside an enlarged target: what is written for one, and how.

`forerun.tools.drafter_inflation` says why they draft the same bits. Knows files of drafters.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forerun.errors import ModelError
from forerun.models.drafter_files import (
    DrafterCheckpoint,
    drafter_tensors,
    open_drafter,
    write_drafter,
)
from forerun.models.drafter_layouts import SPECULATORS
from forerun.models.drafter_spec import DrafterSpec, EagleSpec
from forerun.models.weights import Checkpoint
from forerun.tools.drafter_inflation import (
    Targets,
    drafter_bytes,
    grown_drafter_rows,
    matched,
    widened,
)

_SHAPE = ("hidden", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn", "vocab")


@dataclass(frozen=True, slots=True)
class FeatureEnlargement:
    """A drafter and the shape it takes; it is never a copy, since the target it reads changed.

    `done` says in a record what was made of it.
    """

    source: DrafterCheckpoint
    grown: DrafterSpec
    targets: Targets
    done: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights in the end; a map of tokens is not counted."""
        return drafter_bytes(self.grown)

    @property
    def num_parameters(self) -> int:
        """All its weights; a borrowed table or head is not its own."""
        return self.num_bytes // 2

    @property
    def is_copy(self) -> bool:
        """Whether nothing is enlarged."""
        return False

    @property
    def stored(self) -> Checkpoint:
        """The files it comes from."""
        return self.source.stored

    @property
    def shapes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Its shape before and after."""
        before, after = (_shape(spec) for spec in (self.source.spec, self.grown))
        return before, after

    def write(self, directory: Path, seed: int) -> Iterator[int]:
        """Writes the drafter; yields how many bytes went out, as they go.

        Tensors are laid down one by one and then mapped, so memory stays at some megabytes.
        """
        parts = directory / "parts"
        parts.mkdir(parents=True)
        tensors: dict[str, NDArray[np.generic]] = {}
        for name, shape in drafter_tensors(self.grown).items():
            path = parts / name
            with path.open("wb") as stream:
                for rows in grown_drafter_rows(self.source, self.grown, name, self.targets, seed):
                    stream.write(rows.data)
                    yield rows.nbytes
            tensors[name] = np.memmap(path, np.uint16, "r", shape=shape)
            self.source.drop_pages()
        if self.source.token_map is not None:
            own = np.arange(len(self.source.token_map), dtype=np.int64)
            tensors["d2t"] = self.source.token_map - own
        write_drafter(
            directory,
            self.grown,
            tensors,
            layout=self._layout,
            tokenizer_from=self.source.directory,
        )
        shutil.rmtree(parts)
        _carry_record(self.source.directory, directory)
        # What is read back is what was meant: names, shapes and sizes are checked in full.
        again = open_drafter(directory, self.targets.after).spec
        if again != self.grown:
            raise ModelError(f"{directory} was not written as meant: {again} is not {self.grown}")

    @property
    def _layout(self) -> str:
        # Only speculators says beyond doubt which layers EAGLE-3 taps, where they are not those
        # that a target as deep as the enlarged one would be tapped at.
        return SPECULATORS if isinstance(self.grown, EagleSpec) else self.source.layout


def feature_enlargement(
    directory: Path, targets: Targets, kind: str, ratio: str, target_bytes: int
) -> FeatureEnlargement:
    """What becomes of a drafter beside the enlarged target, decided before a byte is written.

    As shipped it is still widened: its interface is the target's stream.

    Raises:
        ModelError: no drafter of this target, or one whose bits could not be kept.
    """
    source = open_drafter(directory, targets.before)
    if isinstance(source.spec, EagleSpec) and source.own_table:
        raise ModelError(
            f"{directory} has a table of tokens of its own, which is as wide as the small target:"
            " only a drafter that borrows the target's is enlarged; train one with `forerun train"
            " eagle3`"
        )
    if ratio == "matched":
        grown = matched(source.spec, targets, kind, target_bytes)
        return FeatureEnlargement(source, grown, targets, "enlarged")
    return FeatureEnlargement(
        source, widened(source.spec, targets), targets, "its interface widened, nothing else"
    )


def _carry_record(source: Path, directory: Path) -> None:
    """What a drafter yields is a fact of its tokens, which are the same: it goes along."""
    was, path = json.loads((source / "config.json").read_text("utf-8")), directory / "config.json"
    if "forerun" in was:
        config = json.loads(path.read_text("utf-8")) | {"forerun": was["forerun"]}
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _shape(spec: DrafterSpec) -> dict[str, int]:
    values = {name: value for name, value in asdict(spec.body).items() if name in _SHAPE}
    return {**values, "num_taps": len(spec.tap_layers), "target_hidden": spec.target_hidden}
