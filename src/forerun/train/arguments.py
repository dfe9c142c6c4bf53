"""The options of `forerun train`, each written once, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from forerun.models.drafter_spec import MarkovKind


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


class Divergence(StrEnum):
    """How far a drafter is from its target."""

    KL = "kl"
    L1 = "l1"


class Weights(StrEnum):
    """How much each token of a draft counts."""

    DECAY = "decay"
    PACE = "pace"


class Thinking(StrEnum):
    """Whether a model thinks before it answers, where its chat template lets one choose."""

    ON = "on"
    OFF = "off"


class Layout(StrEnum):
    """Whose files are written: the last one is of EAGLE-3 only, the first two of block drafters."""

    Z_LAB = "z-lab"
    DEEPSPEC = "deepspec"
    SPECULATORS = "speculators"
    EAGLE3 = "eagle3"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceArguments:
    """Whose drafter it is, and what text it learns from."""

    model: Annotated[
        str, typer.Option("--model", "-m", help="A directory, org/name, or forerun-code.")
    ] = "forerun-code"
    corpus: Annotated[
        Path | None, typer.Option(help="Directory that `forerun train corpus` wrote.")
    ] = None
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Prompts: text, or JSONL with `prompt` or `text`; repeat it."),
    ] = None
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts of --data through the chat template.")
    ] = False
    thinking: Annotated[
        Thinking | None,
        typer.Option(
            help="With --chat: how the template has the model answer; default: its own way.",
            show_default=False,
        ),
    ] = None
    text: Annotated[
        list[Path] | None,
        typer.Option(help="What `forerun train text` wrote; else made first; repeat it."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockArguments:
    """The shape of a block drafter; its layers have the target's sizes."""

    layers: Annotated[int, typer.Option(help="Number of layers.")] = 3
    block: Annotated[int, typer.Option(help="Slots of a block.")] = 8
    taps: Annotated[int, typer.Option(help="Layers of the target that are read.")] = 3
    mask_id: Annotated[
        int | None, typer.Option(help="Token that stands for a slot; default: the padding token.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SparkArguments:
    """The shape of a DSpark drafter: a block drafter with a head on the token before."""

    layers: Annotated[int, typer.Option(help="Number of layers.")] = 3
    block: Annotated[int, typer.Option(help="Slots of a block; every one drafts.")] = 8
    taps: Annotated[int, typer.Option(help="Layers of the target that are read.")] = 3
    mask_id: Annotated[
        int | None, typer.Option(help="Token that stands for a slot; default: the padding token.")
    ] = None
    markov_rank: Annotated[int, typer.Option(help="Width of what a token says of the next.")] = 64
    markov_kind: Annotated[
        MarkovKind, typer.Option(help="Whether a slot hears the token before, or all of the draft.")
    ] = MarkovKind.RNN


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingArguments:
    """How a model makes text."""

    row_len: Annotated[int, typer.Option(help="Tokens a row, prompt included.")] = 512
    prompt_len: Annotated[int, typer.Option(help="Tokens of a prompt that are kept.")] = 96
    seed: Annotated[int, typer.Option(help="Another seed makes other text.")] = 0
    threads: Annotated[int, typer.Option(help="Cores to use; 0 is all.")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftArguments:
    """How drafting is learned, and when to stop."""

    anchors: Annotated[int, typer.Option(help="Drafts a window, at random places.")] = 48
    divergence: Annotated[Divergence, typer.Option(help="From the target's laws.")] = Divergence.KL
    weights: Annotated[Weights, typer.Option(help="Of a draft's tokens.")] = Weights.DECAY
    hard_share: Annotated[
        float, typer.Option(help="Share of the loss learned from the text, not from the laws.")
    ] = 0.1
    max_steps: Annotated[
        int, typer.Option(help="Train so many steps, however long they take; 0: for --minutes.")
    ] = 0
    dense_steps: Annotated[
        int, typer.Option(help="First steps, which learn the first token of a draft only.")
    ] = 150
    draft_vocab: Annotated[
        int,
        typer.Option(help="Draft so many tokens only, those most frequent in the text; 0: all."),
    ] = 0
    start_from: Annotated[
        Path | None, typer.Option(help="Start from this trained drafter of the same shape.")
    ] = None
    patience: Annotated[
        int, typer.Option(help="Stop after so many examinations without progress; 0: never.")
    ] = 8
    examine_every: Annotated[
        float, typer.Option(help="Minutes between examinations on held-out text.")
    ] = 4.0
    export: Annotated[
        Layout | None, typer.Option(help="Whose files to write to --out.", show_default=False)
    ] = None
