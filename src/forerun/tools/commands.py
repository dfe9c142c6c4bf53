"""The commands of `forerun`, as typer sees them; each body is a module beside this one.

Bodies are imported when their command runs: `forerun generate` must not pay for a table library.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from forerun.tools.arguments import EngineArguments, GrammarArguments, SamplingArguments, grouped
from forerun.tools.bench_serve_options import bench_serve
from forerun.tools.serve_options import ServeArguments
from forerun.tools.trace_page import trace_page

_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
]
_Prompts = Annotated[
    Path | None,
    typer.Option(help="JSONL file, one object with a `prompt` key a line.", show_default=False),
]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(
    no_args_is_help=True, help="Measure this machine: every figure with its floor or its baseline."
)
app.add_typer(bench, name="bench")
trace_app = typer.Typer(no_args_is_help=True, help="Look into a file of `generate --trace`.")
app.add_typer(trace_app, name="trace")
trace_app.command("page")(trace_page)


@app.callback(invoke_without_command=True)
def forerun(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> int:
    """Same tokens, sooner: generate text with speculation that never changes the answer.

    \b
    Examples
      forerun generate "def quicksort(items):"
      forerun generate -m org/name -t 0.7 --seed 1 "Once upon a time"
      cat file.py | forerun generate - --max-tokens 64 --json
      forerun bench decode
    """
    if version:
        from forerun.tools.machine import forerun_version

        typer.echo(f"forerun {forerun_version()}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    return 0


@app.command()
@grouped
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue; - reads it from stdin.", show_default=False),
    ] = None,
    *,
    prompts: _Prompts = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write every round to this file, as JSON lines.", show_default=False),
    ] = None,
    as_json: _Json = False,
    engine: EngineArguments,
    sampling: SamplingArguments,
    grammar: GrammarArguments,
) -> int:
    """Continue a text, streaming; accepted drafts are green and underlined on a terminal.

    What is printed does not depend on the drafter, the shape or the schedule: only how soon does.

    \b
    Examples
      forerun generate "def fibonacci(n):"
      forerun generate -d none "def fibonacci(n):"     # plain, the same text
      cat main.py | forerun generate -t 0.8 --seed 7 - # the prompt from stdin
      forerun generate --prompts many.jsonl --json     # one batch
      forerun generate --json-schema person.json "A person: " # JSON of a schema
    """
    from forerun.tools.generate import Request, run

    asked = Request(prompt, prompts, sampling.params(), grammar.pattern())
    return run(asked, engine, trace=trace, as_json=as_json)


@app.command()
@grouped
def chat(
    *,
    system: Annotated[
        str | None, typer.Option(help="What the model is told first.", show_default=False)
    ] = None,
    as_json: _Json = False,
    engine: EngineArguments,
    sampling: SamplingArguments,
    grammar: GrammarArguments,
) -> int:
    """Talk with a model: one line is one message, Ctrl-D ends, Ctrl-C stops at once.

    A model without a chat template continues what you type. A grammar binds all
    answers. At the end --json prints messages, seed and error, if one failed.

    \b
    Examples
      forerun chat -m org/name-instruct -t 0.7
      echo "What is a monad?" | forerun chat -m org/name-instruct --json
      forerun chat -m org/name-instruct --choice yes --choice no
    """
    from forerun.tools.chat import Talk, run

    return run(Talk(system, sampling.params(), grammar.pattern()), engine, as_json=as_json)


@bench.command("forward")
@grouped
def bench_forward(
    *,
    random: Annotated[
        str | None,
        typer.Option(help="A random model of this size instead of --model.", show_default=False),
    ] = None,
    num_tokens: Annotated[
        str, typer.Option(help="Tokens of one forward pass, by commas.")
    ] = "1,16,32",
    context: Annotated[str, typer.Option(help="Tokens before them, by commas.")] = "64",
    propose: Annotated[
        int, typer.Option(help="Measure a proposal of so many draft steps instead.")
    ] = 0,
    repeat: Annotated[int, typer.Option(help="Timed passes of each row.")] = 20,
    as_json: _Json = False,
    engine: EngineArguments,
) -> int:
    """Time forward passes against their floor: the bytes that must move ÷ measured bandwidth.

    The bandwidth is measured in the same run, between the passes, on a buffer of the same size.

    \b
    Examples
      forerun bench forward --random 260M --num-tokens 1,16,32 --context 64,2048
      forerun bench forward --random 6M --propose 6 --threads 1
    """
    from forerun.tools.bench_forward import Plan, run

    plan = Plan.parse(num_tokens, context, propose=propose, repeat=repeat)
    return run(random, plan, engine, as_json=as_json)


@bench.command("decode")
@grouped
def bench_decode(
    *,
    prompts: _Prompts = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="CATEGORY,...",
            help="Measure these categories of the prompt suite, or all.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Only so many: the first, or a spread over the suite; 0 is all.")
    ] = 0,
    repeat: Annotated[int, typer.Option(help="Pairs of runs for each prompt.")] = 3,
    timeline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw what both lanes do, round by round: .svg or .png.",
            show_default=False,
        ),
    ] = None,
    as_json: _Json = False,
    engine: EngineArguments,
    sampling: SamplingArguments,
) -> int:
    """Compare speculation with plain decoding, in interleaved pairs; exits 1 if a token differs.

    Without --prompts or --suite a built-in set of 24 beginnings of Python files is used. With a
    schedule that works ahead: also against the best sequential one on all the same cores, per core
    and per operation, and whether it pays on this machine.

    \b
    Examples
      forerun bench decode
      forerun bench decode --suite all --limit 48     # or --suite edit,prose
      forerun bench decode -t 0.7 --max-tokens 128 --drafter lookup --json
      forerun bench decode -d lm --schedule ahead --lanes target=0,draft=1 --timeline lanes.svg
    """
    from forerun.tools.bench_decode import Plan, run

    plan = Plan.parse(prompts, suite, limit=limit, repeat=repeat)
    return run(plan, engine, sampling, timeline=timeline, as_json=as_json)


bench.command("serve")(grouped(bench_serve))


@app.command()
@grouped
def certify(
    model_dir: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="The model, as with --model.", show_default=False),
    ] = None,
    *,
    prompts: _Prompts = None,
    seed: Annotated[int, typer.Option(help="Every seed used is made from it.")] = 0,
    budget_s: Annotated[float, typer.Option(help="Seconds to spend, roughly.")] = 45.0,
    report: Annotated[
        Path | None, typer.Option(help="Write a Markdown report here.", show_default=False)
    ] = None,
    as_json: _Json = False,
    engine: EngineArguments,
) -> int:
    """Check that output does not depend on how it was computed; exits 1 if any check fails.

    Bits of logits in every company, tokens with and without speculation, the law of sampled rules,
    and for each a negative control. Without --drafter, --shape or --rule a representative set, all
    of it on the --schedule that is named.

    \b
    Examples
      forerun certify
      forerun certify path/to/model --drafter lm --shape chain:6 --report certificate.md
      forerun certify --drafter lm --rule rejection --budget-s 300 --json
      forerun certify --schedule ahead --lanes target=0,draft=1 --budget-s 120
    """
    from forerun.tools.certify.command import Plan, run

    plan = Plan.parse(model_dir, prompts, engine, (seed, budget_s), report)
    return run(plan, as_json=as_json)


@app.command()
@grouped
def serve(
    *,
    as_json: _Json = False,
    serving: ServeArguments,
    engine: EngineArguments,
) -> int:
    """Serve the OpenAI API until SIGTERM or Ctrl-C; prints the address when ready.

    Needs the extra `serve`. Fields of requests are listed in docs/server.md.

    \b
    Examples
      forerun serve
      forerun serve --host 0.0.0.0 --api-key-file keys.txt
      curl -s localhost:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"prompt": "def quicksort(", "max_tokens": 64}'
    """
    from forerun.serve.start import Operation, run

    return run(Operation(**asdict(serving)), engine.model, engine.open, typer.echo, as_json=as_json)


@app.command()
@grouped
def demo(*, as_json: _Json = False, engine: EngineArguments, sampling: SamplingArguments) -> int:
    """Complete a Python function, then measure it against plain decoding of the same text."""
    from forerun.tools.demo import run

    return run(engine, sampling, as_json=as_json)


@app.command()
def doctor(
    model_dir: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model.", show_default=False)
    ] = None,
    drafter: Annotated[
        str | None,
        typer.Argument(metavar="[DRAFTER]", help="A drafter for it.", show_default=False),
    ] = None,
    as_json: _Json = False,
) -> int:
    """Say what this machine and this installation can do; exits 1 if generation cannot work.

    With a model and a drafter (DFlash, DSpark, EAGLE-3): what the drafter's files are, and whether
    they belong to that model; exits 1 if they do not.

    \b
    Examples
      forerun doctor
      forerun doctor path/to/model path/to/drafter
    """
    if model_dir is None:
        from forerun.tools.doctor import run

        return run(as_json=as_json)
    from forerun.tools.doctor_drafter import run as examine

    return examine(model_dir, drafter, as_json=as_json)


@trace_app.command("show")
def trace_show(
    file: Annotated[Path, typer.Argument(help="A file of generate --trace.")],
    *,
    number: Annotated[
        int | None,
        typer.Option("--round", help="Draw this one, from 0.", show_default=False),
    ] = None,
    request: Annotated[int, typer.Option(help="Of this prompt, from 0.")] = 0,
    as_json: _Json = False,
) -> int:
    """List the rounds of a trace, or draw one of them as a tree.

    \b
    Examples
      forerun generate "def quicksort(items):" --trace run.jsonl
      forerun trace show run.jsonl
      forerun trace show run.jsonl --round 3
    """
    from forerun.tools.trace_show import run

    return run(file, number, request, as_json=as_json)


@trace_app.command("replay")
def trace_replay(
    file: Annotated[Path, typer.Argument(help="A file of generate --trace.")],
    *,
    drafter: Annotated[
        str | None, typer.Option("--drafter", "-d", help="As traced if absent.", show_default=False)
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="As traced if absent.", show_default=False)
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="As traced if absent.", show_default=False)
    ] = None,
    rerun: Annotated[
        bool, typer.Option("--rerun/--no-rerun", help="Load a drafter's model and run it again.")
    ] = True,
    as_json: _Json = False,
) -> int:
    """Say what another drafter, shape or rule would have given for the same text.

    Exactly where the trace says it or the drafter can be run again, else between two ends. Without
    options the traced drafter is run again: exits 1 if its rounds are not those of the trace.

    \b
    Examples
      forerun trace replay run.jsonl --shape chain:4
      forerun trace replay run.jsonl --drafter lookup --shape chain:8
    """
    from forerun.tools.replay import run

    return run(file, (drafter, shape, rule), may_rerun=rerun, as_json=as_json)


@app.command(context_settings=_PASS_ON)
def train(context: typer.Context) -> int:
    """Train models and drafters (extra `train`); see forerun train --help."""
    from forerun.train.cli import train_app

    code = train_app(context.args, prog_name="forerun train", standalone_mode=False)
    return code if isinstance(code, int) else 0
