"""The commands of `forerun train`; each body is a module beside this one, imported when it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from forerun.errors import BackendError
from forerun.tools.arguments import grouped

EXTRA_PACKAGES = {"torch": "torch", "matplotlib": "train"}

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
    """,
)


class Engine(StrEnum):
    """How a step runs: compiled is a third faster and takes a minute to start."""

    COMPILED = "compiled"
    EAGER = "eager"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeArguments:
    """The model; a size of 0 means the embedded family's own (target or drafter)."""

    hidden: Annotated[int, typer.Option(help="Width, a multiple of 64.")] = 0
    layers: Annotated[int, typer.Option(help="Number of layers.")] = 0
    heads: Annotated[int, typer.Option(help="Query heads of 64 dimensions.")] = 0
    kv_heads: Annotated[int, typer.Option(help="Key/value heads; divides --heads.")] = 0
    ffn: Annotated[int, typer.Option(help="Width of the feed-forward block.")] = 0
    start_from: Annotated[
        Path | None,
        typer.Option(help="Start from this trained model; --layers may be more than its."),
    ] = None
    embedding_from: Annotated[
        Path | None,
        typer.Option(help="Start with this model's embedding, projected to the width."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonArguments:
    """What is learned."""

    distill_from: Annotated[
        Path | None,
        typer.Option(help="Train a drafter that imitates this model.", show_default=False),
    ] = None
    exit_layer: Annotated[
        int, typer.Option(help="Also learn to say the next token after this layer.")
    ] = 0
    exit_weight: Annotated[float, typer.Option(help="Weight of that exit's loss.")] = 0.3
    exit_hard_share: Annotated[
        float, typer.Option(help="Share of it learned from the text, not from the last layer.")
    ] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArguments:
    """How a step is made."""

    rows: Annotated[int, typer.Option(help="Windows a step.")] = 12
    row_len: Annotated[int, typer.Option(help="Tokens a window; some steps have longer.")] = 512
    learning_rate: Annotated[float, typer.Option(help="Peak rate; warmup, flat, decay.")] = 4e-3
    decay_share: Annotated[float, typer.Option(help="Share of the budget spent decaying.")] = 0.35
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order.")] = 0
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
    threads: Annotated[int, typer.Option(help="Cores to use; 0 is all.")] = 0
    engine: Annotated[Engine, typer.Option(help="How a step runs.")] = Engine.COMPILED


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
    with _extras():
        from forerun.train.recipes import build_corpus

        build_corpus(out, roots=root, held_out=held_out, vocab=vocab)
    return 0


@train_app.command()
@grouped
def lm(
    corpus: _Corpus,
    out: _Out,
    minutes: Annotated[float, typer.Option(help="Training time; a pause does not count.")] = 75.0,
    *,
    lesson: LessonArguments,
    shape: ShapeArguments,
    step: StepArguments,
) -> int:
    """Train a language model, or with --distill-from a drafter; stop and repeat it to continue.

    OUT becomes an ordinary checkpoint directory when the time is up (or at SIGTERM); OUT/run keeps
    what is needed to continue. With --distill-from a quarter of the time goes into text sampled
    from the target, which is half of what the drafter then learns from. With --exit-layer the
    model learns to be its own drafter, exit:LAYER, and its config.json says after which layer.
    """
    with _extras():
        from forerun.train.recipes import train_lm

        train_lm(corpus, out, minutes, lesson=lesson, shape=shape, step=step)
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
    with _extras():
        from forerun.train.recipes import evaluate_family, write_family_card

        measured = evaluate_family(model, corpus)
        if card:
            write_family_card(model, corpus, measured)
    typer.echo(json.dumps(measured) if as_json else json.dumps(measured, indent=2))
    return 0


@contextmanager
def _extras() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRA_PACKAGES.get(error.name or "")
        if extra is None:
            raise
        raise BackendError(
            f"training needs the package {error.name}: pip install 'forerun[{extra}]'"
        ) from None
