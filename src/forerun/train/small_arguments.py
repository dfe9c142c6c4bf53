"""The options of `forerun train lm --model`, which makes a small model for one of the user's own.

Knows options only: `--model` says whose vocabulary and text it is, and without it there is none of
the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from forerun.errors import OptionError
from forerun.train.arguments import DraftArguments, SourceArguments, Thinking

_PANEL = "A small model for a model of yours"
_WATCHED = DraftArguments()  # the same defaults as of other drafters


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallArguments:
    """Whose small model it is, what it reads besides a corpus, and when to stop."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Make a drafter for this model, with its vocabulary: a directory or org/name.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prompts: text, or JSONL with `prompt` or `text`; repeat it.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Put prompts of --data through the chat template.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    thinking: Annotated[
        Thinking | None,
        typer.Option(
            help="With --chat: how the template has the model answer; default: its own way.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="What `forerun train text` wrote; else made first; repeat it.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_steps: Annotated[
        int,
        typer.Option(
            help="Train so many steps, however long they take; 0: for --minutes.",
            rich_help_panel=_PANEL,
        ),
    ] = 0
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after so many examinations without progress; 0: never.",
            rich_help_panel=_PANEL,
        ),
    ] = _WATCHED.patience
    examine_every: Annotated[
        float,
        typer.Option(help="Minutes between examinations on held-out text.", rich_help_panel=_PANEL),
    ] = _WATCHED.examine_every

    def source(self, corpus: Path | None) -> SourceArguments:
        """The same of a model that was named."""
        assert self.model is not None
        return SourceArguments(
            model=self.model,
            corpus=corpus,
            data=self.data,
            chat=self.chat,
            thinking=self.thinking,
            text=self.text,
        )

    def watched(self) -> DraftArguments:
        """When to look and when to stop; how drafts are learned is of no account here."""
        return DraftArguments(
            max_steps=self.max_steps, patience=self.patience, examine_every=self.examine_every
        )


def corpus_alone(corpus: Path | None, small: SmallArguments) -> Path:
    """The corpus of a training that is of no model.

    Raises:
        OptionError: there is none, or an option that is of a model's drafter.
    """
    if small != SmallArguments():
        raise OptionError(
            "--data, --chat, --thinking, --text, --max-steps, --patience and --examine-every are of"
            " a drafter for a model of yours: name it with --model"
        )
    if corpus is None:
        raise OptionError(
            "a model is trained from --corpus DIR, which `forerun train corpus` wrote, or made for"
            " one of yours: --model DIR with --data FILE, --text DIR or --corpus DIR"
        )
    return corpus
