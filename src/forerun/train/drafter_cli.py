"""The commands of `forerun train` that make drafters which read their target's features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from forerun.models.resolve import resolve_model
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
    --data. With --text alone some rows of it are held out to examine the drafter on. OUT becomes a
    drafter directory when the time is up, when it no longer pays (--patience) or at SIGTERM, with
    the weights that yielded most; OUT/run keeps what is needed to continue, and the curves.
    """
    with needed_extras():
        from forerun.train.drafters import train_block
        from forerun.train.lesson import Job

        job = Job("dflash", out, minutes, source, draft, step)
        outcome = train_block(job, shape, is_shifted=False, markov_rank=0)
    typer.echo(outcome.sentence, err=True)
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
        from forerun.train.drafters import train_block
        from forerun.train.lesson import Job

        job = Job("dspark", out, minutes, source, draft, step)
        outcome = train_block(
            job,
            shape,
            is_shifted=True,
            markov_rank=shape.markov_rank,
            markov_kind=shape.markov_kind,
        )
    typer.echo(outcome.sentence, err=True)
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
        from forerun.train.drafters import train_eagle
        from forerun.train.lesson import Job

        job = Job("eagle3", out, minutes, source, draft, step)
        outcome = train_eagle(job, num_steps=steps)
    typer.echo(outcome.sentence, err=True)
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
        from forerun.train.lesson import make_text
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
    drafter: Annotated[
        str,
        typer.Argument(
            help="Drafter directory, OUT of a training, or a name: dspark is MODEL/drafters/dspark."
        ),
    ],
    rows: Annotated[int, typer.Option(help="Rows of each temperature.")] = 24,
    steps: Annotated[int, typer.Option(help="Tokens of an EAGLE-3 or lm draft.")] = 5,
    threads: Annotated[int, typer.Option(help="Cores to use; 0 is all.")] = 0,
    *,
    record: Annotated[
        bool, typer.Option("--record", help="Also note it in config.json, for --drafter auto.")
    ] = False,
    card: Annotated[bool, typer.Option("--card", help="Also write MODEL_CARD.md there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
    ] = False,
    source: SourceArguments,
) -> int:
    """Say what a drafter yields on held-out text, without an engine: tokens a round, by position.

    Exact but for rounding: the text is the model's own and its noise is known, so every chain
    that an engine would draft and keep on it is too. Without --text, --corpus or --data the text is
    what its training held out.
    """
    with needed_extras():
        from forerun.tools.doctor_drafter import drafter_path
        from forerun.train.drafters import as_data, expect_drafter, record_yields, write_card

        path = drafter_path(drafter, resolve_model(source.model))
        found = expect_drafter(path, source, rows, steps, threads)
        figures = {name: as_data(one) for name, one in found.items()}
        if record:
            record_yields(path, found)
        if card:
            write_card(path, source, figures)
    typer.echo(json.dumps(figures) if as_json else json.dumps(figures, indent=2))
    return 0
