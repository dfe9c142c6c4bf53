"""Heads that tell a slot of a block what the slots before it became (DSpark, arXiv:2607.05147).

Knows three kinds of one contract; parameters bear the names of drafter files. Must not know blocks
or K/V. They read the target's tokens, and V in what they add are those of the drafter's head, all
or some of the target's. Along a draft, from a state of zeros:

    state, bias = head.step(state, token before the slot, the slot's normed hidden state)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.models.drafter_spec import BlockSpec, MarkovKind


class MarkovHead(nn.Module):
    """What the token before adds to a slot's logits, in rank R; goes by nothing else."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(spec.target_vocab, spec.markov_rank)
        self.markov_w2 = nn.Linear(spec.markov_rank, spec.head_vocab, bias=False)

    def step(self, state: Tensor, previous: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """State `[..., R]` below tokens `[...]` and bias `[..., V]` of their slots' `[..., H]`."""
        del hidden
        return state, self.bias(self.markov_w1(previous))

    def along(self, previous: Tensor, hidden: Tensor) -> Tensor:
        """Biases `[..., K, V]` of whole drafts: tokens `[..., K]`, slots `[..., K, H]`."""
        return self.step(hidden, previous, hidden)[1]

    def bias(self, code: Tensor) -> Tensor:
        """Codes `[..., R]` to logits `[..., V]`."""
        added: Tensor = self.markov_w2(code)
        return added


class GatedHead(MarkovHead):
    """The same, let through as far as slot and token say."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        self.gate_proj = nn.Linear(spec.markov_inputs, spec.markov_outputs)

    def step(self, state: Tensor, previous: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        code = self.markov_w1(previous)
        gate = torch.sigmoid(self.gate_proj(torch.cat((hidden, code), dim=-1)))
        return state, self.bias(gate * code)


class RecurrentHead(MarkovHead):
    """What all tokens of the draft before add, through a state like a gated recurrent unit's."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        self.joint_proj = nn.Linear(spec.markov_inputs, spec.markov_outputs)

    def step(self, state: Tensor, previous: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.joint_proj(torch.cat((state, self.markov_w1(previous), hidden), dim=-1))
        state, code = _turned(state, mixed)
        return state, self.bias(code)

    def along(self, previous: Tensor, hidden: Tensor) -> Tensor:
        # Only what comes of the state waits for the slot before.
        rank = self.markov_w1.embedding_dim
        inputs = torch.cat((self.markov_w1(previous), hidden), dim=-1)
        known = F.linear(inputs, self.joint_proj.weight[:, rank:], self.joint_proj.bias)
        state, codes = torch.zeros_like(known[..., 0, :rank]), list[Tensor]()
        for slot in range(previous.shape[-1]):
            mixed = known[..., slot, :] + F.linear(state, self.joint_proj.weight[:, :rank])
            state, code = _turned(state, mixed)
            codes.append(code)
        return self.bias(torch.stack(codes, dim=-2))


def _turned(state: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The next state and the code, of gate, candidate and output side by side."""
    gate, candidate, output = mixed.chunk(3, dim=-1)
    gate = torch.sigmoid(gate)
    return gate * state + (1 - gate) * torch.tanh(candidate), torch.tanh(output)


def markov_head(spec: BlockSpec) -> MarkovHead:
    """The head of a spec that has one."""
    if spec.markov_kind is MarkovKind.GATED:
        return GatedHead(spec)
    if spec.markov_kind is MarkovKind.RNN:
        return RecurrentHead(spec)
    return MarkovHead(spec)
