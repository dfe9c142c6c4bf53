"""The commands of `forerun train` that make drafters which read their target's features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from forerun.tools.arguments import grouped
from forerun.train.arguments import (
    BlockArguments,
    DraftArguments,
    SourceArguments,
    SparkArguments,
    StepArguments,
    WritingArguments,
)
from forerun.train.extras import needed_extras

_Out = Annotated[Path, typer.Option(help="Directory to write to.")]
_Minutes = Annotated[float, typer.Option(help="Training time; a pause does not count.")]


def add_drafter_commands(app: typer.Typer) -> None:
    """Let `app` have dflash, dspark, eagle3, text and expect."""
    for command in (dflash, dspark, eagle3, text, expect):
        app.command()(command)


@grouped
def dflash(
    out: _Out,
    minutes: _Minutes = 60.0,
    *,
    source: SourceArguments,
    shape: BlockArguments,
    draft: DraftArguments,
    step: StepArguments,
) -> int:
    """Train a DFlash drafter: a block of tokens in one pass; stop and repeat it to continue.

    Without --text a quarter of the time goes into text that the model makes from --corpus or
    --data. OUT becomes a drafter directory when the time is up, or at SIGTERM; OUT/run keeps what
    is needed to continue, what it yields on held-out text, and the curves.
    """
    with needed_extras():
        from forerun.train.drafters import Job, train_block

        job = Job("dflash", out, minutes, source, draft, step)
        train_block(job, shape, is_shifted=False, markov_rank=0)
    return 0


@grouped
def dspark(
    out: _Out,
    minutes: _Minutes = 60.0,
    *,
    source: SourceArguments,
    shape: SparkArguments,
    draft: DraftArguments,
    step: StepArguments,
) -> int:
    """Train a DSpark drafter: a block in one pass, in which each slot hears those before it.

    As `forerun train dflash`; every slot drafts, the first one too, and a small head adds to each
    slot's logits what the draft before it became (`--markov-kind`).
    """
    with needed_extras():
        from forerun.train.drafters import Job, train_block

        job = Job("dspark", out, minutes, source, draft, step)
        train_block(
            job,
            shape,
            is_shifted=True,
            markov_rank=shape.markov_rank,
            markov_kind=shape.markov_kind,
        )
    return 0


@grouped
def eagle3(
    out: _Out,
    minutes: _Minutes = 60.0,
    steps: Annotated[int, typer.Option(help="Tokens of a draft that are unrolled.")] = 5,
    *,
    source: SourceArguments,
    draft: DraftArguments,
    step: StepArguments,
) -> int:
    """Train an EAGLE-3 head: one layer that drafts token by token, unrolled while it is trained.

    As `forerun train dflash`; the taps are those of the published heads.
    """
    with needed_extras():
        from forerun.train.drafters import Job, train_eagle

        train_eagle(Job("eagle3", out, minutes, source, draft, step), num_steps=steps)
    return 0


@grouped
def text(
    out: _Out,
    minutes: _Minutes = 15.0,
    *,
    source: SourceArguments,
    writing: WritingArguments,
) -> int:
    """Let a model make the text that its drafters learn from; several runs add up.

    A drafter is judged on its target's own text, and learns far more from that than from any other.
    """
    with needed_extras():
        from forerun.train.drafters import make_text
        from forerun.train.text import Regeneration

        plan = Regeneration(
            60 * minutes,
            row_len=writing.row_len,
            prompt_len=writing.prompt_len,
            seed=writing.seed,
            threads=writing.threads or None,
        )
        make_text(out, source, plan)
    return 0


@grouped
def expect(  # noqa: PLR0913  the options of one command
    drafter: Annotated[Path, typer.Argument(help="Drafter directory, or OUT of a training.")],
    rows: Annotated[int, typer.Option(help="Rows of each temperature.")] = 24,
    steps: Annotated[int, typer.Option(help="Tokens of an EAGLE-3 draft.")] = 5,
    threads: Annotated[int, typer.Option(help="Cores to use; 0 is all.")] = 0,
    *,
    card: Annotated[bool, typer.Option("--card", help="Also write MODEL_CARD.md there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
    ] = False,
    source: SourceArguments,
) -> int:
    """Say what a drafter yields on held-out text, without an engine: tokens a round, by position.

    Exact but for rounding: the text is the model's own and its noise is known, so every chain
    that an engine would draft and keep on it is too.
    """
    with needed_extras():
        from forerun.train.drafters import expect_drafter, write_card

        figures = expect_drafter(drafter, source, rows, steps, threads)
        if card:
            write_card(drafter, source, figures)
    typer.echo(json.dumps(figures) if as_json else json.dumps(figures, indent=2))
    return 0
