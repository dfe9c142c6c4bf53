"""Does a confidence head know more of a draft than its margins do? Counted, without a clock.

    forerun train text --data prompts.jsonl --row-len 384 --prompt-len 160 --out text --minutes 5
    python benchmarks/confidence.py --text text --out confidence.json

A block drafter's confidence head (DSpark, arXiv:2607.05147, section 3) foretells of each slot, by
the slot's state and the token before it, whether its draft is kept. The engine goes by margins: how
far a drafted token's `log q + g` lies above its best rival, in a table learned online. Here a head
is trained for the drafter that is shipped, which stays as it is, on some of the rows that the
target wrote, to say what the publication has it say: the overlap of both laws. On the other rows
both foretell, each through a table fitted on the first rows, and both together by a fitted line.

Told are nats a drafted slot that is reached, and emitted tokens a unit of cost where a round costs
a verification, its draft and `--node-costs` a drafted token, and a chain ends where it no longer
pays: each way at its own best threshold.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from forerun.backends.torch.block import BlockDrafter
from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError
from forerun.models.resolve import resolve_model
from forerun.protocols import LEAST_MARGIN, MARGIN_STEP, NUM_MARGINS
from forerun.tools.machine import machine_name
from forerun.train.blocks import block_states
from forerun.train.drafter_export import load_drafter
from forerun.train.drafters import load_target
from forerun.train.drafting import noise_of
from forerun.train.losses import gather_rows, gather_tokens
from forerun.train.reading import head_of, read
from forerun.train.text import Text, read_text

ANCHOR_EVERY, ANCHORS_AT_ONCE = 3, 32
TRAINED_SHARE = 0.6  # of the rows
DRAFT_COST = 0.3  # of a verification of one token
_LEAST_LOGIT, _LOGIT_STEP, _NUM_LOGITS = -5.0, 0.5, 20
_PRIOR_TRIALS = 4.0  # of every bin of a table


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Drafts from anchors of one row: `inputs [A K W]` of the head, `margins`, `is_kept`,
    `overlap` of the laws and `is_reached` (all before it kept), `[A K]` each."""

    temperature: float
    inputs: Tensor
    margins: Tensor
    is_kept: Tensor
    overlap: Tensor
    is_reached: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Binned:
    """How often something came true, by a figure's bin."""

    least: float
    step: float
    shares: Tensor

    @classmethod
    def fitted(
        cls, least: float, step: float, count: int, values: Tensor, came_true: Tensor
    ) -> Binned:
        """Of `values [N]` and what became of them, `[N]` of 0 and 1."""
        at = ((values - least) / step).floor().clamp(0, count - 1).long()
        hits = torch.zeros(count).index_add(0, at, came_true)
        trials = torch.zeros(count).index_add(0, at, torch.ones_like(came_true))
        prior = _PRIOR_TRIALS * came_true.mean()
        return cls(least, step, (hits + prior) / (trials + _PRIOR_TRIALS))

    def of(self, values: Tensor) -> Tensor:
        """Chances of values of any shape."""
        at = ((values - self.least) / self.step).floor().clamp(0, len(self.shares) - 1)
        return self.shares[at.long()]


def main() -> int:
    """Draft, train a head, judge, print, write."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    directory = resolve_model(options.model)
    target = load_target(directory)
    drafter = load_drafter(directory / "drafters" / options.drafter, target.spec)
    if not isinstance(drafter, BlockDrafter) or not drafter.spec.markov_rank:
        raise OptionError(f"{options.drafter} is no block drafter with a Markov head")
    text = read_text([options.text])
    is_long = np.flatnonzero(text.spans[:, 1] - text.spans[:, 0] > ANCHORS_AT_ONCE)
    order = np.random.default_rng(options.seed).permutation(is_long)[: options.limit]
    rows = [drafted(drafter.eval(), target, text, int(at)) for at in track(order, "drafting")]
    num_trained = int(TRAINED_SHARE * len(rows))
    trained, judged = rows[:num_trained], rows[num_trained:]
    head = trained_head(_reached(trained, "inputs"), _reached(trained, "overlap"))
    kinds = sorted({row.temperature for row in rows})
    lines = [judge(head, _of(trained, t), _of(judged, t), options.node_costs) for t in kinds]
    report = {
        "what": "confidence",
        "date": date.today().isoformat(),
        "command": "python benchmarks/confidence.py " + shlex.join(sys.argv[1:]),
        "machine": machine_name(),
        "drafter": options.drafter,
        "num_trained_rows": len(trained),
        "num_judged_rows": len(judged),
        "rows": lines,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _show(lines)
    return 0


@torch.no_grad()
def drafted(model: BlockDrafter, target: Decoder, text: Text, at: int) -> Row:
    """What the drafter drafts in row `at` of a text, and what became of it."""
    first, end = text.spans[at].tolist()
    tokens = torch.from_numpy(text.rows[at, :end].astype(np.int64))[None]
    temperature = float(text.temperatures[at])
    head, noise = head_of(target), torch.from_numpy(noise_of(text, at, head_of(target).shape[0]))
    reading = read(target, tokens[:, :-1], model.spec.tap_layers)
    slots = torch.arange(model.spec.block_len)
    parts = []
    for anchors in torch.arange(first, end - 1)[None, ::ANCHOR_EVERY].split(ANCHORS_AT_ONCE, 1):
        hidden = block_states(model, target, tokens, anchors, reading.features, slots)
        steps = torch.arange(hidden.shape[2])
        last = tokens.shape[1] - 1
        before = gather_tokens(tokens, (anchors[..., None] + steps).clamp(max=last))
        places = (anchors[..., None] + 1 + steps)[0]
        is_inside, places = places <= last, places.clamp(max=last)
        logits = (model.logits(hidden, head) + model.markov(before, hidden))[0]
        laws = gather_rows(reading.last, places[None] - 1)[0] @ head.T
        warmth = temperature or 1.0
        scores = logits / warmth + (noise[places - first] if temperature else 0.0)
        best = scores.topk(2, dim=-1)
        is_kept = (best.indices[..., 0] == tokens[0][places]) & is_inside
        apart = ((laws / warmth).softmax(-1) - (logits / warmth).softmax(-1)).abs().sum(-1)
        codes = model.markov_head.markov_w1(before)
        above = F.pad(is_kept.long().cumprod(1).bool()[:, :-1], (1, 0), value=True)
        inputs = torch.cat((model.norm(hidden), codes), dim=-1)[0]
        margins = best.values[..., 0] - best.values[..., 1]
        parts.append((inputs, margins, is_kept.float(), 1 - apart / 2, above & is_inside))
    return Row(temperature, *(torch.cat(each) for each in zip(*parts, strict=True)))


def trained_head(inputs: Tensor, overlap: Tensor, num_epochs: int = 12) -> nn.Linear:
    """A confidence head: the logit of `overlap [N]` out of `inputs [N W]`."""
    head = nn.Linear(inputs.shape[1], 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    rows_at_once = 512
    num_steps = num_epochs * -(-len(inputs) // rows_at_once)
    steps = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(steps, num_steps)
    for _ in range(num_epochs):
        for chosen in torch.randperm(len(inputs)).split(rows_at_once):
            said = head(inputs[chosen])[:, 0]
            loss = F.binary_cross_entropy_with_logits(said, overlap[chosen])
            steps.zero_grad()
            loss.backward()
            steps.step()
            rate.step()
    return head.requires_grad_(requires_grad=False)


def judge(
    head: nn.Linear, trained: Sequence[Row], judged: Sequence[Row], node_costs: Sequence[float]
) -> dict[str, Any]:
    """Of one temperature: nats and yields of every way to foretell, fitted on the first rows."""
    kept, margins = _reached(trained, "is_kept"), _reached(trained, "margins")
    logits = head(_reached(trained, "inputs"))[:, 0]
    by_margin = Binned.fitted(LEAST_MARGIN, MARGIN_STEP, NUM_MARGINS, margins, kept)
    by_logit = Binned.fitted(_LEAST_LOGIT, _LOGIT_STEP, _NUM_LOGITS, logits, kept)
    line = _fitted_line(torch.stack((_logit(by_margin.of(margins)), logits), 1), kept)
    ways: dict[str, Callable[[Row], Tensor]] = {
        "margin": lambda row: by_margin.of(row.margins),
        "confidence": lambda row: by_logit.of(head(row.inputs)[..., 0]),
        "both": lambda row: torch.sigmoid(
            line[0] * _logit(by_margin.of(row.margins))
            + line[1] * head(row.inputs)[..., 0]
            + line[2]
        ),
    }
    truth = _reached(judged, "is_kept")
    said = {
        name: torch.cat([way(row)[row.is_reached] for row in judged]) for name, way in ways.items()
    }
    said["mean"] = torch.full_like(truth, float(kept.mean()))
    return {
        "temperature": judged[0].temperature,
        "num_slots": len(truth),
        "kept": float(truth.mean()),
        "nats": {name: nats(chances, truth) for name, chances in said.items()},
        "tokens_per_cost": {
            str(cost): {name: best_yield(judged, way, cost) for name, way in ways.items()}
            for cost in node_costs
        },
    }


def nats(chances: Tensor, came_true: Tensor) -> float:
    """Mean cross-entropy of chances `[N]` and what came of them."""
    sure = chances.clamp(1e-4, 1 - 1e-4)
    return float(F.binary_cross_entropy(sure, came_true))


def best_yield(rows: Sequence[Row], way: Callable[[Row], Tensor], node_cost: float) -> float:
    """Emitted tokens a unit of cost, at the best of some thresholds of a chain's own chance."""
    paths = [way(row).cumprod(1) for row in rows]
    runs = [row.is_kept.cumprod(1).sum(1) for row in rows]
    yields = []
    for least in torch.linspace(0.02, 0.8, 40).tolist():
        tokens = cost = 0.0
        for path, run in zip(paths, runs, strict=True):
            length = (path >= least).sum(1)
            tokens += float((torch.minimum(length, run) + 1).sum())
            cost += float((1 + DRAFT_COST + node_cost * length).sum())
        yields.append(tokens / cost)
    return max(yields)


def _fitted_line(inputs: Tensor, came_true: Tensor) -> list[float]:
    wide = F.pad(inputs, (0, 1), value=1.0)
    line = torch.zeros(wide.shape[1], requires_grad=True)
    steps = torch.optim.LBFGS([line], max_iter=200)

    def loss() -> Tensor:
        steps.zero_grad()
        value = F.binary_cross_entropy_with_logits(wide @ line, came_true)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    steps.step(loss)  # type: ignore[no-untyped-call]
    found: list[float] = line.detach().tolist()
    return found


def _logit(chances: Tensor) -> Tensor:
    return torch.logit(chances, eps=1e-3)


def _reached(rows: Sequence[Row], name: str) -> Tensor:
    return torch.cat([getattr(row, name)[row.is_reached] for row in rows])


def _of(rows: Sequence[Row], temperature: float) -> list[Row]:
    return [row for row in rows if row.temperature == temperature]


def _show(lines: Sequence[dict[str, Any]]) -> None:
    table = Table(title="is a drafted slot kept? nats a slot; emitted tokens a unit of cost")
    for name in ("T", "slots", "kept", "way", "nats", *lines[0]["tokens_per_cost"]):
        table.add_column(name, justify="right")
    for line in lines:
        for way in ("margin", "confidence", "both"):
            yields = [f"{of[way]:.3f}" for of in line["tokens_per_cost"].values()]
            told = (f"{line['temperature']:g}", str(line["num_slots"]), f"{line['kept']:.3f}")
            table.add_row(*told, way, f"{line['nats'][way]:.3f}", *yields)
    Console(width=100).print(table)


def _parser() -> argparse.ArgumentParser:
    summary, rest = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="forerun-code")
    parser.add_argument("--drafter", default="dspark", help="beside the model")
    parser.add_argument("--text", type=Path, required=True, help="what `forerun train text` wrote")
    parser.add_argument("--limit", type=int, default=300, help="rows of it")
    parser.add_argument("--node-costs", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON of the figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
