"""The commands of `forerun train`; each body is a module beside this one, imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from forerun.tools.arguments import grouped
from forerun.train.arguments import LessonArguments, ShapeArguments, StepArguments
from forerun.train.drafter_cli import add_drafter_commands
from forerun.train.extras import needed_extras
from forerun.train.small_arguments import SmallArguments, corpus_alone

train_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Make a small model of Python code and its drafter from what is installed here.

    \b
    The whole way, about three hours on two cores
      forerun train corpus --out corpus
      forerun train lm --corpus corpus --out shallow --layers 6 --minutes 75
      forerun train lm --corpus corpus --out code --start-from shallow --minutes 75 --seed 1
      forerun train lm --corpus corpus --out code/drafters/lm --distill-from code --minutes 20
      forerun train evaluate code --corpus corpus --card

    \b
    A drafter for a model of yours, which reads that model's features
      forerun train text --model DIR --data prompts.jsonl --out text --minutes 15
      forerun train dspark --model DIR --text text --out DIR/drafters/dspark --minutes 60

    \b
    A small model of that model's vocabulary, which drafts by itself
      forerun train lm --model DIR --text text --out DIR/drafters/lm --minutes 60
    """,
)

_Corpus = Annotated[Path, typer.Option(help="Directory that `forerun train corpus` wrote.")]
_Out = Annotated[Path, typer.Option(help="Directory to write to.")]


@train_app.command()
def corpus(
    out: _Out,
    root: Annotated[
        list[Path] | None,
        typer.Option(help="A library folder to read; repeat it. Default: every Python found."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="A package to hold out, python/NAME in the standard library; repeat it."),
    ] = None,
    vocab: Annotated[int, typer.Option(help="Tokenizer entries, special tokens included.")] = 4096,
) -> int:
    """Collect permissively licensed Python source on this machine; learn a tokenizer from it.

    Reads the standard library and installed distributions whose metadata declare MIT, BSD, Apache,
    PSF or a similar licence. Nothing is downloaded. Writes train.jsonl, heldout.jsonl, a manifest
    with every package and its licence, the tokenizer, and both parts as token ids.
    """
    with needed_extras():
        from forerun.train.recipes import build_corpus

        build_corpus(out, roots=root, held_out=held_out, vocab=vocab)
    return 0


@train_app.command()
@grouped
def lm(  # noqa: PLR0913  the options of one command
    out: _Out,
    minutes: Annotated[float, typer.Option(help="Training time; a pause does not count.")] = 75.0,
    corpus: Annotated[
        Path | None, typer.Option(help="Directory that `forerun train corpus` wrote.")
    ] = None,
    *,
    small: SmallArguments,
    lesson: LessonArguments,
    shape: ShapeArguments,
    step: StepArguments,
) -> int:
    """Train a language model, or with --model the drafter of yours; stop and repeat it to continue.

    OUT becomes an ordinary checkpoint directory when the time is up (or at SIGTERM); OUT/run keeps
    what is needed to continue. With --model it is a small model of that one's vocabulary, about a
    twentieth of its bytes, which learns from the text that it writes (--data, --text, --corpus) and
    drafts as lm:OUT. With --distill-from it learns from that model's laws too; of the embedded
    family, without --model, a quarter of the time then goes into text sampled from it, half of what
    the drafter learns from. With --exit-layer the model learns to be its own drafter, exit:LAYER,
    and its config.json says after which layer.
    """
    with needed_extras():
        if small.model is None:
            from forerun.train.recipes import train_lm

            alone = corpus_alone(corpus, small)
            train_lm(alone, out, minutes, lesson=lesson, shape=shape, step=step)
        else:
            from forerun.train.lesson import Job
            from forerun.train.small_model import train_small

            job = Job("lm", out, minutes, small.source(corpus), small.watched(), step)
            typer.echo(train_small(job, lesson, shape).sentence, err=True)
    return 0


@train_app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, drafter in drafters/lm.")],
    corpus: _Corpus,
    *,
    card: Annotated[bool, typer.Option("--card", help="Also write MODEL/MODEL_CARD.md.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
    ] = False,
) -> int:
    """Measure a model on held-out packages: bits per byte, completions that parse, agreement.

    Bits per byte stand beside bz2 and xz on the same bytes. A completion of a function header
    parses if the header and at least 80 % of the generated tokens are valid Python.
    """
    with needed_extras():
        from forerun.train.recipes import evaluate_family, write_family_card

        measured = evaluate_family(model, corpus)
        if card:
            write_family_card(model, corpus, measured)
    typer.echo(json.dumps(measured) if as_json else json.dumps(measured, indent=2))
    return 0


add_drafter_commands(train_app)
