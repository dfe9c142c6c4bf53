"""Attention of many short drafts over one text: each sees a part of the text, and itself.

Knows tensors only. A mask over all drafts side by side would say the same, but most of what it
multiplies it then hides.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

KeysValues: TypeAlias = tuple[Tensor, Tensor]


def attend(
    q: Tensor, text: KeysValues, own: KeysValues, sees_text: Tensor, sees_own: Tensor
) -> Tensor:
    """`[B H A Q D]`: what the Q queries of each of A drafts make of their keys.

    `text`: keys and values `[B G T D]` of the text; `own`: those of each draft `[B G A S D]`, S may
    be 0. `sees_text` (as `[B A Q T]`) and `sees_own` (as `[Q S]`) say which are seen. H is a
    multiple of G, and its heads follow one another group by group.
    """
    rows, heads, drafts, num, width = q.shape
    groups = text[0].shape[1]
    q = (q * width**-0.5).view(rows, groups, heads // groups, drafts, num, width)
    flat = q.reshape(rows, groups, -1, width)
    far = (flat @ text[0].to(q.dtype).transpose(-1, -2)).view(*q.shape[:-1], -1).float()
    near = (q.unsqueeze(-2) * own[0].unsqueeze(2).unsqueeze(-3)).float().sum(-1)
    far = far.masked_fill(~sees_text[:, None, None], -torch.inf)
    near = near.masked_fill(~sees_own, -torch.inf)
    weights = torch.cat((far, near), dim=-1).softmax(-1).to(q.dtype)
    far, near = torch.split(weights, [far.shape[-1], near.shape[-1]], dim=-1)
    mixed = far.reshape(rows, groups, -1, far.shape[-1]) @ text[1].to(q.dtype)
    drafted = (near.unsqueeze(-1) * own[1].unsqueeze(2).unsqueeze(-3)).sum(-2)
    both: Tensor = mixed.view(q.shape) + drafted
    return both.view(rows, heads, drafts, num, width)
