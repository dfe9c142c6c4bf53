"""Other engines on the same checkpoint, prompts, token counts and cores as forerun, in turns.

    python benchmarks/peers install                          # a virtual environment each
    python benchmarks/peers --model DIR --json OUT.json --picture OUT.png
    python benchmarks/peers --model DIR --prompts FILE.jsonl --limit 6 --threads 1,2 --lengths 2,4
    python benchmarks/peers --model DIR --peers transformers,llamacpp --max-tokens 64 --repeat 3
    python benchmarks/peers --model DIR --peers vllm --forerun 'dspark tree:auto' 'eagle3 tree:8'

Greedy decoding, end-of-text ignored, so that all write exactly `--max-tokens` tokens. Prompts are
spread over the suite's categories. First the number of threads and the draft lengths of each engine
are chosen on a few prompts; what was chosen and all that was tried is in the JSON. Time to the
first token is left out of every rate. An engine that is not installed or fails becomes a row that
says why. Text is compared with forerun's and reported: engines that round differently part ways at
near ties.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import FrameType

import environments
from catalogue import DRAFTERS, PEERS, SWEPT_LENGTHS, Peer, forerun
from child import Child
from entrants import Plan
from environments import Environments, PeerError
from race import Race
from report import draw, rows_of, show
from rich.console import Console

from forerun.backends.memory import available_bytes
from forerun.errors import ForerunError, OptionError
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.tools import machine
from forerun.tools.prompt_files import ALL, Prompt, read_prompts, read_suite, spread

DRIVERS = Path(__file__).resolve().parent / "drivers"
MEMORY_SHARE = 0.6  # of what is free now, for all engines of a group together
SPECULATIONS = ("auto auto", "lookup auto", "lm auto", "lm chain")
WIDTH = 120  # of the table where there is no terminal
SLACK_TOKENS = 64  # room for drafts beyond the last token


def main() -> int:
    options = _arguments()
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        peers = _peers(options.peers)
        places = Environments(options.environments.expanduser().resolve())
        if options.action == "install":
            return _install(peers, places, console)
        return _measure(options, peers, places, console)
    except KeyboardInterrupt:
        console.print("interrupted; every engine's process was ended")
        return 130
    except ForerunError as error:
        console.print(f"peers: {error}")
        return 1


def _install(peers: Sequence[Peer], places: Environments, console: Console) -> int:
    failures = 0
    for peer in peers:
        console.print(f"{peer.title}: installing")
        try:
            places.install(peer)
        except PeerError as error:
            failures += 1
            console.print(f"{peer.title}: {error}")
    return 1 if failures else 0


def _measure(
    options: argparse.Namespace, peers: Sequence[Peer], places: Environments, console: Console
) -> int:
    if options.picture is not None and find_spec("matplotlib") is None:
        raise OptionError("--picture needs matplotlib: install it, or leave the option out")
    plan, prompts = _plan(options, places)

    def open_child(peer: Peer, seat: str, threads: int) -> Child:
        command = [str(places.python(peer)), str(DRIVERS / peer.driver)]
        variables = {key: text.format(threads=threads) for key, text in peer.environment.items()}
        return Child(command, variables, places.log(seat))

    with console.status("") as status:
        race = Race(plan, open_child, status.update if console.is_terminal else console.print)
        race.run(forerun(tuple(options.forerun)), peers)
    report = {
        "what": "peers",
        "command": "python benchmarks/peers " + shlex.join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "cpu_flags": machine.cpu_flags(),
        "date": date.today().isoformat(),
        "model": str(options.model),
        "drafters": {kind: str(path) for kind, path in plan.drafters.items()},
        "num_prompts": len(prompts),
        "prompts": [
            {"name": prompt.name, "category": prompt.category, "num_tokens": len(tokens)}
            for prompt, tokens in zip(prompts, plan.prompts, strict=True)
        ],
        "max_tokens": plan.max_tokens,
        "repeat": plan.repeat,
        "temperature": options.temperature,
        "floor_tokens_per_s": 1 / median(race.floors_s) if race.floors_s else None,
        "swept": {
            "threads": list(plan.threads),
            "num_draft": list(plan.lengths),
            "num_prompts": len(plan.trial_prompts),
            "max_tokens": min(plan.trial_tokens, plan.max_tokens),
        },
        "rows": rows_of(race.outcomes, [prompt.category for prompt in prompts]),
    }
    show(report, Console() if sys.stdout.isatty() else Console(width=WIDTH))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.picture is not None:
        draw(report, options.picture)
    return 0


def _plan(options: argparse.Namespace, places: Environments) -> tuple[Plan, list[Prompt]]:
    """What to run, and the prompts it has as tokens."""
    if options.temperature != 0:
        raise OptionError(
            f"--temperature {options.temperature} cannot be compared: engines draw different"
            " random numbers; use 0"
        )
    model = resolve_model(str(options.model))
    spec = read_spec(model)
    tokenizer = load_tokenizer(model, spec)
    there = read_prompts(options.prompts) if options.prompts else read_suite(options.suite)
    room = spec.max_position - options.max_tokens - SLACK_TOKENS
    tokens = {one: tokenizer.encode(one.text) for one in spread(there, options.limit)}
    chosen = [one for one in tokens if len(tokens[one]) <= room]
    if not chosen:
        raise OptionError(
            f"no prompt leaves room for {options.max_tokens} tokens in the {spec.max_position}"
            " positions of the model: ask for fewer with --max-tokens, or for shorter prompts"
        )
    longest = max(len(tokens[one]) for one in chosen) + options.max_tokens + SLACK_TOKENS
    plan = Plan(
        model=model,
        drafters=_drafters(options.drafter_dir, model),
        made=places.workspace(_name_of(model)),
        prompts=[tokens[one] for one in chosen],
        max_tokens=options.max_tokens,
        repeat=options.repeat,
        context=min(-(-longest // 256) * 256, spec.max_position),
        threads=options.threads or _thread_counts(machine.num_cores()),
        lengths=options.lengths,
        trial_tokens=options.trial_tokens,
        load_timeout_s=options.load_timeout_s,
        timeout_s=options.timeout_s,
        memory_bytes=int(available_bytes() * MEMORY_SHARE),
    )
    return plan, chosen


def _drafters(asked: Path | None, model: Path) -> dict[str, Path]:
    """Drafters by kind: an `lm` checkpoint, or those below a directory.

    Raises:
        OptionError: one was asked for that is not there.
    """
    folder = asked or model / "drafters"
    if (folder / "config.json").is_file():
        return {"lm": folder}
    there = {kind: folder / kind for kind in DRAFTERS if (folder / kind / "config.json").is_file()}
    if asked is not None and not there:
        raise OptionError(
            f"--drafter-dir {asked} has no config.json, nor has {', '.join(DRAFTERS)} below it:"
            " name a checkpoint or a directory of drafters"
        )
    return there


def _name_of(model: Path) -> str:
    """One folder a version of a model: its path and when its weights were written."""
    written = [path.stat().st_mtime_ns for path in sorted(model.glob("*.safetensors"))]
    return hashlib.sha256(f"{model} {written}".encode()).hexdigest()[:12]


def _thread_counts(num_cores: int) -> list[int]:
    """Powers of two up to the number of cores, and that number."""
    return sorted({2**n for n in range(num_cores.bit_length())} | {num_cores})


def _peers(names: str) -> list[Peer]:
    known = {peer.name: peer for peer in PEERS}
    if names == "all":
        return list(PEERS)
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise OptionError(f"--peers {','.join(unknown)} not known; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("action", nargs="?", choices=("run", "install"), default="run")
    add("--model", default=EMBEDDED_NAME, help="a checkpoint directory")
    add("--drafter-dir", type=Path, help="an lm, or lm, dspark, … below it; default MODEL/drafters")
    add("--suite", default=ALL, help="categories of the suite, by commas; default all")
    add("--prompts", type=Path, help='JSONL with a "prompt" a line, not the suite')
    add("--max-tokens", type=int, default=128)
    add("--temperature", type=float, default=0.0, help="only 0 can be compared")
    add("--limit", type=int, default=18, help="prompts, spread over all there are; 0: all")
    add("--repeat", type=int, default=2)
    add("--peers", default="all", help=f"all, or some of {','.join(one.name for one in PEERS)}")
    add("--forerun", nargs="*", default=list(SPECULATIONS), metavar="'DRAFTER SHAPE'",
        help="speculations of forerun; `chain` alone is swept")  # fmt: skip
    add("--threads", type=_counts, help="thread counts to choose from; default 1, 2, 4, … cores")
    add("--lengths", type=_counts, default=list(SWEPT_LENGTHS), help="draft lengths to choose from")
    add("--trial-tokens", type=int, default=24, help="tokens of a run that chooses a setting")
    add("--environments", type=Path, default=environments.DEFAULT)
    add("--load-timeout-s", type=float, default=900.0)
    add("--timeout-s", type=float, default=300.0)
    add("--json", type=Path, help="write everything that was measured")
    add("--picture", type=Path, help="write a bar chart (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
