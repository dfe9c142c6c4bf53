"""A trained drafter's module from its files or its checkpoint, and back.

Knows the drafters' modules and the layouts of their files. Must not know how weights came to be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from forerun.backends.torch.block import BlockDrafter
from forerun.backends.torch.eagle import EagleDrafter
from forerun.errors import OptionError
from forerun.models import drafter_files
from forerun.models.drafter_layouts import DEEPSPEC, EAGLE3, SPECULATORS, Z_LAB
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec, MarkovKind
from forerun.models.spec import ModelSpec, Rope
from forerun.models.weights import EMBEDDING, HEAD, Checkpoint
from forerun.train.lm import CHECKPOINT_NAME, load_checkpoint

_OF_BLOCK = ("block_len", "markov_rank")


def drafter_of(spec: DrafterSpec) -> BlockDrafter | EagleDrafter:
    """An untrained module of that spec."""
    return BlockDrafter(spec) if isinstance(spec, BlockSpec) else EagleDrafter(spec)


def load_drafter(directory: Path, target: ModelSpec) -> BlockDrafter | EagleDrafter:
    """The float32 module of a drafter's directory, or of a training that is not over.

    Raises:
        ModelError: files that are no drafter.
        OptionError: neither a drafter nor a training.
    """
    unfinished = directory / "run" / CHECKPOINT_NAME
    if unfinished.exists() and not (directory / "config.json").exists():
        return _from_checkpoint(unfinished)
    if not directory.is_dir():
        raise OptionError(f"{directory} does not exist: train it with `forerun train dspark`")
    checkpoint = drafter_files.open_drafter(directory, target)
    model = drafter_of(checkpoint.spec)
    weights = {
        name: torch.from_numpy(checkpoint.tensor(name).float32())
        for name in model.state_dict()
        if name != "d2t"
    }
    if checkpoint.token_map is not None:
        targets = torch.from_numpy(checkpoint.token_map)
        weights["d2t"] = targets - torch.arange(len(targets))
    model.load_state_dict(weights)
    return model


def write_drafter(
    model: BlockDrafter | EagleDrafter,
    directory: Path,
    *,
    layout: str | None = None,
    tokenizer_from: Path | None = None,
    verifier: str | None = None,
    copied: Checkpoint | None = None,
) -> None:
    """Write a module to `directory`, its weights rounded to bfloat16.

    Without a layout, in the one its kind was published in: z-lab for DFlash, DeepSpec for DSpark,
    EAGLE-3's own; that of speculators for a block drafter that knows some tokens only, which no
    other can say. `verifier` is what other engines load as its target where they are given the
    drafter alone, as the layout of speculators lets them. `copied` is the target whose table and
    head go along, as in published files of DeepSpec; forerun never reads them.

    Raises:
        ModelError: the layout cannot say what this drafter is.
    """
    tensors: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            rounded = value.detach().cpu().to(torch.bfloat16).contiguous()
            tensors[name] = rounded.view(torch.uint16).numpy()
        else:
            tensors[name] = value.cpu().numpy()
    if copied is not None:
        head = EMBEDDING if copied.spec.tied else HEAD
        tensors[drafter_files.TABLE] = copied.tensor(EMBEDDING).array
        tensors[drafter_files.HEAD] = copied.tensor(head).array
    drafter_files.write_drafter(
        directory,
        model.spec,
        tensors,
        layout=layout or _own_layout(model.spec),
        tokenizer_from=tokenizer_from,
        verifier=verifier,
    )


def _own_layout(spec: DrafterSpec) -> str:
    if isinstance(spec, EagleSpec):
        return EAGLE3
    if spec.has_token_map:
        return SPECULATORS
    return DEEPSPEC if spec.is_shifted else Z_LAB


def _from_checkpoint(path: Path) -> BlockDrafter | EagleDrafter:
    state = load_checkpoint(path)
    fields = dict(state["spec"])
    body = dict(fields["body"])
    fields["body"] = ModelSpec(**{**body, "rope": Rope(**body["rope"])})
    is_block = all(key in fields for key in _OF_BLOCK)
    if is_block:
        # Of a training from before there were kinds.
        fields["markov_kind"] = MarkovKind(fields.get("markov_kind", MarkovKind.VANILLA))
    spec = BlockSpec(**fields) if is_block else EagleSpec(**fields)
    model = drafter_of(spec)
    model.load_state_dict(state["model"])
    return model
