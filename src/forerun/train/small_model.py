"""The act of making a small model for a target: its vocabulary, its text, a twentieth of its bytes.

Knows the other modules of this package and the files that go between them. Progress goes to stderr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError
from forerun.models.drafter_notes import DrafterNotes, write_notes
from forerun.models.resolve import resolve_model
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.weights import EMBEDDING, Checkpoint, open_checkpoint
from forerun.train import grow
from forerun.train.batches import Batches
from forerun.train.curve import draw_curve
from forerun.train.distill import start_like
from forerun.train.drafters import load_target
from forerun.train.drafting import by_temperature
from forerun.train.examining import Examiner
from forerun.train.export import export_checkpoint, load_decoder
from forerun.train.lesson import Job, Lesson, lesson_of
from forerun.train.lm import Budget, Run, Watch, initialise, write_facts
from forerun.train.next_tokens import examine_small
from forerun.train.outcome import RECORDED_LENGTHS, Ending, Outcome, recorded_yields
from forerun.train.progress import progress_bar
from forerun.train.prompts import corpus_stream, refuse_foreign_corpus
from forerun.train.recipes import options_said, recipe_of
from forerun.train.small_sizes import small_spec
from forerun.train.token_loss import OwnText, TokenLoss

if TYPE_CHECKING:
    from forerun.train.arguments import LessonArguments, ShapeArguments

EXAMINED_ROWS = 6  # of each temperature while training


@dataclass(frozen=True, slots=True, eq=False)
class _Training:
    """A job under way: the run, what it learns from, who looks at it, and for how long."""

    job: Job
    run: Run[Decoder]
    learned: Lesson
    examiner: Examiner
    budget: Budget

    def look(self) -> bool:
        """Examine the model as it is; False once training no longer pays."""
        return self.examiner.look(self.run.position.step, self.run.model)

    @property
    def ending(self) -> Ending:
        """Why it ended, once it has."""
        position = self.run.position
        if self.budget.progress(position.step, position.elapsed_s) >= 1.0:
            return Ending.BUDGET
        return Ending.PATIENCE if self.examiner.is_over else Ending.STOPPED


def train_small(job: Job, lesson: LessonArguments, shape: ShapeArguments) -> Outcome:
    """Train, or go on training, a small model for the job's target; write it to `out`.

    Raises:
        OptionError: sizes, a lesson or sources that do not fit together, or files that are not
            there.
        ModelError: a target that cannot be used.
    """
    directory, step = resolve_model(job.source.model), job.step
    target = open_checkpoint(directory)
    _refuse(job, lesson, directory)
    spec = small_spec(target.spec, target.num_bytes, shape)
    if step.threads:
        torch.set_num_threads(step.threads)
    teacher = lesson.distill_from and _teacher(lesson.distill_from, spec, step.device)
    model = Decoder(spec)
    initialise(model, step.seed)
    run = Run(model, recipe_of(step, is_drafter=True), job.out / "run", device=step.device)
    if run.position.step == 0:
        _start(model, target, shape)
    learned = lesson_of(job, run.directory)
    _refuse_foreign_text(learned, spec)
    most = job.draft.max_steps
    budget = Budget(steps=most) if most else Budget(minutes=learned.minutes)
    training = _Training(job, run, learned, _examiner(job, run, learned), budget)
    _train(training, TokenLoss(teacher or None))
    return _write(training, directory, options_said(lesson) + options_said(shape))


def _refuse(job: Job, lesson: LessonArguments, directory: Path) -> None:
    if lesson.exit_layer:
        raise OptionError(
            "--exit-layer trains a model to be its own drafter, --model makes one beside it: give"
            " one of them"
        )
    refuse_foreign_corpus(job.source.corpus, directory)


def _refuse_foreign_text(learned: Lesson, spec: ModelSpec) -> None:
    largest = max(int(text.rows.max()) for text in (learned.text, learned.held_out))
    if largest >= spec.vocab:
        raise OptionError(
            f"the text has token {largest}, the model's vocabulary ends at {spec.vocab - 1}: it was"
            " written by another model; give what `forerun train text --model` wrote with this one"
        )


def _teacher(directory: Path, spec: ModelSpec, device: str) -> Decoder:
    vocab = read_spec(directory).vocab
    if vocab != spec.vocab:
        raise OptionError(
            f"--distill-from {directory} has {vocab} tokens, --model {spec.vocab}: the laws of one"
            " are none of the other; distil from the model itself"
        )
    return load_target(directory, device)


@torch.no_grad()
def _start(model: Decoder, target: Checkpoint, shape: ShapeArguments) -> None:
    """Begin as a trained model, or with the table of one: of the target, if none is named."""
    if shape.start_from is not None:
        grow.start_from(model, load_decoder(shape.start_from))
    elif shape.embedding_from is not None:
        start_like(model, load_decoder(shape.embedding_from))
    else:
        table = torch.from_numpy(target.tensor(EMBEDDING).float32())
        # Of a table with 150,000 rows: the directions of its columns, without the rest of an SVD.
        _, directions = torch.linalg.eigh(table.T @ table)
        kept = directions.flip(1)[:, : model.spec.hidden]
        model.model.embed_tokens.weight[:, : kept.shape[1]] = table @ kept


def _windows(job: Job, learned: Lesson) -> OwnText:
    step, corpus = job.step, None
    if job.source.corpus is not None:
        stream = corpus_stream(job.source.corpus, "train")
        corpus = Batches(stream, step.rows, step.row_len, step.seed, long_every=4)
    return OwnText(learned.text, step.rows, step.seed, corpus)


def _examiner(job: Job, run: Run[Decoder], learned: Lesson) -> Examiner:
    examinations = by_temperature(learned.held_out, EXAMINED_ROWS, max(RECORDED_LENGTHS))
    return Examiner(
        lambda: examine_small(examinations, run.model),
        run.directory,
        job.out / "acceptance.png",
        job.draft.patience,
        run.position.step,
    )


def _objective(job: Job, loss: TokenLoss, learned: Lesson) -> Callable[..., Tensor]:
    if job.step.engine == "eager":
        return loss
    fast, usual_len = torch.compile(loss, dynamic=False), learned.text.rows.shape[1]

    def chosen(model: Decoder, windows: Tensor, spans: Tensor) -> Tensor:
        # Rare lengths are not worth the minute that their own compilation takes.
        step = fast if windows.shape[1] == usual_len else loss
        return step(model, windows, spans)

    return chosen


def _train(training: _Training, loss: TokenLoss) -> None:
    """Until the budget is used up, it no longer pays or somebody stops it; look once more."""
    job, examiner, budget = training.job, training.examiner, training.budget

    def told(record: dict[str, Any]) -> None:
        report(record | {"tokens_per_round": examiner.latest})

    windows = _windows(job, training.learned)
    objective = _objective(job, loss, training.learned)
    watch = Watch(training.look, 60 * job.draft.examine_every)
    with progress_bar(budget.minutes or job.minutes) as report:
        if not examiner.is_over:
            training.run.train(windows.at, objective, budget, report=told, watch=watch)
    training.look()


def _write(training: _Training, directory: Path, command: str) -> Outcome:
    job, run = training.job, training.run
    draw_curve(run.directory / "log.jsonl", job.out / "loss.png", label="loss, nats a token")
    said = f"forerun train lm --out {job.out} --minutes {job.minutes:g}"
    said += f" --model {job.source.model}" + options_said(job.source, but="model")
    write_facts(run, said + options_said(job.draft) + options_said(job.step) + command)
    best = training.examiner.best()
    assert best is not None  # it was looked at last
    run.model.load_state_dict(best.weights)  # the run itself goes on from its last ones
    export_checkpoint(run.model, directory, job.out, pad_id=None)
    text = training.learned.text
    positions = text.rows.shape[1] - 1
    write_notes(job.out, DrafterNotes(recorded_yields(best.figures), positions, text.thinking))
    last, ending = run.position.step, training.ending
    return Outcome("lm", job.out, job.source.model, ending, best.step, last, best.figures)
