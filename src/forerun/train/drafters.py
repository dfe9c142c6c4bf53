"""The acts of making a drafter that reads its target's features: text, training, examination.

Knows the other modules of this package and the files that go between them. Progress goes to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forerun.backends.torch.block import BlockDrafter, initialise
from forerun.backends.torch.decoder import Decoder
from forerun.backends.torch.eagle import EagleDrafter
from forerun.models.drafter_configs import config_of
from forerun.models.drafter_layouts import DEEPSPEC
from forerun.models.drafter_spec import MarkovKind
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.models.weights import open_checkpoint
from forerun.tools.machine import machine_name
from forerun.train.anchors import AnchoredText
from forerun.train.batches import Batches
from forerun.train.blocks import block_spec
from forerun.train.curve import draw_acceptance, draw_curve
from forerun.train.drafter_card import write_drafter_card
from forerun.train.drafter_export import load_drafter, write_drafter
from forerun.train.drafting import Drafter, Drafting, by_temperature, examine
from forerun.train.eagle import eagle_spec
from forerun.train.expected import Expected
from forerun.train.inherit import start_at_drafter, start_at_target
from forerun.train.lm import Budget, Recipe, Run, Watch, write_facts
from forerun.train.losses import DraftLoss
from forerun.train.patience import Patience
from forerun.train.progress import progress_bar
from forerun.train.prompts import corpus_stream, mask_id_of, prompts_for
from forerun.train.text import Regeneration, Text, joined, read_text, regenerate

if TYPE_CHECKING:
    from forerun.train.arguments import (
        BlockArguments,
        DraftArguments,
        SourceArguments,
        SparkArguments,
        StepArguments,
    )

SAMPLING_SHARE = 0.25
EAGLE_GAMMA = 4.4814  # exp(-1 / gamma) = 0.8, the weight of a step after its like
ROWS_A_FILE = 512
EXAMINED_ROWS = 6  # of each temperature while training
# Held-out text is the same for every drafter of a model, so that figures compare.
HELD_OUT = Regeneration(
    seconds=0.0,
    row_len=320,
    prompt_len=128,
    temperatures=(0.0, 0.7, 1.0),
    seed=1 << 20,
    batch_rows=72,
)


@dataclass(frozen=True, slots=True)
class Job:
    """What every kind of drafter is trained with: the options of the command line, by group."""

    kind: str
    out: Path
    minutes: float
    source: SourceArguments
    draft: DraftArguments
    step: StepArguments


def train_block(
    job: Job,
    shape: BlockArguments | SparkArguments,
    *,
    is_shifted: bool,
    markov_rank: int,
    markov_kind: MarkovKind = MarkovKind.VANILLA,
) -> None:
    """Train, or go on training, a block drafter; write it to the job's `out`.

    Raises:
        OptionError: sizes or sources that do not fit together, or files that are not there.
        ModelError: a target that cannot be used, a layout that cannot say such a drafter.
    """
    directory = resolve_model(job.source.model)
    target = load_target(directory, job.step.device)
    spec = block_spec(
        target.spec,
        num_layers=shape.layers,
        block_len=shape.block,
        num_taps=shape.taps,
        mask_id=mask_id_of(directory, target.spec, shape.mask_id),
        is_shifted=is_shifted,
        markov_rank=markov_rank,
        markov_kind=markov_kind,
    )
    _train(
        job, BlockDrafter(spec), Drafting(target, _loss(job.draft)), _changed(shape), shape.block
    )


def train_eagle(job: Job, *, num_steps: int) -> None:
    """Train, or go on training, an EAGLE-3 head; write it to `out`. Raises as `train_block`."""
    target = load_target(resolve_model(job.source.model), job.step.device)
    loss = replace(_loss(job.draft), gamma=EAGLE_GAMMA)
    model = EagleDrafter(eagle_spec(target.spec))
    _train(job, model, Drafting(target, loss), f" --steps {num_steps}", num_steps)


def make_text(out: Path, source: SourceArguments, plan: Regeneration) -> None:
    """Let the model make text of `plan`, in files of `out` beside those already there.

    Raises:
        OptionError: neither corpus nor data, or nothing in them.
        ModelError: a model that cannot be used.
    """
    directory = resolve_model(source.model)
    prompts, is_stream = prompts_for(source, directory, plan)
    plan = replace(plan, is_stream=is_stream)
    parts, num_files = list[Text](), len(list(out.glob("*.npz")))
    with progress_bar(plan.seconds / 60, "the model writes") as report:
        for part in regenerate(directory, prompts, plan, report):
            parts.append(part)
            if sum(len(one.rows) for one in parts) >= ROWS_A_FILE:
                joined(parts).save(out / f"text-{plan.seed}-{num_files:04d}.npz")
                parts, num_files = [], num_files + 1
    if parts:
        joined(parts).save(out / f"text-{plan.seed}-{num_files:04d}.npz")


def expect_drafter(
    drafter: Path, source: SourceArguments, num_rows: int, num_steps: int, threads: int
) -> dict[str, Any]:
    """What a drafter yields on held-out text, by temperature.

    Raises:
        OptionError: neither corpus nor data nor text.
        ModelError: a target or drafter that cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    directory = resolve_model(source.model)
    target = load_target(directory)
    model = load_drafter(drafter, target.spec)
    if source.text:
        text = read_text(source.text)
    else:
        text = _held_out(source, directory, replace(HELD_OUT, batch_rows=3 * num_rows))
    num_slots = model.spec.block_len if isinstance(model, BlockDrafter) else num_steps
    figures = examine(by_temperature(text, num_rows, num_slots), model, target)
    return {name: _figures(one) for name, one in figures.items()}


def write_card(drafter: Path, source: SourceArguments, figures: dict[str, Any]) -> None:
    """Write MODEL_CARD.md into a drafter's directory, with the facts of its training if they are
    there.

    Raises:
        ModelError: a target or drafter that cannot be used.
    """
    spec = load_drafter(drafter, read_spec(resolve_model(source.model))).spec
    facts = drafter / "run" / "training.json"
    training = json.loads(facts.read_text()) if facts.exists() else None
    write_drafter_card(drafter / "MODEL_CARD.md", spec, training, figures, machine_name())


def load_target(directory: Path, device: str = "cpu") -> Decoder:
    """The float32 decoder of a model directory, not to be trained."""
    checkpoint = open_checkpoint(directory)
    decoder = Decoder(checkpoint.spec)
    weights = {
        name: torch.from_numpy(checkpoint.tensor(name).float32()) for name in decoder.state_dict()
    }
    decoder.load_state_dict(weights)
    return decoder.to(device).requires_grad_(requires_grad=False)


def _train(job: Job, model: Drafter, drafting: Drafting, command: str, num_slots: int) -> None:
    step, run_directory = job.step, job.out / "run"
    if job.draft.export is not None:
        config_of(model.spec, job.draft.export.value)  # refused now, not when the time is up
    if step.threads:
        torch.set_num_threads(step.threads)
    directory, target = resolve_model(job.source.model), drafting.target
    initialise(model, step.seed)
    start_at_target(model, target)
    run = Run(model, _recipe(step), run_directory, device=step.device)
    if job.draft.start_from is not None and run.position.step == 0:
        start_at_drafter(model, load_drafter(job.draft.start_from, target.spec))
    minutes = job.minutes
    held_out = _kept_held_out(job.source, directory, run_directory, step.threads)
    if not job.source.text:
        minutes *= 1 - SAMPLING_SHARE
        _sample(job, run_directory / "text", job.minutes - minutes)
    text = read_text(job.source.text or [run_directory / "text"])
    first = isinstance(model, BlockDrafter) and not model.spec.is_shifted
    anchored = AnchoredText(
        text,
        step.rows,
        job.draft.anchors,
        num_slots,
        step.seed,
        _corpus_windows(job.source, step),
        dense_steps=0 if job.draft.start_from else job.draft.dense_steps,
        first_slots=1 + first,
    )
    examinations = by_temperature(held_out, EXAMINED_ROWS, num_slots)
    patience = Patience(run_directory / "acceptance.jsonl", job.draft.patience)

    def still_pays() -> bool:
        return patience.goes_on(run.position.step, examine(examinations, model, target))

    objective: Callable[..., Tensor] = drafting
    if step.engine == "compiled":
        objective = _compiled(drafting, text.rows.shape[1])
    most = job.draft.max_steps
    budget = Budget(steps=most) if most else Budget(minutes=minutes)
    with progress_bar(minutes) as report:
        watch = Watch(still_pays, 60 * job.draft.examine_every)
        run.train(anchored.at, objective, budget, report=report, watch=watch)
    still_pays()
    _write(job, run, command)


def _write(job: Job, run: Run[Any], changed: str) -> None:
    draw_curve(run.directory / "log.jsonl", job.out / "loss.png", label="loss, nats a token")
    draw_acceptance(run.directory / "acceptance.jsonl", job.out / "acceptance.png")
    command = f"forerun train {job.kind} --out {job.out} --minutes {job.minutes:g}"
    command += _changed(job.source) + _changed(job.draft) + _changed(job.step) + changed
    write_facts(run, command)
    layout = None if job.draft.export is None else job.draft.export.value
    source = resolve_model(job.source.model)
    write_drafter(
        run.model,
        job.out,
        layout=layout,
        tokenizer_from=source,
        verifier=_name_elsewhere(job.source.model, source),
        copied=open_checkpoint(source) if layout == DEEPSPEC else None,
    )


def _name_elsewhere(model: str, directory: Path) -> str:
    """What other engines can open as this model: a repository's name, else its directory."""
    is_repository = "/" in model and not Path(model).expanduser().is_dir()
    return model if is_repository else str(directory.resolve())


def _loss(draft: DraftArguments) -> DraftLoss:
    return DraftLoss(draft.divergence.value, draft.weights.value, hard_share=draft.hard_share)


def _recipe(step: StepArguments) -> Recipe:
    return Recipe(
        rows=step.rows,
        row_len=step.row_len,
        matrix_lr=step.learning_rate,
        vector_lr=step.learning_rate,
        decay_share=step.decay_share,
        seed=step.seed,
    )


def _corpus_windows(source: SourceArguments, step: StepArguments) -> Batches | None:
    if source.corpus is None:
        return None
    stream = corpus_stream(source.corpus, "train")
    return Batches(stream, step.rows, step.row_len, step.seed, long_every=4)


def _kept_held_out(source: SourceArguments, model: Path, directory: Path, threads: int) -> Text:
    """Held-out text of the model's own, made once and kept beside the checkpoint."""
    path = directory / "heldout.npz"
    if not path.exists():
        _held_out(source, model, replace(HELD_OUT, threads=threads or None)).save(path)
    return read_text([path])


def _held_out(source: SourceArguments, model: Path, plan: Regeneration) -> Text:
    prompts, is_stream = prompts_for(source, model, plan, held_out=True)
    return joined(list(regenerate(model, prompts, replace(plan, is_stream=is_stream))))


def _sample(job: Job, directory: Path, minutes: float) -> None:
    if not list(directory.glob("*.npz")):
        step = job.step
        threads = step.threads or None
        make_text(
            directory,
            job.source,
            Regeneration(60 * minutes, row_len=step.row_len, seed=step.seed, threads=threads),
        )


def _compiled(drafting: Drafting, row_len: int) -> Callable[..., Tensor]:
    fast = torch.compile(drafting, dynamic=False)

    def chosen(model: Drafter, windows: Tensor, *parts: Tensor) -> Tensor:
        # Rare lengths are not worth the minute that their own compilation takes.
        step = fast if windows.shape[1] == row_len else drafting
        loss: Tensor = step(model, windows, *parts)
        return loss

    return chosen


def _figures(one: Expected) -> dict[str, Any]:
    return {
        "tokens_per_round": one.tokens_per_round,
        "from_anywhere": one.from_anywhere,
        "by_position": list(one.by_position),
        "num_tokens": one.num_tokens,
        "num_rounds": one.num_rounds,
    }


def _changed(arguments: Any) -> str:
    """The options that were not left at their defaults, as on the command line."""
    said = ""
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if value != field.default:
            each = value if isinstance(value, list) else [value]
            said += "".join(f" --{field.name.replace('_', '-')} {one}" for one in each)
    return said
