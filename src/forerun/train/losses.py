"""What a drafter of several tokens minimises: the divergence from its target's laws, slot by slot.

Knows logits and labels, [.. K V] and [.. K] for K drafted tokens in order, over the V tokens that
a drafter can say. Must not know models.

Where it can say some of the target's tokens only, the target's law p is normalised over these.
Under `match` both choose with one noise g, the target the best of log p + g over all tokens. If
that is one of the drafter's, it is the best over the drafter's too: a draft of p restricted to
them is right whenever the target's token can be said, more than which no law can be. From all of p
the divergence would be infinite. What restricting leaves out is how often the token can be said:
a drafted token counts only where all tokens of the text up to it can be, for no draft is kept
further. The published training of EAGLE-3 (arXiv:2503.01840) normalises in the same way; there a
place counts where the target's likeliest token can be said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PACE_SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class DraftLoss:
    """A divergence, and how much each drafted token counts.

    `divergence`: `kl`, forward from the target's law, or `l1`, the sum of absolute differences.
    `weights`: `decay`, exp(-k / gamma) for slot k, or `pace`: the chance, by the drafter's own
    smoothed probabilities of the text, that the draft is kept up to a slot, summed over the slots
    from there on (D-PACE, arXiv:2605.18810). `hard_share` of it is cross-entropy with the text.
    """

    divergence: Literal["kl", "l1"] = "kl"
    weights: Literal["decay", "pace"] = "decay"
    gamma: float = 4.0
    hard_share: float = 0.1

    def __call__(self, drafted: Tensor, laws: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """Weighted mean, in nats, over drafted logits `[.. K V]` where `counts [.. K]` is true.

        `laws [.. K V]`: the target's own logits there, of the same tokens; `labels [.. K]`: the
        tokens of the text. 0 where nothing counts.
        """
        log_q, log_p = drafted.float().log_softmax(-1), laws.float().log_softmax(-1)
        hard = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        each = torch.lerp(self._divergence(log_p, log_q), hard, self.hard_share)
        weights = self._weights(hard.detach(), counts.float())
        return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)

    def _divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.divergence == "l1":
            return (log_p.exp() - log_q.exp()).abs().sum(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def _weights(self, hard: Tensor, counts: Tensor) -> Tensor:
        if self.weights == "decay":
            steps = torch.arange(hard.shape[-1], device=hard.device)
            return counts * torch.exp(-steps / self.gamma)
        kept = torch.exp(-hard)
        smoothed = (PACE_SMOOTHING + (1.0 - PACE_SMOOTHING) * kept) * counts
        reached = smoothed.cumprod(-1)
        return reached.flip(-1).cumsum(-1).flip(-1) * counts


def labels_of(windows: Tensor, anchors: Tensor, ends: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Positions `[B A num]` of the tokens before each drafted one, and which drafted ones count.

    The drafted tokens stand one further; those at `ends [B]` or beyond do not count.
    """
    before = anchors.unsqueeze(-1) + torch.arange(num, device=anchors.device)
    counts = before + 1 < ends[:, None, None]
    return before.clamp(max=windows.shape[1] - 2), counts


def sayable(known: Tensor, vocab: int, labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of `known [D]` ids of a target's `vocab`: which of the D each label `[.. K]` is (0 where none
    is), and which drafted tokens still count: those with every label up to them known."""
    numbers = torch.full((vocab,), -1, device=known.device)
    numbers[known] = torch.arange(len(known), device=known.device)
    found = numbers[labels]
    return found.clamp(min=0), counts & (found >= 0).cumprod(-1).bool()


def gather_rows(values: Tensor, places: Tensor) -> Tensor:
    """`[B … C]` of values `[B T C]` at places `[B …]`."""
    flat = places.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).view(*places.shape, values.shape[-1])


def gather_tokens(windows: Tensor, places: Tensor) -> Tensor:
    """`[B …]` tokens of windows `[B T]` at places `[B …]`."""
    return windows.gather(1, places.flatten(1)).view(places.shape)
