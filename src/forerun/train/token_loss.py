"""What a small model learns from a target's own text: the next token, and the law it was drawn by.

Knows windows with the span that counts in each, a decoder and, where there is one, its teacher. The
logits of a step are never there at once: with a vocabulary of 150,000 they would be gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from forerun.backends.torch.decoder import Decoder
from forerun.train.anchors import CORPUS_EVERY
from forerun.train.batches import Batches
from forerun.train.reading import head_of
from forerun.train.text import Text

Spanned: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]

LOGITS_AT_ONCE = 1 << 25  # 128 MiB in float32


@dataclass(frozen=True, slots=True)
class OwnText:
    """Windows of a target's own text, and every `CORPUS_EVERY`-th step of a corpus if there is one:
    some of those are longer, and teach positions that the text does not have."""

    text: Text
    num_rows: int
    seed: int
    corpus: Batches | None = None

    def at(self, step: int) -> Spanned:
        """Windows `[B T+1]` of `step` and the span `[B 2]` that counts in each; a pure function of
        the step. Every epoch is another permutation of all rows."""
        if self.corpus is not None and step % CORPUS_EVERY == CORPUS_EVERY - 1:
            windows = self.corpus.at(step // CORPUS_EVERY)
            return windows, np.tile(np.array([1, windows.shape[1]]), (len(windows), 1))
        turn = step - step // CORPUS_EVERY if self.corpus is not None else step
        count = len(self.text.rows)
        places = np.arange(turn * self.num_rows, (turn + 1) * self.num_rows)
        epochs = {epoch: self._order(epoch) for epoch in set((places // count).tolist())}
        chosen = [epochs[at // count][at % count] for at in places.tolist()]
        return self.text.rows[chosen].astype(np.int64), self.text.spans[chosen]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, 1 << 33, epoch)).permutation(len(self.text.rows))


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Cross-entropy with the text; of a `teacher`, mostly the divergence from its law instead."""

    teacher: Decoder | None = None
    hard_share: float = 0.1

    def __call__(self, model: Decoder, windows: Tensor, spans: Tensor) -> Tensor:
        """Mean in nats over the tokens of windows `[B T+1]` that lie in their spans `[B 2]`."""
        inputs, labels = windows[:, :-1], windows[:, 1:]
        places = torch.arange(1, windows.shape[1], device=windows.device)
        counts = ((places >= spans[:, :1]) & (places < spans[:, 1:])).float()
        with torch.autocast(windows.device.type, dtype=torch.bfloat16):
            parts = [_states(model, inputs), labels.flatten(), counts.flatten()]
            if self.teacher is not None:
                with torch.no_grad():
                    parts.append(_states(self.teacher, inputs))
            size = max(1, LOGITS_AT_ONCE // model.spec.vocab)
            cut = [torch.split(part, size) for part in parts]
            sums = [self._sum(model, *part) for part in zip(*cut, strict=True)]
        return torch.stack(sums).sum() / counts.sum().clamp(min=1.0)

    def _sum(self, model: Decoder, *part: Tensor) -> Tensor:
        """The loss of some positions together; their logits are made again to go backward."""
        whole = checkpoint(self._each, head_of(model), *part, use_reentrant=False)
        return cast(Tensor, whole)

    def _each(self, head: Tensor, *part: Tensor) -> Tensor:
        states, labels, counts, *taught = part
        log_q = F.linear(states, head).float().log_softmax(-1)
        loss: Any = F.nll_loss(log_q, labels, reduction="none")
        if self.teacher is not None:
            log_p = F.linear(taught[0], head_of(self.teacher)).float().log_softmax(-1)
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
            loss = torch.lerp(divergence, loss, self.hard_share)
        return cast(Tensor, (loss * counts).sum())


def _states(model: Decoder, token_ids: Tensor) -> Tensor:
    """The normed last states of rows `[B T]`, one after another `[B*T C]`."""
    normed: Tensor = model.model.norm(model.hidden(token_ids))
    return normed.flatten(0, 1)
