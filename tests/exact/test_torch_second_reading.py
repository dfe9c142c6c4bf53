"""The torch drafters against the second reading's stored answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exact.second_reading import drafted_logits  # noqa: E402  after the skip
from exact.second_reading_cases import SHORT_SLOTS, apart, cases  # noqa: E402
from exact.second_reading_slowly import paths_of  # noqa: E402
from forerun.backends.torch.block import BlockDrafter  # noqa: E402
from forerun.backends.torch.eagle import EagleDrafter  # noqa: E402
from forerun.backends.torch.features import TorchFeatureBackend  # noqa: E402
from forerun.draft import Draw  # noqa: E402
from forerun.models.weights import WeightTensor  # noqa: E402
from forerun.options import SamplingParams  # noqa: E402
from forerun.protocols import NUM_MARGINS, NUM_RANKS, Growth, GrowthPlan, Sampler  # noqa: E402

ALL = {case.name: case for case in cases()}
BLOCKS = [name for name, case in ALL.items() if case.is_block]
EAGLES = [name for name, case in ALL.items() if not case.is_block]
TREES = [name for name in BLOCKS if ALL[name].has_tree]
CLOSE = 1e-4  # angles are float32
SAME, FAR = 1e-9, 1e-2  # standard deviations, of heads over the same states


class InMemory:
    """A case's tensors as a drafter's file would give them."""

    def __init__(self, case):
        self.spec, self._tensors = case.built_spec(), case.tensors
        offsets = case.tensors.get("d2t")
        self.token_map = None if offsets is None else offsets + np.arange(len(offsets))

    def tensor(self, name):
        return WeightTensor(self._tensors[name], "F32")


def module_of(case):
    module = (BlockDrafter if case.is_block else EagleDrafter)(case.built_spec())
    module.load_state_dict({name: torch.tensor(one) for name, one in case.tensors.items()})
    return module.double().requires_grad_(requires_grad=False)


def block_states(module, case, num_slots):
    """The residual stream of the slots of a block of so many."""
    context = torch.arange(case.start)
    tokens = [case.pending] + [case.spec["mask_id"]] * (num_slots - 1)
    return module.blocks(
        module.fuse(torch.tensor(case.features).double())[None],
        context,
        torch.tensor(case.table[tokens]).double()[None],
        case.start + torch.arange(num_slots),
        module.masks(context, torch.tensor([[case.start]]), num_slots),
    )


def block_logits(case, num_slots):
    """Logits of the slots, without the Markov head."""
    module = module_of(case)
    x = block_states(module, case, num_slots)
    return module.logits(x, torch.tensor(case.head).double())[0].numpy()


def ancestry(parents):
    """Whether node n sees node m of a tree: itself and what is above it."""
    seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def eagle_logits(case):
    """Logits of the pending token's row and every drafted node, level by level."""
    module, rows = module_of(case), case.start
    table = torch.tensor(case.table).double()
    parents = [-1, *case.parents.tolist()]
    causal = torch.arange(rows)[:, None] >= torch.arange(rows)
    fused = module.fuse(torch.tensor(case.features).double())[None]
    x, past = module.layer(table[case.tokens[1:]][None], fused, torch.arange(rows), causal)
    outputs, seen, depths = [x[0, -1]], ancestry(parents), [0]
    for node in range(1, len(parents)):
        depths.append(depths[parents[node]] + 1)
        mask = np.concatenate([np.ones(rows, bool), seen[node, 1 : node + 1]])
        x, past = module.layer(
            table[[case.drafted[node - 1]]][None],
            outputs[parents[node]][None, None],
            torch.tensor([rows - 1 + depths[node]]),
            torch.tensor(mask)[None],
            past,
        )
        outputs.append(x[0, 0])
    return module.logits(torch.stack(outputs)).numpy()


def greedy_of(case, **changes):
    """What the backend drafts as a chain."""
    backend = TorchFeatureBackend(
        InMemory(replace(case, **changes)),
        table=torch.tensor(case.table),
        head=torch.tensor(case.head),
        num_blocks=3,
    )
    length = len(case.answers["greedy"])
    plan = GrowthPlan(
        catch_up=case.tokens.astype(np.int32),
        catch_up_starts=np.array([0, len(case.tokens)], np.int32),
        committed=np.zeros(1, np.int32),
        block_table=np.array([[2, 0, 1]], np.int32),
        samplers=[Sampler(SamplingParams(), 0)],
        budgets=np.array([length], np.int32),
        depths=np.array([length], np.int32),
        growth=Growth(Draw.COUPLED, tuple(range(length))),
        acceptance=np.ones((1, NUM_RANKS, NUM_MARGINS), np.float32),
    )
    (draft,) = backend.grow(plan, case.features)
    return draft.tree.tokens[1:].tolist()


@pytest.mark.parametrize("name", BLOCKS)
def test_given_a_block_then_every_slot_is_as_it_was_read_a_second_time(name):
    case = ALL[name]

    whole, short = block_logits(case, case.spec["block_len"]), block_logits(case, SHORT_SLOTS)

    assert np.abs(whole - case.answers["logits"]).max() < CLOSE
    assert np.abs(short - case.answers["short_logits"]).max() < CLOSE
    assert np.abs(short - whole[:SHORT_SLOTS]).max() > 100 * CLOSE  # else it proves little


@pytest.mark.parametrize("name", EAGLES)
def test_given_a_tree_then_every_node_is_as_it_was_read_a_second_time(name):
    case = ALL[name]

    logits = eagle_logits(case)

    assert np.abs(logits - case.answers["logits"]).max() < CLOSE
    turned = eagle_logits(replace(case, parents=np.zeros_like(case.parents)))
    assert np.abs(turned - case.answers["logits"]).max() > 100 * CLOSE


@pytest.mark.parametrize("name", ALL)
def test_given_a_greedy_row_then_the_draft_is_the_second_readings(name):
    case = ALL[name]
    field = "is_shifted" if case.is_block else "norm_before_residual"

    assert greedy_of(case) == case.answers["greedy"].tolist()
    other = case.spec | {field: not case.spec[field]}
    assert greedy_of(case, spec=other) != case.answers["greedy"].tolist()


@pytest.mark.parametrize("name", [name for name in BLOCKS if "confidence" in ALL[name].answers])
def test_given_a_confidence_head_then_it_is_as_sure_as_the_second_reading(name):
    case = ALL[name]
    module = module_of(case)
    x = block_states(module, case, case.spec["block_len"])[0]
    before = torch.tensor([case.pending, *case.answers["greedy"][:-1].tolist()])

    sure, unsure = (
        torch.sigmoid(module.confidence(x, one)).numpy() for one in (before, before.flip(0))
    )

    assert np.abs(sure - case.answers["confidence"]).max() < CLOSE
    assert np.abs(unsure - case.answers["confidence"]).max() > 100 * CLOSE


# --- Markov heads, over the states of the module itself -------------------------------------------


def read_from(case, module):
    """The case's tree as it is read a second time from the slots of a right module."""
    states = module.norm(block_states(module, case, case.spec["block_len"])[0]).numpy()
    tree = case.drafted.tolist(), case.parents.tolist()
    return drafted_logits(case.tensors, case.spec, states, case.head, case.pending, *tree)


def by_drafts(case, module):
    """Logits of every node from `markov`, its path a draft of its own."""
    hidden = block_states(module, case, case.spec["block_len"])[0]
    slots, found = module.logits(hidden, torch.tensor(case.head).double()), []
    for path in paths_of(case):
        before = torch.tensor([case.pending, *path])
        found.append((slots[: len(before)] + module.markov(before, hidden[: len(before)]))[-1])
    return torch.stack(found).numpy()


def by_steps(case, module, handed_on=lambda states, parent: states[parent]):
    """Logits of every node from `markov_step`, node by node; `handed_on` chooses a state."""
    hidden = block_states(module, case, case.spec["block_len"])[0]
    slots, found = module.logits(hidden, torch.tensor(case.head).double()), []
    states = {-1: torch.zeros(1, case.spec["markov_rank"]).double()}
    parents, depths = [-1, *case.parents.tolist()], {-1: -1}
    for node, token in enumerate([case.pending, *case.drafted.tolist()]):
        depth = depths[node] = depths[parents[node]] + 1
        above = handed_on(states, parents[node])
        states[node], bias = module.markov_step(
            above, torch.tensor([token]), hidden[depth : depth + 1]
        )
        found.append(slots[depth] + bias[0])
    return torch.stack(found).numpy()


def with_mixing(case, name, changed):
    """The module with the matrix of its Markov head as `changed` makes it."""
    module = module_of(case)
    layer = getattr(module.markov_head, name)
    layer.weight.data = changed(layer.weight.data)
    return module


@pytest.mark.parametrize("name", TREES)
def test_given_a_tree_then_the_markov_head_is_as_it_was_read_a_second_time(name):
    case, module = ALL[name], module_of(ALL[name])

    expected = read_from(case, module)

    assert apart(by_drafts(case, module), expected) < SAME
    assert apart(by_steps(case, module), expected) < SAME
    assert apart(expected, case.answers["tree_logits"]) < CLOSE


def test_control_given_a_state_forgotten_or_a_siblings_then_the_reading_tells():
    case, module = ALL["block_rnn"], module_of(ALL["block_rnn"])
    expected = read_from(case, module)

    forgotten = by_steps(case, module, lambda states, parent: states[-1])
    siblings = by_steps(case, module, lambda states, parent: states[max(states)])

    assert apart(forgotten, expected) > FAR
    assert apart(siblings, expected) > FAR


def test_control_given_parts_of_a_head_in_another_order_then_the_reading_tells():
    gated, rnn = ALL["block_gated"], ALL["block_rnn"]
    wide, rank = rnn.spec["body"]["hidden"], rnn.spec["markov_rank"]
    of_gated = gated.spec["body"]["hidden"]
    swapped = {
        "gate and candidate": lambda one: torch.cat(
            [one[rank : 2 * rank], one[:rank], one[2 * rank :]]
        ),
        "hidden and embedding": lambda one: torch.cat(
            [one[:, :rank], one[:, -rank:], one[:, rank : rank + wide]], dim=1
        ),
        "state and embedding": lambda one: torch.cat(
            [one[:, rank : 2 * rank], one[:, :rank], one[:, 2 * rank :]], dim=1
        ),
    }
    wrong = {name: (rnn, "joint_proj", changed) for name, changed in swapped.items()}
    wrong["gate"] = gated, "gate_proj", lambda one: one.roll(-of_gated, dims=1)

    for what, (case, layer, changed) in wrong.items():
        expected = read_from(case, module_of(case))
        assert apart(by_drafts(case, with_mixing(case, layer, lambda one: one)), expected) < SAME
        assert apart(by_drafts(case, with_mixing(case, layer, changed)), expected) > FAR, what
