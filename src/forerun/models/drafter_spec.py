"""What a drafter that reads its target's features is, as data: block drafters and EAGLE-3 heads.

Knows shapes and conventions, no file layout and no tensor. A tap is a target layer, counted from 0,
whose *output* is read, before any final norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from forerun.models.spec import ModelSpec


class MarkovKind(StrEnum):
    """How the choices before a slot reach its logits (DSpark, arXiv:2607.05147, section 3)."""

    VANILLA = "vanilla"  # the token before
    GATED = "gated"  # the same, as far as the slot's own state lets it
    RNN = "rnn"  # all tokens of the draft before, through a state that goes along


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """Fills a block of slots in one pass (DFlash, arXiv:2602.06036; DSpark, arXiv:2607.05147).

    `body` is its stack of layers; the table of tokens is the target's, so `body.vocab` is too. So
    is the head, unless it has one of its own over `draft_vocab` of the target's tokens, which a map
    names (0: it has none). Fed are the pending token and `block_len - 1` masks, which see all
    fused features before the pending token and, but in causal layers, all of the block. Slot k says
    the token one further where `is_shifted`, else the token at its own place (slot 0 says nothing).
    `markov_rank`: width of the tables through which the choices before reach a slot's logits, in
    the way of `markov_kind`; 0 without them. The first is read by the target's token, the second
    adds to what the head says.
    `windows`: of each layer, the positions back that it sees; 0 sees all. `is_causal`: whether
    inside the block each layer sees earlier slots only.
    """

    body: ModelSpec
    block_len: int
    is_shifted: bool
    tap_layers: tuple[int, ...]
    target_hidden: int
    num_target_layers: int
    mask_id: int
    windows: tuple[int, ...]
    is_causal: tuple[bool, ...]
    markov_rank: int = 0
    markov_kind: MarkovKind = MarkovKind.VANILLA
    has_confidence: bool = False
    draft_vocab: int = 0

    @property
    def head_vocab(self) -> int:
        """Tokens that a slot's logits are of, as its head has them."""
        return self.draft_vocab or self.body.vocab

    @property
    def target_vocab(self) -> int:
        """Tokens of the target."""
        return self.body.vocab

    @property
    def has_token_map(self) -> bool:
        """Whether a token of its head is another one of the target's."""
        return self.draft_vocab > 0

    @property
    def max_drafted(self) -> int:
        """Tokens that one block proposes."""
        return self.block_len if self.is_shifted else self.block_len - 1

    @property
    def feature_width(self) -> int:
        """Values of one token's tapped states."""
        return len(self.tap_layers) * self.target_hidden

    @property
    def markov_inputs(self) -> int:
        """Values that are mixed before the second table is asked; 0 where it is a token's alone."""
        if not self.markov_rank or self.markov_kind is MarkovKind.VANILLA:
            return 0
        tables = 1 if self.markov_kind is MarkovKind.GATED else 2
        return tables * self.markov_rank + self.body.hidden

    @property
    def markov_outputs(self) -> int:
        """Values that they are mixed to: a gate; or gate, candidate and output."""
        if not self.markov_inputs:
            return 0
        return self.markov_rank * (1 if self.markov_kind is MarkovKind.GATED else 3)

    @property
    def num_parameters(self) -> int:
        """Parameters of its own; a table or head that is borrowed is not counted."""
        own = self.body.num_parameters - self.body.vocab * self.body.hidden
        own += self.body.hidden * (self.feature_width + 1 + self.draft_vocab)
        mixing = (self.markov_inputs + 1) * self.markov_outputs
        return own + (self.body.vocab + self.head_vocab) * self.markov_rank + mixing


@dataclass(frozen=True, slots=True)
class EagleSpec:
    """One layer that reads a token and the feature before it (EAGLE-3, arXiv:2503.01840).

    `body` has one layer and the vocabulary of its own head; queries, keys and values are made of
    token and feature side by side, 2 x `body.hidden` wide. The feature of position t stands with
    the token of t + 1; below the text each node's feature is the layer's own output above it.
    `has_token_map`: its head knows `body.vocab` of the target's `target_vocab` tokens.
    """

    body: ModelSpec
    tap_layers: tuple[int, ...]
    target_hidden: int
    num_target_layers: int
    target_vocab: int
    has_token_map: bool
    norm_before_residual: bool = False

    @property
    def head_vocab(self) -> int:
        """Tokens that its logits are of, as its head has them."""
        return self.body.vocab

    @property
    def feature_width(self) -> int:
        """Values of one token's tapped states."""
        return len(self.tap_layers) * self.target_hidden


DrafterSpec: TypeAlias = BlockSpec | EagleSpec


def spread_taps(num_layers: int, num_taps: int) -> tuple[int, ...]:
    """Where to tap a target: evenly from layer 1 to the third last (DFlash, 4.1)."""
    if num_taps == 1:
        return (num_layers // 2,)
    first, last = 1, num_layers - 3
    return tuple(round(first + at * (last - first) / (num_taps - 1)) for at in range(num_taps))
