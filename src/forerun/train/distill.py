"""Train the `lm` drafter: a small decoder that imitates its target.

Knows the target's logits and text sampled from it. A drafter is judged by how often its choice is
the target's choice on the target's own text, so that text is half of what it learns from; the
other half is the corpus. The loss: divergence from the target's law plus a little hard label.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from forerun.backends.torch.decoder import Decoder
from forerun.train.batches import Batches
from forerun.train.sample import continue_rows

TEMPERATURES = (0.0, 0.7, 0.7, 1.0, 1.0)  # greedy text loops: one row in five is enough of it


@dataclass(frozen=True, slots=True)
class Distillation:
    """The divergence of a drafter from its target; an objective for `Run.train`."""

    target: Decoder
    hard_share: float = 0.1

    def __call__(self, model: Decoder, windows: Tensor) -> Tensor:
        """Mean over positions of KL(target, drafter) mixed with cross-entropy, in nats."""
        inputs, labels = windows[:, :-1], windows[:, 1:].flatten()
        with torch.autocast(windows.device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                p = self.target(inputs).flatten(0, 1)
            q = model(inputs).flatten(0, 1)
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        return torch.lerp(divergence, F.nll_loss(log_q, labels), self.hard_share)


@torch.no_grad()
def start_like(drafter: Decoder, target: Decoder) -> None:
    """Give the drafter the target's embedding, projected to its own width.

    Most of a drafter is its embedding. The principal directions of the target's are worth minutes
    of training: after 60 small steps the divergence was 1.62 nats with them, 2.02 without.
    """
    table = target.model.embed_tokens.weight.float()
    _, _, directions = torch.linalg.svd(table, full_matrices=False)
    projected = table @ directions[: drafter.spec.hidden].T
    drafter.model.embed_tokens.weight[:, : projected.shape[1]] = projected


@dataclass(frozen=True, slots=True)
class MixedText:
    """Windows of a step: corpus text on even steps, the target's own text on odd ones."""

    corpus: Batches
    sampled: NDArray[np.uint16]

    def at(self, step: int) -> NDArray[np.int64]:
        """Windows [B, T + 1] of `step`; a pure function of the step."""
        half, odd = divmod(step, 2)
        if not odd:
            return self.corpus.at(half)
        rows, count = self.corpus.rows, len(self.sampled)
        epoch, first = divmod(half * rows, count - count % rows)
        order = np.random.default_rng((self.corpus.seed, 1 << 33, epoch)).permutation(count)
        return self.sampled[order[first : first + rows]].astype(np.int64)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How much of the target's own text to make: rows of `prompt_len` corpus tokens + the rest."""

    seconds: float
    max_rows: int = 4096
    batch_rows: int = 128
    prompt_len: int = 96
    row_len: int = 512
    seed: int = 0


def sample_target(
    target: Decoder,
    stream: NDArray[np.uint16],
    plan: SamplingPlan,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> NDArray[np.uint16]:
    """Rows [N, row_len + 1] that continue corpus prefixes at mixed temperatures."""
    target = copy.deepcopy(target).bfloat16()  # as it is shipped, and twice as fast
    generator = torch.Generator().manual_seed(plan.seed)
    chooser = np.random.default_rng((plan.seed, 1 << 34))
    device = target.model.embed_tokens.weight.device
    temperatures = torch.tensor(TEMPERATURES, device=device)
    temperatures = temperatures.repeat(-(-plan.batch_rows // len(TEMPERATURES)))[: plan.batch_rows]
    began, made = time.monotonic(), list[NDArray[np.uint16]]()
    while not made or (
        time.monotonic() - began < plan.seconds and len(made) * plan.batch_rows < plan.max_rows
    ):
        starts = chooser.integers(0, len(stream) - plan.prompt_len, plan.batch_rows)
        prompts = stream[starts[:, None] + np.arange(plan.prompt_len)].astype(np.int64)
        new_len = plan.row_len + 1 - plan.prompt_len
        rows = continue_rows(
            target, torch.from_numpy(prompts).to(device), new_len, temperatures, generator
        )
        made.append(rows.cpu().numpy().astype(np.uint16))
        report({"rows": len(made) * plan.batch_rows, "elapsed_s": time.monotonic() - began})
    return np.concatenate(made)


@torch.no_grad()
def agreement(
    target: Decoder, drafter: Decoder, rows: Tensor, *, first: int = 1, seed: int = 0
) -> dict[str, float]:
    """Share of the tokens `first`.. of rows [B, T] that both would choose alike.

    The figures at a temperature use the same Gumbel noise on both sides, as drafting does.
    """
    generator = torch.Generator().manual_seed(seed)
    same: dict[str, list[float]] = {"greedy": [], "0.7": [], "1.0": []}
    for row in torch.split(rows, 4):
        p, q = (
            model(row)[:, first - 1 : -1].flatten(0, 1).float().log_softmax(-1)
            for model in (target, drafter)
        )
        gumbel = -torch.empty_like(p).exponential_(generator=generator).log()
        for name, temperature in (("greedy", 0.0), ("0.7", 0.7), ("1.0", 1.0)):
            chosen, drafted = ((law + temperature * gumbel).argmax(-1) for law in (p, q))
            same[name].append((chosen == drafted).float().mean().item())
    return {name: sum(values) / len(values) for name, values in same.items()}
