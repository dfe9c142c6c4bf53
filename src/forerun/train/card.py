"""Write MODEL_CARD.md: whose code a model learned from, how it was trained, what it can do.

Knows the corpus manifest, a run's log and an evaluation. Must not know models.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forerun.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Training:
    """One model of the family and how it came to be."""

    role: str
    spec: ModelSpec
    command: str
    num_tokens: int
    num_steps: int
    minutes: float


def write_card(
    out: Path,
    manifest: Path,
    trainings: Sequence[Training],
    measured: Mapping[str, Any],
    machine: str,
) -> None:
    """Write the card of a family to `out` from its corpus manifest and its held-out figures."""
    corpus = json.loads(manifest.read_text())
    has_exit = "exit" in measured
    introduction = EXIT_INTRODUCTION if has_exit else INTRODUCTION
    recipe = EXIT_RECIPE if has_exit else RECIPE
    models = _models(trainings, machine, recipe) if trainings else ""
    sections = (introduction, models, _figures(measured), LIMITS, _data(corpus))
    out.write_text("\n\n".join(text for section in sections if (text := section.strip())) + "\n")


INTRODUCTION = """
# forerun-code

A small language model of Python source and the drafter that goes with it. They exist so that
forerun can be tried, tested and measured without downloading anything: large enough to write
plausible Python, small enough to ship in the package. They are not a coding assistant.

Both are ordinary checkpoints (Qwen3 layout, bfloat16 safetensors, a byte-level BPE tokenizer of
4096 entries) that Transformers and other engines load. The token `<|endoftext|>` separates
documents and serves as beginning and end of text; no token is put in front of a prompt. Drafters
that read the model's hidden states, `drafters/dspark` and `drafters/eagle3`, have their own cards.

![training loss of the target](loss.png)
"""

EXIT_INTRODUCTION = """
# forerun-code-exit

A small language model of Python source that foretells itself: it was trained to say the next token
after one of its lower layers too, through the same final norm and head (LayerSkip,
arXiv:2404.16710). It exists to show the drafter `exit:LAYER` and to test it, nothing else:
`forerun-code` is the better model. `config.json` has the layer as `"forerun": {"exit_layer": …}`.

It is an ordinary checkpoint (Qwen3 layout, bfloat16 safetensors, the tokenizer of `forerun-code`)
that Transformers and other engines load. The token `<|endoftext|>` separates documents and serves
as beginning and end of text; no token is put in front of a prompt.

![training loss, both exits](loss.png)
"""

LIMITS = """
## Limits

- A few million parameters and some million tokens: the model knows the shape of Python, not its
  meaning. Names drift, calls do not exist, docstrings ramble. Never run what it writes unread.
- Under greedy decoding it repeats itself (see the loop share), as models of its size do. Speed-ups
  measured on such text flatter every drafter; report them beside figures at temperature 0.7.
- Trained on windows of 512 tokens, one step in eight on longer ones (2048, now and then 4096). The
  figures by position show how far context helps; nothing was trained past 4096.
- It may reproduce fragments of its training files; those files are under the licences below.
- Standard-library modules of one name in several Python versions count as one package.
"""


def _models(trainings: Sequence[Training], machine: str, recipe: str) -> str:
    lines = [
        "## Models",
        "",
        "| | parameters | hidden | layers | heads (kv) | feed-forward | tokens | steps | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    commands = ["forerun train corpus --out corpus"]
    for t in trainings:
        s = t.spec
        lines.append(
            f"| {t.role} | {s.num_parameters:,} | {s.hidden} | {s.num_layers} |"
            f" {s.num_heads} ({s.num_kv_heads}) of {s.head_dim} | {s.ffn} |"
            f" {t.num_tokens / 1e6:.1f}M | {t.num_steps} | {t.minutes:.0f} |"
        )
        commands.append(t.command)
    lines += [
        "",
        f"Trained on {machine}, shared with other work, with",
        "",
        "```",
        *commands,
        "```",
        "",
        recipe.strip(),
    ]
    return "\n".join(lines)


RECIPE = """
Muon for the matrices of the layers, AdamW for the embedding and the norms, bf16 autocast; a short
warmup, a constant rate, then a linear decay. Rotary base 10000. The target's twelve layers started
as the six of a smaller one trained before, each followed by a copy of itself whose output was zero,
so that the function was the same at first (arXiv:2401.02415). The drafter started with the target's
embedding, projected to its width, and learned from the target's logits (divergence 0.9, hard label
0.1): half on corpus text, half on text that the target had continued from corpus prefixes at
temperatures 0, 0.7 and 1. More than half of it is its embedding.
"""

EXIT_RECIPE = """
Muon for the matrices of the layers, AdamW for the embedding and the norms, bf16 autocast; a short
warmup, a constant rate, then a linear decay. Rotary base 10000. The embedding started as that of
`forerun-code`, projected to the width, all else from scratch. The loss is the cross-entropy of the
last layer plus `--exit-weight` times that of the exit: its own cross-entropy in a share of
`--exit-hard-share`, for the rest the divergence from the last layer's law, held fixed.
"""


def _figures(measured: Mapping[str, Any]) -> str:
    early = measured.get("exit")
    name = "forerun-code" if early is None else "forerun-code-exit"
    lines = [
        "## Held-out figures",
        "",
        f"On {measured['num_documents']} evenly chosen files"
        f" ({measured['num_bytes'] / 1e6:.2f} MB) of packages that are not in the training data:"
        f" {', '.join(measured['packages'])}.",
        "",
        "| bits per byte | each file on its own | all files in one stream |",
        "|---|---|---|",
        f"| **{name}**, {measured['window']} tokens | **{measured['target_bpb']:.3f}** | |",
    ]
    if early is not None:
        lines.append(f"| its exit after layer {early['layer']} | {early['bpb']:.3f} | |")
    if "drafter_bpb" in measured:
        lines.append(f"| its `lm` drafter | {measured['drafter_bpb']:.3f} | |")
    packed = measured["compressors"]
    lines += [
        f"| {name} | {packed[name + '_per_document']:.3f} | {packed[name + '_concatenated']:.3f} |"
        for name in ("bz2", "xz")
    ]
    lines += ["", *_positions(measured["bits_by_position"]), "", *_completions(measured)]
    if early is not None:
        whose = "exit's first choice is the last layer's token, on held-out text and on the model's"
        lines += ["", *_agreement(whose, early["agreement"])]
    if "agreement" in measured:
        whose = "drafter's first choice is the target's token, on the target's"
        lines += ["", *_agreement(whose, measured["agreement"])]
    return "\n".join(lines)


def _positions(bits: Mapping[str, float]) -> list[str]:
    return [
        "Bits per byte by position in rows of 4096 tokens: "
        + "; ".join(f"{bucket}: {value:.3f}" for bucket, value in bits.items())
        + "."
    ]


def _completions(measured: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {value['num_headers']} | {value['parse_share']:.1%} |"
        f" {value['loop_share']:.1%} |"
        for name, value in measured["completions"].items()
    ]
    return [
        f"Completions of {measured['num_new']} tokens after a function header and the"
        f" {measured['prompt_len']} tokens that end with it:",
        "",
        "| decoding | headers | parse | tokens in loops |",
        "|---|---|---|---|",
        *rows,
        "",
        "*Parse*: the header and a prefix of the completion, cut at a line end, that keeps at least"
        " 80 % of the generated tokens are valid Python (an indented header stands inside"
        " `if True:` blocks). *Tokens in loops*: tokens inside a 4-gram that already occurred in"
        " the same completion; ordinary code repeats some too.",
    ]


def _agreement(whose: str, agreement: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        f"| {text} | {values['greedy']:.1%} | {values['0.7']:.1%} | {values['1.0']:.1%} |"
        for text, values in agreement.items()
    ]
    return [
        f"How often the {whose} own held-out completions; with temperature, both add the same"
        " Gumbel noise:",
        "",
        "| text written at | greedy choice | T = 0.7 | T = 1.0 |",
        "|---|---|---|---|",
        *rows,
    ]


def _data(corpus: Mapping[str, Any]) -> str:
    packages = corpus["packages"]
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for package in packages:
        groups[_family(package)].append(package)
    lines = [
        "## Data",
        "",
        "Python source installed on the training machine: standard libraries and distributions"
        " whose metadata declare a permissive licence. Left out: generated, minified, table-like"
        " and test files, vendored copies, clients that are mostly boilerplate, exact duplicates"
        " and files that share more than 30 % of their three-line shingles with one already taken.",
        "",
        f"{corpus['bytes']['train'] / 1e6:.1f} MB to train, {corpus['bytes']['heldout'] / 1e6:.1f}"
        " MB held out as whole packages (copies of them elsewhere were removed first).",
        "",
        "| package | licence | files | kB | |",
        "|---|---|---|---|---|",
    ]
    largest_first = sorted(groups, key=lambda name: -sum(p["num_bytes"] for p in groups[name]))
    return "\n".join([*lines, *(_row(group, groups[group]) for group in largest_first)])


def _family(package: Mapping[str, Any]) -> str:
    standard = package["name"].startswith("python/") and not package["held_out"]
    return "Python standard library (the rest)" if standard else str(package["name"])


def _row(name: str, packages: list[Mapping[str, Any]]) -> str:
    files, size = (sum(p[key] for p in packages) for key in ("num_files", "num_bytes"))
    held = "held out" if packages[0]["held_out"] else ""
    return f"| {name} | {packages[0]['licence']} | {files} | {size / 1000:.0f} | {held} |"
