"""What a drafter's files are, and whether they belong to a model: `forerun doctor MODEL DRAFTER`.

Opens both and compares; runs neither.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from forerun.composition import FEATURE_DRAFTERS, DrafterName
from forerun.engine.drafting import drafter_directory
from forerun.errors import OptionError
from forerun.models.drafter_files import DrafterCheckpoint, open_drafter
from forerun.models.drafter_layouts import UNTESTED
from forerun.models.drafter_match import compare, compare_copies
from forerun.models.drafter_notes import read_notes
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec, MarkovKind
from forerun.models.resolve import resolve_model
from forerun.models.weights import open_checkpoint
from forerun.tools.doctor_small import examine_small_model, is_language_model
from forerun.tools.terminal import write_json

# Of a block drafter, by its Markov head; a drafter's card says it in the same words.
WHAT_SLOTS_HEAR = {
    MarkovKind.VANILLA: "the token before it",
    MarkovKind.GATED: "the token before it, as far as its own state lets it",
    MarkovKind.RNN: "every token drafted before it, through a recurrent state",
}
_MARKS = {"passed": "ok", "warning": "note", "failed": "NO"}


def run(model: str, drafter: str | None, *, as_json: bool) -> int:
    """Print what was recognised and each check; 1 if the drafter is of another model."""
    if drafter is None:
        raise OptionError(
            "forerun doctor takes nothing, or a model and a drafter: name the drafter too"
        )
    directory = resolve_model(model)
    report = examine(directory, drafter_path(drafter, directory))
    if as_json:
        write_json(report)
    else:
        _show(report)
    return 0 if report["belongs"] else 1


def drafter_path(name: str, model_dir: Path) -> Path:
    """The directory of a name as `--drafter` takes it: a bare kind is the model's own drafter.

    A directory of that name comes first. `dspark:DIR` is DIR.

    Raises:
        ModelError: nothing is there.
    """
    kind, _, argument = name.partition(":")
    if kind in ("lm", *FEATURE_DRAFTERS) and not Path(name).is_dir():
        return drafter_directory(DrafterName(kind, argument or None), model_dir)
    return resolve_model(name)


def examine(model_dir: Path, drafter_dir: Path) -> dict[str, Any]:
    """Everything `doctor` knows about the two, as plain data.

    Raises:
        ModelError: one of them cannot be opened, or the drafter is of a kind not supported.
    """
    if is_language_model(drafter_dir):
        return examine_small_model(model_dir, drafter_dir)
    target = open_checkpoint(model_dir)
    drafter = open_drafter(drafter_dir, target.spec)
    findings = compare(drafter, target.spec, model_dir) + compare_copies(drafter, target)
    return {
        "model": str(model_dir),
        "drafter": str(drafter_dir),
        "layout": drafter.layout,
        "tested": UNTESTED,
        **_described(drafter),
        "checks": [asdict(one) for one in findings],
        "belongs": all(one.state != "failed" for one in findings),
    }


def _described(drafter: DrafterCheckpoint) -> dict[str, Any]:
    spec, notes = drafter.spec, read_notes(drafter.directory)
    both = {
        "kind": _kind(spec),
        "num_layers": spec.body.num_layers,
        "hidden": spec.body.hidden,
        "taps": list(spec.tap_layers),
        "num_bytes": drafter.num_bytes,
        "max_position": spec.body.max_position,
        "trained_positions": notes.trained_positions or "not recorded",
        "tokens_per_round": notes.sentence,
        "target_vocabulary": spec.target_vocab,
        "draft_vocabulary": spec.head_vocab,
        "token_map": spec.has_token_map,
    }
    if isinstance(spec, EagleSpec):
        return both | {
            "norm_before_residual": spec.norm_before_residual,
        }
    return both | {
        "block_len": spec.block_len,
        "max_drafted": spec.max_drafted,
        "slots": _slots(spec),
        "mask_id": spec.mask_id,
        "windows": list(spec.windows),
        "causal": list(spec.is_causal),
        "markov_rank": spec.markov_rank,
        "markov_head": _markov(spec),
        "confidence_head": spec.has_confidence,
    }


def _kind(spec: DrafterSpec) -> str:
    if isinstance(spec, EagleSpec):
        return "eagle3"
    return "dspark" if spec.markov_rank else "dflash"


def _slots(spec: BlockSpec) -> str:
    if spec.is_shifted:
        return "shifted: each says the token after its place"
    return "same position: each says the token at its place, the first says nothing"


def _markov(spec: BlockSpec) -> str:
    if not spec.markov_rank:
        return "none: a slot hears nothing of the draft"
    return f"{spec.markov_kind.value}: a slot hears {WHAT_SLOTS_HEAR[spec.markov_kind]}"


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{report['drafter']} for {report['model']}", soft_wrap=True, markup=False)
    console.print(f"layout {report['layout']}: {report['tested']}", markup=False)
    found = Table("recognised", "")
    skipped = ("model", "drafter", "layout", "tested", "checks", "belongs")
    for name, value in report.items():
        if name not in skipped:
            found.add_row(name.replace("_", " "), _text(value))
    checks = Table("check", "", "")
    for one in report["checks"]:
        checks.add_row(one["name"], _MARKS[one["state"]], one["sentence"])
    console.print(found)
    console.print(checks)
    verdict = "belongs to" if report["belongs"] else "was made for another model than"
    console.print(f"this drafter {verdict} {report['model']}", soft_wrap=True, markup=False)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
