"""What a drafter is trained with: the options of its command, and the text that it learns from.

Knows text and the model that writes it. Must not know drafters. Progress goes to stderr.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.errors import OptionError
from forerun.models.resolve import resolve_model
from forerun.train import held_out
from forerun.train.progress import progress_bar
from forerun.train.prompts import prompts_for
from forerun.train.text import Regeneration, Text, joined, read_text, regenerate

if TYPE_CHECKING:
    from forerun.train.arguments import DraftArguments, SourceArguments, StepArguments

SAMPLING_SHARE = 0.25
ROWS_A_FILE = 512


@dataclass(frozen=True, slots=True)
class Job:
    """What every kind of drafter is trained with: the options of the command line, by group."""

    kind: str
    out: Path
    minutes: float
    source: SourceArguments
    draft: DraftArguments
    step: StepArguments


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What is learned, what is examined on, and the minutes that are left to learn it."""

    text: Text
    held_out: Text
    minutes: float


def lesson_of(job: Job, run_directory: Path) -> Lesson:
    """The text of a training: given, or made with a quarter of its time.

    Raises:
        OptionError: no text and no prompts, or too little of either.
        ModelError: a model that cannot be used.
    """
    source, directory = job.source, resolve_model(job.source.model)
    given = read_text(source.text) if source.text else None
    if given is not None and source.thinking not in (None, given.thinking):
        raise OptionError(
            f"--thinking {source.thinking}, but --text was written with thinking"
            f" {given.thinking or 'as the template has it, or both ways'}: leave --thinking out, or"
            " write the text again with it"
        )
    kept = held_out.kept_held_out(source, directory, run_directory, job.step.threads, given)
    minutes = job.minutes
    if given is None:
        minutes *= 1 - SAMPLING_SHARE
        _sample(job, run_directory / "text", job.minutes - minutes)
        given = read_text([run_directory / "text"])
    return Lesson(held_out.learned_rows(given, kept), kept, minutes)


def make_text(out: Path, source: SourceArguments, plan: Regeneration) -> None:
    """Let the model make text of `plan`, in files of `out` beside those already there.

    Raises:
        OptionError: neither corpus nor data, or nothing in them.
        ModelError: a model that cannot be used.
    """
    directory = resolve_model(source.model)
    prompts, is_stream = prompts_for(source, directory, plan)
    plan = replace(plan, is_stream=is_stream, thinking=source.thinking)
    parts, num_files = list[Text](), len(list(out.glob("*.npz")))
    with progress_bar(plan.seconds / 60, "the model writes") as report:
        for part in regenerate(directory, prompts, plan, report):
            parts.append(part)
            if sum(len(one.rows) for one in parts) >= ROWS_A_FILE:
                joined(parts).save(out / f"text-{plan.seed}-{num_files:04d}.npz")
                parts, num_files = [], num_files + 1
    if parts:
        joined(parts).save(out / f"text-{plan.seed}-{num_files:04d}.npz")


def _sample(job: Job, directory: Path, minutes: float) -> None:
    if not list(directory.glob("*.npz")):
        step = job.step
        threads = step.threads or None
        make_text(
            directory,
            job.source,
            Regeneration(60 * minutes, row_len=step.row_len, seed=step.seed, threads=threads),
        )
