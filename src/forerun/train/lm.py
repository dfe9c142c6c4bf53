"""Train a decoder, or another module with a `spec`, within a budget of minutes or steps.

Knows the decoder, optimizers, checkpoints and the clock. Must not know where the tokens came from.
A run can be stopped at any time (SIGTERM writes a checkpoint) and continues to the same weights.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError
from forerun.models.spec import ModelSpec, Rope
from forerun.train.checkpoints import read_state, write_state
from forerun.train.tokenizer import END_OF_TEXT_ID

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.safetensors"

Model = TypeVar("Model", bound=nn.Module)
Batch: TypeAlias = NDArray[np.int64] | tuple[NDArray[np.int64], ...]  # windows, and what is of them


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train: `minutes` of stepping, or exactly `steps`."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise OptionError("a training budget is either minutes or steps: give exactly one")

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share of the budget that is used up, 0..1."""
        used = step / self.steps if self.steps else elapsed_s / (60.0 * (self.minutes or 1.0))
        return min(1.0, used)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything but the data, the shape and the budget that decides the weights."""

    rows: int = 12
    row_len: int = 512
    matrix_lr: float = 3e-3
    vector_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 60
    decay_share: float = 0.35
    clip: float = 1.0
    seed: int = 0
    long_every: int = 8

    def rate(self, step: int, progress: float) -> float:
        """Warmup, stable, linear decay to (almost) nothing: the factor on both learning rates."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * min(1.0, max(0.005, (1.0 - progress) / self.decay_share))


class Objective(Protocol):
    """What a step minimises."""

    def __call__(self, model: Decoder, windows: Tensor) -> Tensor:
        """Mean loss in nats a token over windows [B, T + 1]."""
        ...


@dataclass(slots=True)
class Position:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0


def code_spec(
    *, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int
) -> ModelSpec:
    """A tied Qwen3-shaped model with 64 dimensions a head, as all embedded models are."""
    return ModelSpec(
        family="qwen3",
        hidden=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=64,
        ffn=ffn,
        vocab=vocab,
        max_position=4096,
        norm_eps=1e-6,
        rope=Rope(theta=10000.0),
        tied=True,
        qkv_bias=False,
        qk_norm=True,
        eos_ids=(END_OF_TEXT_ID,),
        bos_id=END_OF_TEXT_ID,
        dtype="bfloat16",
    )


def initialise(model: nn.Module, seed: int) -> None:
    """Small normal weights; projections that write to the residual stream start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
        else:
            std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            nn.init.normal_(parameter, std=std, generator=generator)


def optimizers(model: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """Muon for the layers' matrices, AdamW for tables, heads and norms."""
    named = [(f".{name}", p) for name, p in model.named_parameters()]
    matrices = [p for name, p in named if p.ndim == 2 and _is_inside(name)]
    vectors = [p for _, p in named if p.ndim < 2]
    tables = [p for name, p in named if p.ndim == 2 and not _is_inside(name)]
    groups: list[dict[str, Any]] = [
        {"params": tables},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        Muon(
            matrices,
            lr=recipe.matrix_lr,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        AdamW(groups, lr=recipe.vector_lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _is_inside(name: str) -> bool:
    """Whether a matrix maps states to states: rows of tables and heads are tokens."""
    of_states = (".layers.", ".midlayer.", ".fc.", "_head.gate_proj.", "_head.joint_proj.")
    return any(part in name for part in of_states)


def next_token_loss(model: Decoder, windows: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of each next token of windows [B, T + 1]."""
    with torch.autocast(windows.device.type, dtype=torch.bfloat16):
        logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@dataclass(frozen=True, slots=True)
class Watch:
    """A look at the model now and then; training ends when one answers that it no longer pays."""

    still_pays: Callable[[], bool]
    every_s: float


class Run(Generic[Model]):
    """One training run in a directory: checkpoint.safetensors, log.jsonl."""

    def __init__(
        self, model: Model, recipe: Recipe, directory: Path, *, device: str = "cpu"
    ) -> None:
        self.model = model.to(device)
        self.recipe = recipe
        self.directory = directory
        self.device = device
        self.position = Position()
        self.optimizers = optimizers(model, recipe)
        self._stopped = False
        directory.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._restore()

    @property
    def checkpoint(self) -> Path:
        return self.directory / CHECKPOINT_NAME

    def train(
        self,
        batch_at: Callable[[int], Batch],
        objective: Callable[..., Tensor],
        budget: Budget,
        *,
        save_every_s: float = 180.0,
        report: Callable[[dict[str, float]], None] = lambda _: None,
        watch: Watch | None = None,
    ) -> None:
        """Step until the budget is used up or the process is asked to stop; then save.

        A batch is windows [B, T + 1], or a tuple that begins with them: `objective` gets its parts.
        """
        saved_at, recent = time.monotonic(), list[float]()
        looked_at = self.position.elapsed_s
        with self._stop_on_signals(), (self.directory / "log.jsonl").open("a") as log:
            while not self._stopped and self._progress(budget) < 1.0:
                began = time.monotonic()
                record = self._step(batch_at(self.position.step), objective, budget)
                self._count(time.monotonic() - began, recent)
                record |= asdict(self.position)
                log.write(json.dumps(record) + "\n")
                report(record)
                if time.monotonic() - saved_at > save_every_s:
                    log.flush()
                    self.save()
                    saved_at = time.monotonic()
                if watch and self.position.elapsed_s - looked_at > watch.every_s:
                    looked_at = self.position.elapsed_s
                    self._stopped |= not watch.still_pays()
        self.save()

    def save(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves a whole one."""
        state = {
            "spec": self._spec,
            "recipe": asdict(self.recipe),
            "position": asdict(self.position),
            "model": self.model.state_dict(),
            "optimizers": [_with_text_keys(one.state_dict()) for one in self.optimizers],
            "rng": torch.get_rng_state(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        write_state(state, partial)
        os.replace(partial, self.checkpoint)

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint)
        if state["spec"] != self._spec:
            raise OptionError(
                f"{self.checkpoint} is of another shape than asked for: give the same sizes to"
                " continue it, or another directory to start anew"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(_with_number_keys(saved))
        torch.set_rng_state(state["rng"])
        self.position = Position(**state["position"])
        logger.info("resumed %s at step %d", self.directory, self.position.step)

    @property
    def _spec(self) -> dict[str, Any]:
        return asdict(cast(Any, self.model).spec, dict_factory=_plain)

    def _progress(self, budget: Budget) -> float:
        return budget.progress(self.position.step, self.position.elapsed_s)

    def _step(
        self, batch: Batch, objective: Callable[..., Tensor], budget: Budget
    ) -> dict[str, float]:
        windows, *others = batch if isinstance(batch, tuple) else (batch,)
        rate = self.recipe.rate(self.position.step, self._progress(budget))
        for optimizer, lr in zip(
            self.optimizers, (self.recipe.matrix_lr, self.recipe.vector_lr), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
        parts = (torch.from_numpy(part).to(self.device) for part in (windows, *others))
        loss = objective(self.model, *parts)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.num_tokens += windows.shape[0] * (windows.shape[1] - 1)
        return {
            "loss": loss.item(),
            "grad_norm": norm.item(),
            "rate": rate,
            "row_len": windows.shape[1] - 1,
        }

    def _count(self, step_s: float, recent: list[float]) -> None:
        # A paused process (SIGSTOP) must not eat its budget: one step counts as at most eight.
        recent[:] = [*recent[-20:], step_s]
        self.position.elapsed_s += min(step_s, 8.0 * statistics.median(recent))

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def write_facts(run: Run[Any], command: str) -> None:
    """Write what a run was and what it took to `training.json` beside its checkpoint."""
    position = run.position
    facts = {
        "command": command,
        "num_tokens": position.num_tokens,
        "num_steps": position.step,
        "minutes": position.elapsed_s / 60,
    }
    (run.directory / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def _plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names of kinds as text: a checkpoint holds no class of ours."""
    return {name: one.value if isinstance(one, Enum) else one for name, one in fields}


def _with_text_keys(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state whose parameters are numbered in texts, as JSON has keys."""
    state = {str(number): value for number, value in optimizer["state"].items()}
    return {**optimizer, "state": state}


def _with_number_keys(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    state = {int(number): value for number, value in optimizer["state"].items()}
    return {**optimizer, "state": state}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by `Run.save`.

    Raises:
        OptionError: there is none, or it is none.
    """
    if not path.exists():
        raise OptionError(f"{path} does not exist: train first, with `forerun train lm`")
    return read_state(path)


def decoder_from_checkpoint(path: Path) -> Decoder:
    """The model of a checkpoint, in float32."""
    state = load_checkpoint(path)
    fields = dict(state["spec"])
    spec = ModelSpec(**{**fields, "rope": Rope(**fields["rope"])})
    model = Decoder(spec)
    model.load_state_dict(state["model"])
    return model
