"""Attention over paged keys in canonical order, one path of a row's tree at a time.

    keys of a path    committed 0 … c-1 (by the block table) | the path's own nodes
    blocks            32 logical positions each, the last padded

Every product is `SLICE` queries by `BLOCK_LEN` keys; sums over keys run within a block, then over
blocks in order, so neither the length of a row nor its other nodes change a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from forerun.protocols import BLOCK_LEN, ForwardBatch

SLICE = 32  # nodes in one product, always


@dataclass(frozen=True, slots=True, eq=False)
class RowPath:
    """One path from a row's node 0 to a leaf.

    `slots` hold the committed keys, `nodes` (flat indices) the path's own, in order; `fresh` are
    those of its nodes that no earlier path has computed, the first at position `first`.
    """

    slots: Tensor
    nodes: Tensor
    fresh: Tensor
    first: int


def row_paths(batch: ForwardBatch, device: torch.device) -> list[RowPath]:
    """The paths to all leaves of all rows; together their fresh nodes are all nodes."""
    paths = []
    for row in range(len(batch.committed)):
        start, end = batch.row_starts[row : row + 2].tolist()
        committed = int(batch.committed[row])
        places = np.arange(committed)
        blocks = batch.block_table[row, places // BLOCK_LEN].astype(np.int64)
        slots = torch.from_numpy(blocks * BLOCK_LEN + places % BLOCK_LEN).to(device)
        for nodes, num_old in _leaf_paths(batch.parents[start:end].tolist()):
            flat = torch.tensor([start + node for node in nodes], device=device)
            paths.append(RowPath(slots, flat, flat[num_old:], committed + num_old))
    return paths


def _leaf_paths(parents: list[int]) -> list[tuple[list[int], int]]:
    """Node lists from the root to each leaf, and how many of them an earlier list had."""
    inner = set(parents)
    seen: set[int] = set()
    paths = []
    for leaf in range(len(parents)):
        if leaf in inner:
            continue
        nodes = [leaf]
        while parents[nodes[-1]] >= 0:
            nodes.append(parents[nodes[-1]])
        nodes.reverse()
        paths.append((nodes, sum(node in seen for node in nodes)))
        seen.update(nodes)
    return paths


def slices(x: Tensor) -> list[Tensor]:
    """`[N C]` as pieces `[1 SLICE C]`, the last padded with zeros."""
    padded = F.pad(x, (0, 0, 0, -len(x) % SLICE))
    return list(padded.view(-1, 1, SLICE, x.shape[-1]).unbind())


def attend_path(queries: Tensor, keys: Tensor, values: Tensor, first: int) -> Tensor:
    """`[N H D]` of queries `[N H D]` at positions first … over keys and values `[L G D]`."""
    num, num_heads, head_dim = queries.shape
    groups = keys.shape[1]
    wide = torch.promote_types(queries.dtype, torch.float32)
    padded = F.pad(queries.to(wide), (0, 0, 0, 0, 0, -num % SLICE))
    # [G, heads of a group, slices, 1, SLICE, D] by [G, 1, 1, blocks, D, BLOCK_LEN]
    q = padded.view(-1, SLICE, groups, num_heads // groups, head_dim).permute(2, 3, 0, 1, 4)
    k, v = _blocks(keys.to(wide)), _blocks(torch.nan_to_num(values.to(wide), nan=0.0))
    scores = _product(q[:, :, :, None], k.transpose(-1, -2)) / math.sqrt(head_dim)
    hidden = _is_later(first, len(padded), k.shape[-3] * BLOCK_LEN, queries.device)
    scores = scores.masked_fill(hidden, -torch.inf)
    peak = scores.amax(dim=(-1, -3), keepdim=True)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True).cumsum(3)[:, :, :, -1]
    mixed = _product(weights, v).cumsum(3)[:, :, :, -1] / total
    return mixed.permute(2, 3, 0, 1, 4).reshape(-1, num_heads, head_dim)[:num].to(queries.dtype)


def _blocks(heads: Tensor) -> Tensor:
    """`[L G D]` as `[G 1 1 blocks BLOCK_LEN D]`, the last block padded with zeros."""
    padded = F.pad(heads, (0, 0, 0, 0, 0, -len(heads) % BLOCK_LEN))
    return padded.view(-1, BLOCK_LEN, *heads.shape[1:]).permute(2, 0, 1, 3)[:, None, None]


def _product(left: Tensor, right: Tensor) -> Tensor:
    shape = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left = left.expand(*shape, *left.shape[-2:]).reshape(-1, *left.shape[-2:])
    right = right.expand(*shape, *right.shape[-2:]).reshape(-1, *right.shape[-2:])
    return torch.bmm(left, right).view(*shape, left.shape[-2], right.shape[-1])


def _is_later(first: int, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """`[slices blocks SLICE BLOCK_LEN]`: whether a key comes after a query."""
    own = first + torch.arange(num_queries, device=device).view(-1, 1, SLICE, 1)
    key = torch.arange(num_keys, device=device).view(1, -1, 1, BLOCK_LEN)
    return key > own
