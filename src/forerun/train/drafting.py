"""One objective and one examination for every drafter that reads its target's features.

Knows the drafters' modules, their target and the loss. Both go through `drafted_logits`, so what is
measured is what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forerun.backends.torch.block import BlockDrafter
from forerun.backends.torch.decoder import Decoder
from forerun.backends.torch.eagle import EagleDrafter
from forerun.errors import OptionError
from forerun.noise import Purpose, gumbel, words
from forerun.train.blocks import block_logits
from forerun.train.eagle import eagle_logits
from forerun.train.expected import Expected, expected, matched_runs
from forerun.train.losses import DraftLoss, gather_rows, gather_tokens, labels_of, sayable
from forerun.train.reading import head_of, read
from forerun.train.text import Text, rows_of

Drafter: TypeAlias = BlockDrafter | EagleDrafter

EXAMINED_AT_ONCE = 32  # anchors of one row in one pass


def drafted_logits(
    model: Drafter,
    target: Decoder,
    windows: Tensor,
    anchors: Tensor,
    features: Tensor,
    slots: Tensor,
) -> Tensor:
    """Logits `[B A K D]` of the tokens that `slots` draft from anchors, over the drafter's own."""
    said = block_logits if isinstance(model, BlockDrafter) else eagle_logits
    return said(model, target, windows, anchors, features, slots)  # type: ignore[arg-type]


def known_tokens(model: Drafter) -> Tensor | None:
    """`[D]` the target's ids of the tokens that a drafter can say; None where it can say all."""
    return model.target_ids() if model.spec.has_token_map else None


@dataclass(frozen=True, slots=True)
class Drafting:
    """The divergence of drafts from their target's laws; an objective for `Run.train`."""

    target: Decoder
    loss: DraftLoss

    def __call__(
        self, model: Drafter, windows: Tensor, anchors: Tensor, ends: Tensor, slots: Tensor
    ) -> Tensor:
        """Weighted mean in nats over a batch, see `Anchoring`."""
        with torch.autocast(windows.device.type, dtype=torch.bfloat16):
            reading = read(self.target, windows[:, :-1], model.spec.tap_layers)
            drafted = drafted_logits(model, self.target, windows, anchors, reading.features, slots)
            places, counts = labels_of(windows, anchors, ends, drafted.shape[2])
            known, head = known_tokens(model), head_of(self.target)
            with torch.no_grad():
                rows = head if known is None else head[known]
                laws = gather_rows(reading.last, places) @ rows.T
        labels = gather_tokens(windows, places + 1)
        if known is not None:
            labels, counts = sayable(known, len(head), labels, counts)
        return self.loss(drafted, laws, labels, counts)


@dataclass(frozen=True, slots=True)
class Examination:
    """Held-out text of one temperature, with the noise that chose it, and how far drafts go."""

    text: Text
    num_slots: int

    @torch.no_grad()
    def expected(self, model: Drafter, target: Decoder) -> Expected:
        """What the drafter would yield on it in an engine that drafts chains as long as it can."""
        runs = [self.runs(model, target, row) for row in range(len(self.text.rows))]
        is_shifted = isinstance(model, EagleDrafter) or model.spec.is_shifted
        return expected(runs, self.num_slots - (not is_shifted))

    @torch.no_grad()
    def runs(self, model: Drafter, target: Decoder, row: int) -> NDArray[np.int64]:
        """`[N-1]` tokens kept of a draft begun at each of the N tokens of a row's span but the last
        one, which nothing follows."""
        first, end = self.text.spans[row].tolist()
        device = head_of(target).device
        tokens = torch.from_numpy(self.text.rows[row, :end].astype(np.int64))[None].to(device)
        noise = torch.from_numpy(noise_of(self.text, row, head_of(target).shape[0])).to(device)
        known, runs = known_tokens(model), []
        if known is not None:
            noise = noise[:, known]  # a token has the noise that it has among all of the target's
        features = read(target, tokens[:, :-1], model.spec.tap_layers).features
        for start in range(first, end - 1, EXAMINED_AT_ONCE):
            anchors = torch.arange(start, min(start + EXAMINED_AT_ONCE, end - 1))[None]
            slots = torch.arange(self.num_slots, device=device)
            logits = drafted_logits(model, target, tokens, anchors.to(device), features, slots)
            steps = torch.arange(1, logits.shape[2] + 1)
            places = (anchors[0, :, None] + steps).to(device)
            inside = places < end
            places = places.clamp(max=end - 1)
            drafted = self._chosen(logits[0], noise, places - first, row)
            drafted = drafted if known is None else known[drafted]
            same = (drafted == tokens[0, places]) & inside
            runs.append(matched_runs(same.cpu().numpy()))
        return np.concatenate(runs)

    def _chosen(self, logits: Tensor, noise: Tensor, at: Tensor, row: int) -> Tensor:
        """The tokens `[A K]` that are drafted of logits `[A K D]`, with the noise `at` places."""
        temperature = float(self.text.temperatures[row])
        scores = logits if temperature == 0 else logits / temperature + noise[at]
        return scores.argmax(-1)


def noise_of(text: Text, row: int, vocab: int) -> NDArray[np.float32]:
    """`[N V]` of the positions in a row's span: what the target's choices had; none if greedy."""
    first, end = text.spans[row].tolist()
    if text.temperatures[row] == 0:
        return np.zeros((0, vocab), np.float32)
    seed = int(text.seeds[row])
    each = (words(seed, 0, Purpose.VERDICT, at, vocab) for at in range(first, end))
    return np.stack([gumbel(of) for of in each]).astype(np.float32)


def examine(
    examinations: dict[str, Examination], model: Drafter, target: Decoder
) -> dict[str, Expected]:
    """The figures of each examination, by its name."""
    was_training = model.training
    model.eval()
    figures = {name: one.expected(model, target) for name, one in examinations.items()}
    model.train(was_training)
    return figures


def by_temperature(text: Text, num_rows: int, num_slots: int) -> dict[str, Examination]:
    """The first `num_rows` rows of each temperature there is, as examinations.

    Raises:
        OptionError: no row has two tokens that its target chose, so that nothing can be drafted.
    """
    examinations = {}
    is_long = text.spans[:, 1] - text.spans[:, 0] >= 2
    for temperature in sorted(set(text.temperatures[is_long].tolist())):
        chosen = np.flatnonzero(is_long & (text.temperatures == temperature))[:num_rows]
        examinations[f"T={temperature:g}"] = Examination(rows_of(text, chosen), num_slots)
    if not examinations:
        raise OptionError(
            "no row of the held-out text has two tokens of the model's own: it ends its answers at"
            " once, give other prompts"
        )
    return examinations
