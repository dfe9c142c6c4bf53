"""Write MODEL_CARD.md of a drafter: how it was trained, what it yields.

Knows a spec, a training's facts and its figures on held-out text. Must not know models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec
from forerun.models.spec import ModelSpec
from forerun.tools.doctor_drafter import WHAT_SLOTS_HEAR


def write_drafter_card(
    out: Path,
    spec: DrafterSpec | ModelSpec,
    training: Mapping[str, Any] | None,
    figures: Mapping[str, Mapping[str, Any]],
    machine: str,
) -> None:
    """Write the card to `out`; without the facts of a `training` the card leaves them out."""
    sections = [_introduction(spec)]
    if training is not None:
        sections.append(_recipe(training, machine))
    sections += [_figures(figures), _LIMITS]
    out.write_text("\n\n".join(section.strip() for section in sections) + "\n", encoding="utf-8")


def _introduction(spec: DrafterSpec | ModelSpec) -> str:
    if isinstance(spec, ModelSpec):
        return f"""# A small model that drafts

Reads its target's tokens and nothing else of it, and proposes one after another.
{spec.num_parameters:,} parameters in {spec.num_layers} layers, {spec.dtype};
an ordinary checkpoint.

It changes no token of what is written, only when."""
    taps = ", ".join(map(str, spec.tap_layers))
    reads = f"the target's hidden states behind layers {taps} of {spec.num_target_layers}, from 0"
    if isinstance(spec, BlockSpec):
        kind = "DSpark" if spec.markov_rank else "DFlash"
        return f"""# A {kind} drafter

Reads {reads},
and proposes {spec.max_drafted} tokens in one pass. {spec.num_parameters:,} parameters of its own in
{spec.body.num_layers} layers, bfloat16; {_borrows(spec)}.
{_hears(spec)}

It changes no token of what is written, only when."""
    assert isinstance(spec, EagleSpec)
    return f"""# An EAGLE-3 head

Reads {reads},
and proposes token by token. One layer and a head over {spec.head_vocab} of {spec.target_vocab}
tokens, bfloat16; the table of tokens is the target's.

It changes no token of what is written, only when."""


def _borrows(spec: BlockSpec) -> str:
    if spec.draft_vocab:
        own = f"a head over {spec.draft_vocab} of {spec.target_vocab} tokens is its own"
        return f"the table of tokens is the target's,\n{own}"
    return "the table of tokens and the head are the target's"


def _hears(spec: BlockSpec) -> str:
    if not spec.markov_rank:
        return "No slot hears what the ones before it became."
    kind = f"Markov head `{spec.markov_kind.value}` of rank {spec.markov_rank}"
    return f"Each slot hears {WHAT_SLOTS_HEAR[spec.markov_kind]} ({kind})."


def _recipe(training: Mapping[str, Any], machine: str) -> str:
    return f"""## Training

{training["num_steps"]:,} steps in {training["minutes"]:.0f} minutes on {machine},
over windows of {training["num_tokens"]:,} tokens, most of them text that the target wrote itself
from prompts at temperatures 0 to 1:

    {training["command"]}

![loss](loss.png)
![tokens a round on held-out text while it was trained](acceptance.png)"""


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> str:
    positions = max(len(one["by_position"]) for one in figures.values())
    head = " | ".join(str(at + 1) for at in range(positions))
    rows = [
        f"| {name} | {one['tokens_per_round']:.2f} | "
        + " | ".join(f"{100 * share:.0f} %" for share in one["by_position"])
        + " |"
        for name, one in figures.items()
    ]
    table = "\n".join(rows)
    return f"""## What it yields

On the target's own continuations of held-out prompts, with chains of its whole length (`forerun
train expect --card`): tokens a round, the target's own among them, and of the rounds that reached a
position the share that kept its token.

| | tokens a round | {head} |
|---|---|{"---|" * positions}
{table}"""


_LIMITS = """
## Limits

Made for one target and its vocabulary; learned from what the target writes after prompts like
these. On other text it is right less often, which costs time and nothing else.
"""
