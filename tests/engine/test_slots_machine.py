"""Any history of admissions, trees, verdicts and releases: each text's K/V stays its own.

A state machine drives block tables and one native backend as target and drafter do, rows in any
company. Cheap checks follow every step; now and then a probe compares what a sequence computes
next, bit by bit, with plain decoding of the same text on a backend where nothing else happened.
"""

from __future__ import annotations

import random
import sys
from collections import Counter

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from forerun.backends.native import NativeBackend
from forerun.backends.prefill import prefill
from forerun.backends.slots import Slots, blocks_for
from forerun.draft import Draw
from forerun.errors import CapacityError
from forerun.options import SamplingParams
from forerun.protocols import NUM_MARGINS, NUM_RANKS, Growth, GrowthPlan, Sampler
from native.builders import (
    CORES,
    Row,
    Text,
    batch_of,
    computed,
    path_to,
    random_checkpoint,
    same_bits,
    tiny_spec,
)

VOCAB, NUM_BLOCKS, LONGEST = 29, 9, 100
SPEC = tiny_spec(
    hidden=32, num_heads=2, num_kv_heads=1, ffn=32, vocab=VOCAB, max_position=NUM_BLOCKS * 32
)
CHECKPOINT = random_checkpoint(SPEC, 3)
GROWTHS = (
    Growth(Draw.COUPLED, None, 3, 2),
    Growth(Draw.COUPLED, (0, 0, 1, 2, 1, 5)),
    Growth(Draw.POINT, None, 2, 3),
    Growth(Draw.SAMPLED, (0, 0, 1, 1, 3)),
    Growth(Draw.WITHOUT_REPLACEMENT, (0, 1, 2, 0, 4)),
    Growth(Draw.TOP_AND_ONE, (0, 0, 0, 2, 2)),
)
PARAMS = (SamplingParams(), SamplingParams(temperature=1.2), SamplingParams(temperature=0.7))
ACCEPTANCE = np.random.default_rng(1).random((NUM_RANKS, NUM_MARGINS)).astype(np.float32)
SEEDS = st.integers(0, 2**32 - 1)
LEAST_STEPS = 10_000
COUNTED = ("grow", "keep", "verify", "commit", "release")
STEPS: Counter[str] = Counter()


def opened():
    return NativeBackend(CHECKPOINT, cores=CORES[:1], num_blocks=NUM_BLOCKS)


class History(RuleBasedStateMachine):
    """`texts`: of each sequence the tokens whose K/V was kept, which is what must be found again.
    Every rule takes one number, out of which it draws what it does."""

    make_slots = Slots
    steps: Counter[str] = STEPS

    def __init__(self):
        super().__init__()
        self.backend = self.acting(opened())
        self.fresh = opened()
        self.slots = self.make_slots(NUM_BLOCKS)
        self.texts: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}
        self.num_admitted = 0
        self.last_plan = None

    @staticmethod
    def acting(backend):
        """The backend under test; mutants put something around it."""
        return backend

    # --- what may happen -------------------------------------------------------------------------

    @precondition(lambda self: len(self.texts) < 5)
    @rule(seed=SEEDS)
    def admit(self, seed):
        rng = random.Random(seed)
        length = rng.choice([1, 5, 31, 32, 33, 64, rng.randrange(1, 70)])
        name, self.num_admitted = self.num_admitted, self.num_admitted + 1
        if not self.has_room(name, length):
            return
        tokens = [rng.randrange(VOCAB) for _ in range(length)]
        prefill(self.backend, self.slots.table([name]), tokens, 0)
        self.texts[name] = tokens
        self.steps["admit"] += 1

    @precondition(lambda self: self.texts)
    @rule(seed=SEEDS)
    def verify(self, seed):
        """A pass over a tree of each of some rows; of each a path is kept, or nothing."""
        rng = random.Random(seed)
        rows, names = [], []
        for name in self.some(rng):
            size = rng.randrange(1, 9)
            if self.has_room(name, len(self.texts[name]) + size):
                parents = [-1, *[rng.randrange(node) for node in range(1, size)]]
                tokens = rng.sample(range(VOCAB), size)
                rows.append(Row(tokens, parents, len(self.texts[name]), self.blocks(name)))
                names.append(name)
        if not rows:
            return
        batch = batch_of(rows)
        self.backend.forward(batch)
        self.refuses_old_plan()
        paths = [self.verdict(rng, row.parents) for row in rows]
        self.backend.commit(batch, paths)
        for name, row, path in zip(names, rows, paths, strict=True):
            self.texts[name] += [row.tokens[node] for node in path]
        self.steps.update(["verify", "commit"])

    @precondition(lambda self: self.texts)
    @rule(seed=SEEDS)
    def draft(self, seed):
        """Trees grown below new text of some rows; of some of them a path is kept, in any order."""
        rng = random.Random(seed)
        plan, names = self.plan(rng)
        if not names:
            return
        drafts = self.backend.grow(plan)
        self.steps["grow"] += 1
        starts = plan.catch_up_starts.tolist()
        for row, name in enumerate(names):
            self.texts[name] += plan.catch_up[starts[row] : starts[row + 1]].tolist()
        self.last_plan = plan
        if rng.random() < 0.1:
            if self.probe_one(rng.choice(list(self.texts))):
                self.refuses_old_plan()
            return
        for row in rng.sample(range(len(names)), rng.randrange(len(names) + 1)):
            path = self.walk(rng, drafts[row])
            assert self.backend.keep(plan, row, path)
            self.texts[names[row]] += drafts[row].tree.tokens[path].tolist()
            self.steps["keep"] += 1

    @precondition(lambda self: self.texts)
    @rule(seed=SEEDS)
    def release(self, seed):
        # the longest more often: it is the one that holds others up
        rng = random.Random(seed)
        longest = max(self.texts, key=lambda name: len(self.texts[name]))
        if len(self.texts[longest]) < LONGEST and rng.random() < 0.6:
            return
        name = longest if rng.random() < 0.5 else rng.choice(list(self.texts))
        num_free, num_owned = self.slots.num_free, len(self.blocks(name))
        self.slots.release(name)
        self.slots.release(name)  # who owns nothing gives nothing back
        assert self.slots.num_free == num_free + num_owned
        del self.texts[name], self.tables[name]
        self.steps["release"] += 1

    @precondition(lambda self: self.texts)
    @rule(seed=SEEDS)
    def probe(self, seed):
        if seed % 4 == 0:
            self.probe_one(random.Random(seed).choice(list(self.texts)))

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def no_block_is_lost_or_owned_twice(self):
        owned = []
        for name in self.texts:
            table = self.slots.table([name])[0].tolist()
            before = self.tables.get(name, [])
            assert table[: len(before)] == before, "an owned block moved"
            assert len(table) >= blocks_for(len(self.texts[name]))
            self.tables[name] = table
            owned += table
        assert len(owned) == len(set(owned))
        assert all(0 <= block < NUM_BLOCKS for block in owned)
        assert len(owned) + self.slots.num_free == NUM_BLOCKS

    def teardown(self):
        try:
            for name in list(self.texts):
                self.probe_one(name)
                self.slots.release(name)
                self.steps["release"] += 1
            assert self.slots.num_free == NUM_BLOCKS
        finally:
            self.backend.close()
            self.fresh.close()

    def probe_one(self, name):
        """What the sequence computes of one more token is what plain decoding computes of it;
        False where there is no room for one."""
        text, token = self.texts[name], len(self.texts[name]) % VOCAB
        if not self.has_room(name, len(text) + 1):
            return False
        batch = batch_of([Row([token], [-1], len(text), self.blocks(name))])
        found = computed(self.backend, batch)
        self.backend.commit(batch, [[]])
        alone = Text(self.fresh, range(NUM_BLOCKS))
        # one token a pass is what is meant; one pass for all has the same bits (tests/native)
        compute = alone.decode if self.steps["probe"] % 10 == 0 else alone.read
        expected = compute([*text, token])[-1:]
        assert same_bits(found, expected), f"the K/V of {name} is not that of its text"
        self.steps["probe"] += 1
        return True

    def refuses_old_plan(self):
        if self.last_plan is not None:
            assert not self.backend.keep(self.last_plan, 0, [])
            self.last_plan = None

    # --- drawn parts -----------------------------------------------------------------------------

    def some(self, rng):
        """Some sequences, in any order."""
        return rng.sample(list(self.texts), rng.randrange(1, min(3, len(self.texts)) + 1))

    def blocks(self, name):
        return self.slots.table([name])[0].tolist()

    def has_room(self, name, num_positions):
        """Own blocks for so many positions; a refusal takes nothing and has a reason."""
        if num_positions > LONGEST + 20:
            return False
        num_free = self.slots.num_free
        try:
            self.slots.reserve(name, num_positions)
        except CapacityError:
            owned = len(self.tables.get(name, []))
            assert self.slots.num_free == num_free < blocks_for(num_positions) - owned
            return False
        return True

    def verdict(self, rng, parents):
        return path_to(parents, rng.randrange(len(parents))) if rng.random() < 0.85 else []

    def walk(self, rng, draft):
        """A path of nodes that were read, from a child of node 0 down, ended anywhere."""
        expanded, path = set(draft.expanded.tolist()), [0]
        while rng.random() < 0.8:
            below = np.flatnonzero(draft.tree.parents == path[-1]).tolist()
            read = [node for node in below if node in expanded]
            if not read:
                break
            path.append(rng.choice(read))
        return path[1:]

    def plan(self, rng):
        rows = []
        for name in self.some(rng):
            num_new, depth = rng.randrange(1, 5), rng.randrange(5)
            if self.has_room(name, len(self.texts[name]) + num_new + depth):
                rows.append((name, num_new, depth))
        names = [name for name, _, _ in rows]
        starts = np.cumsum([0, *[num_new for _, num_new, _ in rows]]).astype(np.int32)
        plan = names and GrowthPlan(
            catch_up=np.array([rng.randrange(VOCAB) for _ in range(starts[-1])], np.int32),
            catch_up_starts=starts,
            committed=np.array([len(self.texts[name]) for name in names], np.int32),
            block_table=self.slots.table(names),
            samplers=[Sampler(rng.choice(PARAMS), rng.randrange(99)) for _ in names],
            budgets=np.array([rng.randrange(9) for _ in names], np.int32),
            depths=np.array([depth for _, _, depth in rows], np.int32),
            growth=rng.choice(GROWTHS),
            acceptance=np.stack([ACCEPTANCE for _ in names]),
        )
        return plan, names


COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.slow
def test_given_any_history_then_blocks_and_their_contents_stay_with_their_owners():
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=190,
            stateful_step_count=100,
            phases=[Phase.generate, Phase.shrink],
            **COMMON,
        ),
    )


# --- the same machine must catch what is wrong ----------------------------------------------------


class Leaks(Slots):
    """Keeps a block of who leaves with more than one."""

    def release(self, sequence_id):
        super().release(sequence_id)
        if self.num_free > 3:
            self._free.pop()


class GivesTwice(Slots):
    """Now and then a block that has an owner is given away."""

    def reserve(self, sequence_id, num_positions):
        super().reserve(sequence_id, num_positions)
        if sequence_id % 4 == 3:
            table = self._tables[sequence_id]
            self._free.insert(0, table[0])


class Delegates:
    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        return getattr(self.backend, name)


class CommitsASibling(Delegates):
    def commit(self, batch, paths):
        if len(paths) == 1 and len(paths[0]) > 1:
            parents = batch.parents.tolist()
            below = [node for node, up in enumerate(parents) if up == parents[paths[0][-1]]]
            paths = [[*paths[0][:-1], below[0]]]
        self.backend.commit(batch, paths)


class KeepsItsLastTwice(Delegates):
    def keep(self, plan, row, path):
        return self.backend.keep(plan, row, path[-1:] * len(path))


class KeepsAlways(Delegates):
    def keep(self, plan, row, path):
        self.backend.keep(plan, row, path)
        return True


def mutant(name, **parts):
    return type(name, (History,), {"steps": Counter(), **parts})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"make_slots": Leaks}, None),
        ({"make_slots": GivesTwice}, None),
        ({"acting": staticmethod(CommitsASibling)}, "not that of its text"),
        ({"acting": staticmethod(KeepsItsLastTwice)}, "not that of its text"),
        ({"acting": staticmethod(KeepsAlways)}, None),
    ],
    ids=lambda one: "" if not isinstance(one, dict) else repr(next(iter(one.values()))),
)
def test_control_given_one_wrong_part_then_the_machine_notices(parts, message):
    few = settings(max_examples=20, stateful_step_count=60, phases=[Phase.generate], **COMMON)

    with pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(mutant("Mutant", **parts), settings=few)


def test_given_all_of_it_then_so_many_steps_were_taken(capsys):
    if not STEPS:
        pytest.skip("the machine was not run")

    with capsys.disabled():
        sys.stdout.write(f"\nsteps of the machine: {dict(STEPS)}\n")
    assert sum(STEPS[name] for name in COUNTED) >= LEAST_STEPS
    assert all(STEPS[name] >= 500 for name in COUNTED)
    assert STEPS["probe"] >= 500
