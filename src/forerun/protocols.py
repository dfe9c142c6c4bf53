"""The contract on one page: four axes of speculation, and the backend they stand on.

Any drafter composes with any shape, rule and schedule; a backend is what runs a forward pass.
Dimensions: B rows, T nodes of all rows, R rows of logits, V vocabulary, K draft depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft, Draw, Verdict
from forerun.models.drafter_spec import DrafterSpec
from forerun.models.spec import ModelSpec
from forerun.noise import Purpose
from forerun.options import SamplingParams
from forerun.tree import Tokens, TokenTree

BLOCK_LEN = 32  # logical positions per K/V block, on every backend


# --- what a forward pass sees -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """Rows of nodes for one forward pass; row b owns nodes `row_starts[b]:row_starts[b+1]`.

    `token_ids [T]`, `parents [T]` (index within the row, -1 at its node 0), `row_starts [B+1]`,
    `committed [B]` tokens whose K/V is kept, `block_table [B S]` physical block of each 32
    positions (entries past a row's need are ignored), `logit_nodes [R]` flat node indices whose
    logits are wanted. All int32. A node's position is `committed + depth`.
    The caller owns blocks for `committed + nodes` positions of every row.
    """

    token_ids: Tokens
    parents: Tokens
    row_starts: Tokens
    committed: Tokens
    block_table: NDArray[np.int32]
    logit_nodes: Tokens
    tap_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ForwardOutput:
    """`logits [R V]` float32 in the backend's own array type, valid until its next forward;
    `taps [T, len(tap_layers) * hidden]` float32 numpy, or None."""

    logits: Any
    taps: NDArray[np.float32] | None = None


# --- vocabulary-wide operations ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """One sequence's way of choosing: its parameters, its resolved seed and, only when
    penalties are on, which tokens it has seen.

    `prompt_ids`: distinct ids of the prompt (repetition penalty). `output_ids`/`output_counts`:
    distinct generated ids and how often each came (all penalties).
    """

    params: SamplingParams
    seed: int
    prompt_ids: Tokens = field(default_factory=lambda: np.zeros(0, np.int32))
    output_ids: Tokens = field(default_factory=lambda: np.zeros(0, np.int32))
    output_counts: Tokens = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Who chooses at each row of logits.

    `positions [R]` int64: absolute position of the token being chosen (the node's + 1), which
    keys the noise. `sampler_of [R]`: index into `samplers`. `path_starts [R+1]`,
    `path_tokens`: drafted tokens between the sequence's known text and this row, for penalties
    (the pending token is already in the sampler's counts; empty where no penalties are on).
    """

    positions: NDArray[np.int64]
    sampler_of: Tokens
    samplers: Sequence[Sampler]
    path_starts: Tokens
    path_tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class ProposalPlan:
    """A whole chain proposal for B rows as plain data, so that a backend runs it in one call.

    `catch_up`/`catch_up_starts [B+1]`: tokens the drafter has not seen, ending with the pending
    token. `committed [B]`: its K/V length before them. `block_table [B S]`: room for
    `committed + catch_up + num_steps`. `samplers`: one per row; the draft token for a position
    is the argmax of `log q + g` with the target's own noise of that position.
    """

    catch_up: Tokens
    catch_up_starts: Tokens
    committed: Tokens
    block_table: NDArray[np.int32]
    samplers: Sequence[Sampler]
    num_steps: int


# Margins are looked up in bins of this width; the first begins at LEAST_MARGIN, both ends are open.
NUM_MARGINS, MARGIN_STEP, LEAST_MARGIN = 64, 0.25, -8.0
NUM_RANKS = 8  # of siblings with an acceptance of their own; later ones count as the last


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """How a draft grows below the pending token; the same for all rows and rounds of a drafter.

    `parents`: a given tree, parents before children, 0 the pending token; its children are filled
    in order of drawing, and what a law has too few tokens for is left out with all below it. None
    grows best first: level by level the `frontier` best nodes are expanded, each offering its
    `width` best tokens, and of all tokens offered the best of the budget stay. A token's score is
    its parent's times its acceptance by rank and margin (`COUPLED`), or its probability (`POINT`).
    Nothing below the score `least` is drafted; for sampled draws it bounds the entropy instead
    (`1 - sqrt(0.2 H)`, Agrawal et al. 2024, AdaEDL, arXiv:2410.18351): never the drawn token.
    `damped`: (F, C), of sampled draws only: each law's F likeliest tokens times C (`draw.damp`).
    """

    draw: Draw
    parents: tuple[int, ...] | None = None
    width: int = 1
    frontier: int = 1
    least: float = 0.0
    damped: tuple[int, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GrowthPlan:
    """A whole proposal of trees for B rows as plain data, so that a backend runs it in one call.

    The first five fields are those of `ProposalPlan`; `block_table` has room for `committed +
    catch_up + depth`. `budgets [B]`: most drafted nodes of each row; `depths [B]`: most levels.
    `prices`: the score that the n-th best node of a tree must have to be worth verifying, the last
    one for all further; `pass_price`: what the scores of the nodes expanded next must sum to, over
    all rows, to be worth a pass. Both are of best-first growth only.
    `acceptance [B, NUM_RANKS, NUM_MARGINS]` float32: how often a child of that rank and margin is
    the target's choice; read by best-first `COUPLED` growth only. `is_told`: with `Draft.chances`.
    """

    catch_up: Tokens
    catch_up_starts: Tokens
    committed: Tokens
    block_table: NDArray[np.int32]
    samplers: Sequence[Sampler]
    budgets: Tokens
    depths: Tokens
    growth: Growth
    acceptance: NDArray[np.float32]
    prices: tuple[float, ...] = (0.0,)
    pass_price: float = 0.0
    is_told: bool = False


class Backend(Protocol):
    """Weights and K/V of one model on one lane, and its two vocabulary-wide operations."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def numerics(self) -> str:
        """Name of the arithmetic, for results: `canonical-bf16`, `torch-cpu-float32`, …"""

    @property
    def exactness(self) -> str:
        """What is promised between two ways of computing a position: `bits`, `tokens`, `law`."""

    @property
    def num_blocks(self) -> int:
        """Physical K/V blocks of `BLOCK_LEN` positions."""

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Compute all nodes of all rows once; their K/V stays provisional until `commit`."""

    def commit(self, batch: ForwardBatch, paths: Sequence[Sequence[int]]) -> None:
        """Keep the K/V of the nodes on `paths` (node ids within each row, node 0 first; an empty
        path keeps nothing) at their canonical places. Must follow the forward of `batch`."""

    def select(self, logits: Any, selection: Selection) -> Tokens:
        """`[R]` the chosen token of each row under its sampler and noise; -1 where there is none
        (NaN logits, or no token left), or a BackendError when any row has none."""

    def law(self, logits: Any, selection: Selection) -> NDArray[np.float32]:
        """`[R V]` the law each row chooses from, after all processors; one-hot at temperature 0."""

    def logprobs(self, logits: Any, rows: Tokens) -> NDArray[np.float32]:
        """`[len(rows) V]` raw log-softmax of the given rows of logits."""

    def propose(self, plan: ProposalPlan) -> NDArray[np.int32]:
        """`[B num_steps]` drafted tokens. K/V of all but the last is kept in place."""

    def grow(self, plan: GrowthPlan, num_layers: int = 0) -> list[Draft]:
        """One tree a row below its last catch-up token; `expanded` names the nodes it read. K/V of
        the catch-up tokens is kept in place, that of expanded nodes until the next call.

        `num_layers`: only the lowest so many, and the head behind them, draft; 0 is all."""

    def keep(self, plan: GrowthPlan, row: int, path: Sequence[int]) -> bool:
        """Keep the K/V of expanded nodes `path` (from a child of node 0 down) of a row of the last
        proposal, behind its catch-up tokens; False if another call came between."""

    def close(self) -> None: ...


class FeatureBackend(Protocol):
    """A model that reads its target's features; table of tokens and head borrowed, K/V its own.

    In a plan a row's `catch_up` are all tokens from `committed` on, the pending one last; their
    `features [catch_up - B, F]` float32, row by row, are the target's tapped states at each but the
    pending one, which has none yet. What the target has not read cannot be drafted from.
    """

    @property
    def spec(self) -> DrafterSpec: ...

    @property
    def exactness(self) -> str: ...  # as of a `Backend`

    @property
    def num_blocks(self) -> int:
        """Physical K/V blocks of `BLOCK_LEN` positions."""

    def absorb(
        self,
        catch_up: Tokens,
        catch_up_starts: Tokens,
        committed: Tokens,
        block_table: NDArray[np.int32],
        features: NDArray[np.float32],
    ) -> None:
        """Keep the K/V of every row's features; nothing is drafted."""

    def grow(self, plan: GrowthPlan, features: NDArray[np.float32]) -> list[Draft]:
        """Absorb, then one tree a row below its pending token, whose own K/V is not kept."""

    def close(self) -> None: ...


# --- the four axes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class DraftRow:
    """One sequence as a drafter sees it: its tokens (the last is pending), how it chooses, how many
    nodes may be proposed, how deep, how many tokens' K/V the target holds, and who watches."""

    sequence_id: int
    tokens: Sequence[int]
    prompt_len: int
    sampler: Sampler
    max_drafted: int
    max_depth: int = 1 << 30
    committed_len: int = 0
    is_watched: bool = False


class Prices(Protocol):
    """What drafting must be expected to yield, to be worth its time; learned elsewhere."""

    @property
    def is_paused(self) -> bool:
        """Whether rows decode plainly for now."""

    def of_nodes(self, num_rows: int, most: int) -> tuple[float, ...]:
        """`GrowthPlan.prices` for so many rows of at most so many nodes."""

    def of_pass(self, num_rows: int) -> float:
        """`GrowthPlan.pass_price`."""


class Drafter(Protocol):
    """What may come next? Proposals may be anything; only speed depends on their quality."""

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Make room for a sequence. Raises CapacityError; the engine then drafts nothing for it."""

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One draft per row; a tree of one node where nothing is worth proposing."""

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Learn what was kept of the last proposal."""

    def release(self, sequence_id: int) -> None:
        """Forget a sequence."""

    def close(self) -> None: ...


@runtime_checkable
class ReadsFeatures(Drafter, Protocol):
    """A drafter that also reads the target's tapped states, every token's once and in order: those
    of a prompt by `absorb`, after `admit`; those of a round in its `Commit.features`."""

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Target layers whose outputs it reads, side by side in this order; empty for none."""

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Take in the states `[M, F]` of the next M known tokens of a sequence."""


class Shape(Protocol):
    """Which candidates become nodes?"""

    @property
    def max_drafted(self) -> int:
        """Most nodes a draft may have beside node 0."""

    def fits(self, depth: int) -> int:
        """Most nodes beside node 0 when no path may be deeper than `depth`."""

    def limit(self, tree: TokenTree) -> TokenTree:
        """The part of an offered tree that fits; drops whole subtrees, never reorders."""


class Noise(Protocol):
    """The decisions of one row's round, each by a counter of its own (`noise.RoundNoise`)."""

    def accepts(self, node: int, index: int, p: float, q: float) -> bool:
        """Whether `u * q < p` for the uniform u of decision `index` at `node`."""

    def picks(self, purpose: Purpose, node: int, index: int, weights: NDArray[np.float64]) -> int:
        """A token drawn from weights `[V]` that need no normalising."""


class Reads(Enum):
    """What of the target a rule looks at."""

    CHOICES = "choices"  # [N] its token at every node
    LAWS = "laws"  # [N V] its law at every node, after all processors


class Rule(Protocol):
    """How far do we agree? Pure: what the target says of every node in, verdict out."""

    @property
    def reads(self) -> Reads:
        """What `judge` wants of the target."""

    def judge(self, draft: Draft, target: Any, noise: Noise) -> Verdict:
        """`target`: choices `[N]` or laws `[N V]` of the draft's nodes, as `reads` says."""


class Schedule(Protocol):
    """What do we prepare before we know? `per_exit`: most outcomes of one exit; 0: any number."""

    per_exit: ClassVar[int]

    @property
    def num_branches(self) -> int:
        """Most outcomes (exit node, bonus token) prepared while a verdict is pending; 0 is none."""

    def exits(self, draft: Draft) -> list[int]:
        """Nodes of a draft where its verdict may end, as far as that is prepared for."""


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """How far to look beyond drafts under verification: `exits [B]`, `num_branches` and `per_exit`
    as a schedule says; `most [B]` nodes and `depths [B]` levels of the draft below each guess;
    `deepest` as in `ForecastPlan`; `reach`: how often a node of depth 0, 1, … was kept so far."""

    exits: Sequence[Tokens]
    num_branches: int
    most: Tokens
    depths: Tokens
    deepest: NDArray[np.int32]
    reach: Sequence[float] = (1.0,)
    per_exit: int = 0


@runtime_checkable
class Foresees(Drafter, Protocol):
    """A drafter that can grow drafts, anybody's, further while they are verified."""

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """Each tree grown further: first its own nodes as they are, then guesses, what follows."""


@runtime_checkable
class Anticipates(Drafter, Protocol):
    """A drafter that works while its drafts are verified."""

    def anticipate(self, rows: Sequence[DraftRow], drafts: Sequence[Draft]) -> None:
        """These drafts are about to be verified; returns at once."""
