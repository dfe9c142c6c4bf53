"""What commands share: the options of the command line, each written once, as frozen values.

A command that takes `EngineArguments` has one option for each of its fields; see `grouped`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from forerun.errors import OptionError
from forerun.models.resolve import EMBEDDED_NAME

if TYPE_CHECKING:
    from forerun.engine.engine import Engine
    from forerun.engine.patterns import Pattern
    from forerun.engine.witness import Witness
    from forerun.options import SamplingParams, Speculation

_LANE = re.compile(r"(?P<name>target|draft)=(?P<first>\d{1,4})(-(?P<last>\d{1,4}))?")
_MODEL, _SPECULATION, _SAMPLING = "Model and machine", "Speculation", "Sampling"
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_GRAMMAR = "What the text must be (extra grammar)"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArguments:
    """Which model runs where, and how it speculates."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="A directory, org/name, or forerun-code.", rich_help_panel=_MODEL
        ),
    ] = EMBEDDED_NAME
    backend: Annotated[
        str, typer.Option(help="auto, native or torch (extra torch).", rich_help_panel=_MODEL)
    ] = "auto"
    device: Annotated[
        str, typer.Option(help="cpu, or cuda with --backend torch.", rich_help_panel=_MODEL)
    ] = "cpu"
    threads: Annotated[
        int | None,
        typer.Option(help="Cores to use; all allowed ones if not given.", rich_help_panel=_MODEL),
    ] = None
    lanes: Annotated[
        str | None,
        typer.Option(
            help="Cores of target and drafter: target=0-2,draft=3; a schedule that works ahead"
            " takes the last core for the drafter if not given.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    isa: Annotated[
        str,
        typer.Option(
            help="Instruction path to force; all give the same bits but float32-portable, a second"
            " arithmetic without bf16: slow, to compare with others.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"
    drafter: Annotated[
        str,
        typer.Option(
            "--drafter",
            "-d",
            help="auto, none, lookup (in the text) or lookup:DIR (in a corpus), prediction:FILE;"
            " lm, dflash, dspark, eagle3 (the model's own, or one at :DIR); exit:LAYER;"
            " router(D,D,…) of several, nested(D,S,R) of a drafter for the drafter: what may come"
            " next?",
            rich_help_panel=_SPECULATION,
        ),
    ] = "auto"
    shape: Annotated[
        str,
        typer.Option(
            help="auto, chain:K of K tokens or chain:auto, tree:N of N tokens or tree:auto,"
            " tree:3x2x1 (children by level), tree:FILE.json; trees also with :top or :likeliest"
            " (siblings): which candidates are verified?",
            rich_help_panel=_SPECULATION,
        ),
    ] = "auto"
    rule: Annotated[
        str,
        typer.Option(
            help="auto or match (keeps the text as it is); rejection, block, traversal, kseq (keep"
            " its law): how far do we agree?",
            rich_help_panel=_SPECULATION,
        ),
    ] = "auto"
    schedule: Annotated[
        str,
        typer.Option(
            help="auto, sequential, parallel (while the target verifies, drafts for the case that"
            " all is accepted and for one refusal), ahead or ahead:B (for the B likeliest"
            " outcomes), ahead:B:C (with damped draws): what is prepared before we know?",
            rich_help_panel=_SPECULATION,
        ),
    ] = "auto"

    def speculation(self) -> Speculation:
        """The four answers as the engine takes them."""
        from forerun.options import Speculation

        return Speculation(self.drafter, self.shape, self.rule, self.schedule)

    def cores(self) -> dict[str, tuple[int, ...]]:
        """Core numbers by lane, as far as they were given.

        Raises:
            OptionError: no lanes, or lanes that share a core where drafting is to be beside
                verification.
        """
        lanes = parse_lanes(self.lanes) if self.lanes is not None else {}
        schedule = self.speculation().composition().schedule.kind
        shared = sorted({*lanes.get("target", ())} & {*lanes.get("draft", ())})
        if shared and schedule in ("parallel", "ahead"):
            raise OptionError(
                f"--lanes {self.lanes}: both lanes have core {shared[0]}, where one would wait for"
                f" the other, and --schedule {schedule} drafts while the target verifies: give each"
                " lane cores of its own, as target=0,draft=1, or use --schedule sequential"
            )
        return lanes

    def open(
        self,
        speculation: Speculation | None = None,
        witness: Witness | None = None,
        cores: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Engine:
        """The engine that these arguments describe, or one that speculates otherwise or elsewhere.

        Raises:
            ForerunError: a model, option or machine that does not fit, as a sentence.
        """
        from forerun.engine.engine import Engine

        lanes = self.cores() if cores is None else cores
        return Engine(
            self.model,
            speculate=speculation or self.speculation(),
            backend=self.backend,
            device=self.device,
            isa=self.isa,
            target_cores=lanes.get("target"),
            draft_cores=lanes.get("draft"),
            threads=self.threads,
            witness=witness,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingArguments:
    """How tokens are chosen and when to stop."""

    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="At most so many.", rich_help_panel=_SAMPLING)
    ] = 256
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 is greedy.", rich_help_panel=_SAMPLING)
    ] = 0.0
    top_p: Annotated[float, typer.Option(help="1 is off.", rich_help_panel=_SAMPLING)] = 1.0
    top_k: Annotated[int, typer.Option(help="0 is off.", rich_help_panel=_SAMPLING)] = 0
    min_p: Annotated[float, typer.Option(help="0 is off.", rich_help_panel=_SAMPLING)] = 0.0
    seed: Annotated[
        int | None,
        typer.Option(help="Same seed, same text; drawn if absent.", rich_help_panel=_SAMPLING),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Stop before this text; may be repeated.", rich_help_panel=_SAMPLING),
    ] = None
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Go on after end of text.", rich_help_panel=_SAMPLING),
    ] = False

    def params(self) -> SamplingParams:
        """The checked parameters.

        Raises:
            OptionError: a value outside its range, with the range.
        """
        from forerun.options import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            ignore_eos=self.ignore_eos,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarArguments:
    """What a text must be, in one of the ways to say it."""

    json_schema: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|TEXT", help="JSON of this schema.", rich_help_panel=_GRAMMAR,
            show_default=False,
        ),
    ] = None  # fmt: skip
    json_object: Annotated[
        bool, typer.Option("--json-object", help="Any JSON object.", rich_help_panel=_GRAMMAR)
    ] = False
    lenient: Annotated[
        bool,
        typer.Option(
            "--lenient",
            help="Leave keywords of a schema that cannot be enforced unenforced.",
            rich_help_panel=_GRAMMAR,
        ),
    ] = False
    regex: Annotated[
        str | None,
        typer.Option(
            help="All of it matches this.", rich_help_panel=_GRAMMAR, show_default=False
        ),
    ] = None  # fmt: skip
    choice: Annotated[
        list[str] | None,
        typer.Option(
            help="One of these; to be repeated.", rich_help_panel=_GRAMMAR, show_default=False
        ),
    ] = None
    grammar: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of a grammar in llguidance's dialect of Lark.",
            rich_help_panel=_GRAMMAR, show_default=False,
        ),
    ] = None  # fmt: skip

    def pattern(self) -> Pattern | None:
        """The one that was asked for; None where none was.

        Raises:
            OptionError: two of them, or a file that cannot be read.
        """
        from forerun.engine.patterns import ANY_OBJECT, Pattern

        asked: dict[str, Pattern] = {}
        if self.json_schema is not None:
            asked["--json-schema"] = self._schema(self.json_schema)
        if self.json_object:
            asked["--json-object"] = ANY_OBJECT
        if self.regex is not None:
            asked["--regex"] = Pattern.regex(self.regex)
        if self.choice is not None:
            asked["--choice"] = Pattern.choice(self.choice)
        if self.grammar is not None:
            asked["--grammar"] = _lark(self.grammar)
        if len(asked) > 1:
            raise OptionError(f"{' and '.join(asked)}: a text can be of one kind only; give one")
        if self.lenient and self.json_schema is None:
            raise OptionError("--lenient is about --json-schema: give one, or leave it out")
        return next(iter(asked.values()), None)

    def _schema(self, asked: str) -> Pattern:
        """Of a schema as it stands on the command line, or in a file."""
        from forerun.engine.patterns import Pattern

        is_text = asked.lstrip()[:1] in ("{", "")
        text = asked if is_text else _read("--json-schema", Path(asked))
        return Pattern.json_schema(text, is_lenient=self.lenient)


def _lark(path: Path) -> Pattern:
    from forerun.engine.patterns import Pattern

    text = _read("--grammar", path)
    if _GBNF_RULE.search(text):
        raise OptionError(
            f"--grammar {path}: this looks like GBNF, which is not read: write Lark, as in"
            ' start: "yes" | "no"'
        )
    return Pattern.lark(text)


def _read(option: str, path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise OptionError(f"{option} {path} cannot be read: {why}; name a file") from error


def parse_lanes(text: str) -> dict[str, tuple[int, ...]]:
    """`target=0-1,draft=1` as core numbers by lane.

    Raises:
        OptionError: another form, or a lane that is neither `target` nor `draft`.
    """
    found = [_LANE.fullmatch(part.strip()) for part in text.split(",")]
    lanes: dict[str, tuple[int, ...]] = {}
    for match in found:
        if match is None or match["name"] in lanes:
            raise OptionError(
                f"--lanes {text!r} must be like target=0-1,draft=1: each lane once, with a core or"
                " a range of cores"
            )
        first, last = int(match["first"]), int(match["last"] or match["first"])
        lanes[match["name"]] = tuple(range(first, last + 1))
    return lanes


def grouped(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command take frozen values as parameters: typer sees an option for each field."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        parameters += _options(group)

    @functools.wraps(command)
    def flat(**values: Any) -> int:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
