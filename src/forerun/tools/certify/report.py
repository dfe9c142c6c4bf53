"""A certificate for people and for files: what was certified, every check, what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forerun.engine.engine import Engine
from forerun.errors import OptionError
from forerun.tools import machine
from forerun.tools.certify.checks import Findings
from forerun.tools.certify.laws import NUM_RUNS
from forerun.tools.certify.same_tokens import SEEDS
from forerun.tools.certify.subject import Subject

_NOTE = (
    "A check whose name begins with `control:` tampers with something and passes when that was"
    " noticed. The same command with the same seed on the same numerics repeats the certificate;"
    " only how much fits the budget depends on the machine's speed."
)


@dataclass(frozen=True, slots=True)
class Head:
    """What a certificate is about."""

    facts: dict[str, Any]

    @staticmethod
    def of(subject: Subject, engine: Engine, names: Sequence[str]) -> Head:
        """Facts of the machine, the model and the choices made; `names` are the compositions."""
        asked = subject.engine
        return Head(
            {
                "version": machine.forerun_version(),
                "machine": machine.machine_name(),
                "model": asked.model,
                "backend": asked.backend,
                "device": asked.device,
                "isa": asked.isa,
                "threads": asked.threads,
                "lanes": asked.lanes,
                "numerics": engine.numerics,
                "exactness": engine.exactness,
                "speculations": list(names),
                "prompts": [prompt.name for prompt in subject.prompts],
                "seed": subject.seed,
                "token_seeds": subject.seeds(SEEDS),
                "law_seeds": [subject.seeds(1, 1)[0], subject.seeds(1, 1)[0] + NUM_RUNS - 1],
            }
        )

    def report(self, findings: Findings, wall_s: float) -> dict[str, Any]:
        """The one object of `--json`."""
        return {
            "passed": findings.passed,
            "checks": [one.as_dict() for one in findings.checks],
            "skipped": [one.as_dict() for one in findings.skipped],
            **self.facts,
            "wall_s": round(wall_s, 1),
        }


@contextmanager
def progress(num_steps: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on stderr, gone when done; nothing where stderr is no terminal.

    Yields what to call with the name of what is done now, and by how many steps to move on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("certify"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[at]}"),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=num_steps, at="")
        yield lambda text, steps: bar.update(task, advance=steps, at=text)


def show(report: dict[str, Any]) -> None:
    """The report as a table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(_title(report)), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("check", "", "what was found"):
        table.add_column(column)
    for one in report["checks"]:
        word = Text("pass", "green") if one["passed"] else Text("FAIL", "bold red")
        table.add_row(Text(one["name"]), word, Text(one["detail"]))
    for one in report["skipped"]:
        table.add_row(Text(one["name"]), Text("skip", "yellow"), Text(one["reason"]))
    console.print(table)
    console.print(Text(_verdict(report)), soft_wrap=True)


def write_markdown(path: Path, report: dict[str, Any]) -> None:
    """The report as a file.

    Raises:
        OptionError: the file cannot be written.
    """
    try:
        path.write_text(markdown(report), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"--report {path} cannot be written: {error.strerror}") from error


def markdown(report: dict[str, Any]) -> str:
    """Title, facts, checks and what was left out."""
    facts = {key: report[key] for key in report if key not in ("passed", "checks", "skipped")}
    lines = [
        f"# forerun certify: {report['model']}",
        "",
        f"**{_verdict(report)}**",
        "",
        *[f"- {key.replace('_', ' ')}: {_cell(value)}" for key, value in facts.items()],
        "",
        _NOTE,
        "",
        "| check | | what was found |",
        "|---|---|---|",
    ]
    for one in report["checks"]:
        word = "pass" if one["passed"] else "**FAIL**"
        lines.append(f"| {_cell(one['name'])} | {word} | {_cell(one['detail'])} |")
    lines += [
        f"| {_cell(one['name'])} | skipped | {_cell(one['reason'])} |" for one in report["skipped"]
    ]
    return "\n".join(lines) + "\n"


def _title(report: dict[str, Any]) -> str:
    return (
        f"{report['model']} · {report['numerics']}, {report['exactness']} · seed {report['seed']} ·"
        f" {report['machine']}"
    )


def _verdict(report: dict[str, Any]) -> str:
    failed = [one["name"] for one in report["checks"] if not one["passed"]]
    num, skipped = len(report["checks"]), len(report["skipped"])
    left = f", {skipped} skipped" if skipped else ""
    if failed:
        return f"failed: {len(failed)} of {num} checks{left}: {'; '.join(failed)}"
    return f"passed: {num} checks{left}, {report['wall_s']:g} s"


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
