"""What we export, run by vLLM: does it load, are tokens the same, are as many drafts kept.

    python benchmarks/peers install --peers vllm                  # once
    python benchmarks/peers/exports.py                            # the embedded drafters
    python benchmarks/peers/exports.py OUT --json benchmarks/results/exports.json

Each drafter is written in every layout that can say it and given to vLLM with all the tokens that
it proposes at once; vLLM's own plain decoding says what the text must be. forerun drafts from the
same files, on the same prompts, as many tokens. Greedy, end-of-text ignored. The round that read
the prompt is left out; the last one counts as far as it was wanted. A layout that vLLM does not
take becomes a row with its words. DFlash runs twice: as installed, and with the norm of the keys of
its context put right, which vLLM 0.32 for CPUs computes with the first layer's weights in all.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import environments
from catalogue import PEERS
from child import Child
from environments import Environments, PeerError

from forerun import Engine, SamplingParams, Speculation
from forerun.errors import ForerunError, OptionError
from forerun.models.drafter_layouts import DEEPSPEC, EAGLE3, SPECULATORS, Z_LAB
from forerun.models.drafter_spec import BlockSpec, DrafterSpec
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.tools import machine
from forerun.tools.bench_decode import run_of
from forerun.tools.prompt_files import ALL, read_suite, spread

DRIVER = Path(__file__).resolve().parent / "drivers" / "vllm_driver.py"
EMBEDDED = ("dflash", "dspark", "eagle3")
EAGLE_DRAFTED = 5  # as its training unrolls it
SLACK_TOKENS = 64  # room for drafts beyond the last token


@dataclass(frozen=True, slots=True)
class Export:
    """A drafter in one layout: its files, its kind and how many tokens it proposes at once."""

    name: str
    kind: str
    layout: str
    directory: Path
    num_draft: int


@dataclass(frozen=True, slots=True)
class Written:
    """What an engine wrote for one prompt; `kept` are the tokens of each round but the first."""

    token_ids: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """On what all of them are run; `made` is where exports are written."""

    model: Path
    made: Path
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    context: int
    threads: int
    dtype: str
    is_eager: bool


def main() -> int:
    """Write the exports, run them, print a line each, write the file."""
    options = _arguments()
    try:
        report = _report(options)
    except ForerunError as error:
        print(f"exports: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _report(options: argparse.Namespace) -> dict[str, Any]:
    places = Environments(options.environments.expanduser().resolve())
    task = _task(options, places)
    exports = [one for path in _drafters(options.drafters, task) for one in written(path, task)]
    versions, plain = _by_vllm(None, task, places)
    rows = []
    for export in exports:
        rows.append(_row(export, plain, task, places))
        print(sentence(rows[-1]), flush=True)
    return {
        "what": "exports",
        "date": date.today().isoformat(),
        "command": "python benchmarks/peers/exports.py " + shlex.join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "model": options.model,
        "versions": versions["versions"] | {"forerun": machine.forerun_version()},
        "num_prompts": len(task.prompts),
        "max_tokens": task.max_tokens,
        "dtype": task.dtype,
        "rows": rows,
    }


def _task(options: argparse.Namespace, places: Environments) -> Task:
    model = resolve_model(options.model)
    spec = read_spec(model)
    tokenizer = load_tokenizer(model, spec)
    room = spec.max_position - options.max_tokens - SLACK_TOKENS
    tokens = [tokenizer.encode(one.text) for one in spread(read_suite(ALL), options.limit)]
    prompts = [one for one in tokens if len(one) <= room]
    longest = max(map(len, prompts)) + options.max_tokens + SLACK_TOKENS
    return Task(
        model=model,
        made=places.workspace("exports"),
        prompts=prompts,
        max_tokens=options.max_tokens,
        context=min(-(-longest // 256) * 256, spec.max_position),
        threads=options.threads,
        dtype=options.dtype,
        is_eager=options.eager,
    )


def _drafters(asked: Sequence[Path], task: Task) -> list[Path]:
    """The named ones, or those beside the model."""
    if asked:
        return list(asked)
    beside = [task.model / "drafters" / kind for kind in EMBEDDED]
    there = [path for path in beside if (path / "config.json").is_file()]
    if not there:
        raise OptionError(f"{task.model} has none of the drafters {', '.join(EMBEDDED)}: name one")
    return there


def written(drafter: Path, task: Task) -> Iterator[Export]:
    """The drafter in each layout that can say it, below `made`."""
    from forerun.train.drafter_export import load_drafter, write_drafter

    target: ModelSpec = read_spec(task.model)
    module = load_drafter(drafter, target)
    for layout in layouts_of(module.spec):
        directory = task.made / f"{drafter.name}-{layout}"
        write_drafter(
            module,
            directory,
            layout=layout,
            tokenizer_from=task.model,
            verifier=str(task.model),
            copied=open_checkpoint(task.model) if layout == DEEPSPEC else None,
        )
        yield Export(
            drafter.name, kind_of(module.spec), layout, directory, num_drafted(module.spec)
        )


def layouts_of(spec: DrafterSpec) -> tuple[str, str]:
    """The layouts that can say such a drafter, the one of its authors first."""
    if not isinstance(spec, BlockSpec):
        return (EAGLE3, SPECULATORS)
    return (DEEPSPEC if spec.is_shifted else Z_LAB, SPECULATORS)


def kind_of(spec: DrafterSpec) -> str:
    """What vLLM and forerun call its method; vLLM knows shifted slots only by the name DSpark."""
    if not isinstance(spec, BlockSpec):
        return "eagle3"
    return "dspark" if spec.is_shifted else "dflash"


def num_drafted(spec: DrafterSpec) -> int:
    """All that it proposes at once: vLLM then fills the block that it was trained on."""
    return spec.max_drafted if isinstance(spec, BlockSpec) else EAGLE_DRAFTED


def _by_vllm(
    export: Export | None, task: Task, places: Environments, *, is_mended: bool = False
) -> tuple[dict[str, Any], list[Written]]:
    """vLLM's answer to loading, its counts in it, and the texts; plain without an export.

    `is_mended`: with a fault of its kernels for CPUs put right (`drivers/vllm_driver.py`).

    Raises:
        PeerError: it does not take the export, or failed on the way.
    """
    [peer] = [one for one in PEERS if one.name == "vllm"]
    variables = {key: text.format(threads=task.threads) for key, text in peer.environment.items()}
    seat = "exports-plain" if export is None else f"exports-{export.directory.name}"
    mode = "plain" if export is None else export.kind
    options: dict[str, Any] = {"dtype": task.dtype, "is_eager": task.is_eager, "counts": True}
    options["norms_each_layer"] = is_mended
    if export is not None:
        options["num_draft"] = export.num_draft
    question = {
        "do": "load",
        "model": str(task.model),
        "drafter": None if export is None else str(export.directory),
        "workspace": str(task.made),
        "threads": task.threads,
        "context": task.context,
        "mode": mode,
        "options": options,
    }
    asked = {"do": "generate", "mode": mode, "options": {}, "max_tokens": task.max_tokens}
    with Child([str(places.python(peer)), str(DRIVER)], variables, places.log(seat)) as child:
        loaded = child.ask(question, 900.0)
        runs = [child.ask({**asked, "prompt": list(prompt)}, 300.0) for prompt in task.prompts]
        if export is not None:
            loaded |= child.ask({"do": "counts"}, 60.0)
    return loaded, [
        Written(tuple(run["token_ids"]), tuple(num for num, _ in run["arrivals"])) for run in runs
    ]


def _by_forerun(export: Export, task: Task) -> list[Written]:
    speculation = Speculation(f"{export.kind}:{export.directory}", f"chain:{export.num_draft}")
    params = SamplingParams(temperature=0.0, max_tokens=task.max_tokens, ignore_eos=True)
    with Engine(task.model, speculate=speculation, threads=task.threads) as engine:
        runs = [run_of(engine.generate(list(prompt), params)[0]) for prompt in task.prompts]
    return [
        Written(tuple(run.token_ids), tuple(one.num_tokens for one in run.rounds)) for run in runs
    ]


def _row(
    export: Export, plain: Sequence[Written], task: Task, places: Environments
) -> dict[str, Any]:
    own = _by_forerun(export, task)
    row: dict[str, Any] = {
        "drafter": export.name,
        "kind": export.kind,
        "layout": export.layout,
        "num_draft": export.num_draft,
    }
    try:
        loaded, drafted = _by_vllm(export, task, places)
    except PeerError as error:
        return row | {"reason": str(error), "forerun": tokens_per_round(own)}
    row |= {"reason": None, **compared(plain, drafted, own, loaded)}
    if export.kind != "dflash":
        return row
    loaded, drafted = _by_vllm(export, task, places, is_mended=True)
    return row | {"mended": compared(plain, drafted, own, loaded)}


def compared(
    plain: Sequence[Written],
    drafted: Sequence[Written],
    own: Sequence[Written],
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Figures of one export; acceptance also where all three wrote one text, prompt by prompt."""
    both = list(zip(plain, drafted, own, strict=True))
    same = [here for here in both if len({one.token_ids for one in here}) == 1]
    return {
        "num_same": sum(one.token_ids == other.token_ids for one, other, _ in both),
        "first_differences": [first_difference(one, other) for one, other, _ in both],
        "vllm": tokens_per_round(drafted),
        "vllm_reported": 1 + counts["num_accepted"] / max(1, counts["num_drafts"]),
        "reached": [one / max(1, counts["num_drafts"]) for one in counts["num_by_slot"]],
        "forerun": tokens_per_round(own),
        "num_prompts_of_one_text": len(same),
        "vllm_of_one_text": tokens_per_round([one for _, one, _ in same]),
        "forerun_of_one_text": tokens_per_round([one for *_, one in same]),
    }


def tokens_per_round(texts: Sequence[Written]) -> float | None:
    """Over all rounds of all texts; None where there is no round."""
    num_rounds = sum(len(one.kept) for one in texts)
    return sum(sum(one.kept) for one in texts) / num_rounds if num_rounds else None


def first_difference(one: Written, other: Written) -> int | None:
    """Where two texts part, None if they do not."""
    pairs = enumerate(zip(one.token_ids, other.token_ids, strict=True))
    return next((at for at, (a, b) in pairs if a != b), None)


def sentence(row: Mapping[str, Any]) -> str:
    """A row for people."""
    start = f"{row['drafter']} as {row['layout']}, {row['num_draft']} tokens a draft:"
    if row["reason"] is not None:
        words = " ".join(row["reason"].split())
        return f"{start} vLLM does not run it: {words} (forerun: {row['forerun']:.2f})"
    text = (
        f"{start} {row['num_same']} of {len(row['first_differences'])} texts as plain;"
        f" {row['vllm']:.2f} tokens a round in vLLM ({row['vllm_reported']:.2f} by its own"
        f" counters), {row['forerun']:.2f} in forerun"
    )
    if row["num_prompts_of_one_text"]:
        text += (
            f"; on the {row['num_prompts_of_one_text']} texts that all wrote alike"
            f" {row['vllm_of_one_text']:.2f} and {row['forerun_of_one_text']:.2f}"
        )
    if "mended" in row:
        text += f"; {row['mended']['vllm']:.2f} in vLLM with each layer's own norm of keys"
    return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("drafters", nargs="*", type=Path, help="drafters, or trainings; default those of the model")
    add("--model", default=EMBEDDED_NAME)
    add("--limit", type=int, default=6, help="prompts, spread over the suite")
    add("--max-tokens", type=int, default=96)
    add("--threads", type=int, default=1)
    add("--dtype", default="bfloat16", help="of vLLM; near ties are rarer in float32")
    add("--eager", action="store_true", help="vLLM without compiling: loads in less time")
    add("--environments", type=Path, default=environments.DEFAULT)
    add("--json", type=Path, help="write everything that was counted")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
