"""What a drafter of several tokens minimises: the divergence from its target's laws, slot by slot.

Knows logits and labels, [.. K V] and [.. K] for K drafted tokens in order. Must not know models.
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

        `laws [.. K V]`: the target's own logits there; `labels [.. K]`: the tokens of the text.
        """
        log_q, log_p = drafted.float().log_softmax(-1), laws.float().log_softmax(-1)
        hard = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        each = torch.lerp(self._divergence(log_p, log_q), hard, self.hard_share)
        weights = self._weights(hard.detach(), counts.float())
        return (each * weights).sum() / weights.sum()

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


def gather_rows(values: Tensor, places: Tensor) -> Tensor:
    """`[B … C]` of values `[B T C]` at places `[B …]`."""
    flat = places.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).view(*places.shape, values.shape[-1])


def gather_tokens(windows: Tensor, places: Tensor) -> Tensor:
    """`[B …]` tokens of windows `[B T]` at places `[B …]`."""
    return windows.gather(1, places.flatten(1)).view(places.shape)
