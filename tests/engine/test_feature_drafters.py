"""DFlash, DSpark and EAGLE-3 end to end: the tokens of plain decoding, whatever breaks."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from engine.feature_drafters import KINDS, names_of, write_feature_drafters
from engine.lattice import completions, differences, outcomes, unstopped
from forerun.draft import Draw
from forerun.drafters.features import Featured
from forerun.drafters.guard import MAX_FAILURES
from forerun.errors import IncompatibleSpeculation
from forerun.options import SamplingParams

SHAPES = (
    "auto", "chain:2", "chain:9", "chain:auto", "tree:5", "tree:auto", "tree:3x2x1",
    "tree:5:likeliest",
)  # fmt: skip
SAMPLED = (
    ("chain:3", "rejection"), ("chain:3", "block"), ("chain:3", "kseq"),
    ("chain:auto", "rejection"), ("tree:5", "rejection"), ("tree:5", "traversal"),
    ("tree:3x2x1", "kseq"),
    ("tree:3x2x1:top", "rejection"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def is_built(backend):
    if backend == "native" and not importlib.util.find_spec("forerun.backends.native_features"):
        pytest.skip("the native core has no such drafters yet")


@pytest.fixture(scope="session")
def drafters(tmp_path_factory, target_dir):
    root = tmp_path_factory.mktemp("feature_drafters")
    return names_of(write_feature_drafters(root, target_dir))


@pytest.fixture(scope="session")
def plain(target_dir):
    """What plain decoding says, by backend."""
    from forerun import Engine, Speculation

    known = {}

    def of(backend):
        if backend not in known:
            speculation = Speculation("none")
            with Engine(target_dir, speculate=speculation, backend=backend, threads=1) as engine:
                known[backend] = outcomes(completions(engine, unstopped()))
        return known[backend]

    return of


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_given_match_then_every_token_is_that_of_plain_decoding(
    open_engine, drafters, plain, backend, kind, shape
):
    made = completions(open_engine(drafters[kind], shape, threads=1), unstopped())

    assert differences(plain(backend), outcomes(made)) == []
    assert sum(one.stats.num_failures for one in made) == 0
    if "auto" not in shape:
        assert all(one.stats.num_drafted > 0 for one in made)
        assert sum(one.stats.num_accepted for one in made) > 0


@pytest.mark.parametrize(("shape", "rule"), SAMPLED)
@pytest.mark.parametrize("kind", KINDS)
def test_given_a_sampled_rule_then_a_seed_says_all_and_greedy_rows_decode_plainly(
    open_engine, drafters, plain, backend, kind, shape, rule
):
    engine = open_engine(drafters[kind], shape, rule=rule, threads=1)

    made, again = completions(engine, unstopped()), completions(engine, unstopped())

    assert outcomes(made) == outcomes(again)
    greedy = {at for at, (_, params) in enumerate(unstopped()) if params.temperature == 0}
    assert not greedy & set(differences(plain(backend), outcomes(made)))
    assert sum(one.stats.num_failures for one in made) == 0
    assert sum(one.stats.num_accepted for one in made) > 0


def test_given_a_router_then_each_reads_its_own_layers(open_engine, drafters, plain, backend):
    words = f"router({drafters['dspark']},{drafters['eagle3']},lookup)"

    made = completions(open_engine(words, "chain:3", threads=1), unstopped())

    assert differences(plain(backend), outcomes(made)) == []
    assert sum(one.stats.num_failures for one in made) == 0
    assert sum(one.stats.num_drafted for one in made) > 0


def test_given_little_memory_then_requests_wait_and_come_out_the_same(
    open_engine, drafters, plain, backend
):
    engine = open_engine(drafters["dspark"], "chain:3", threads=1, kv_positions=384)

    assert differences(plain(backend), outcomes(completions(engine, unstopped()))) == []


# --- what must go wrong ---------------------------------------------------------------------------


class Noting:
    """A feature backend that notes what it drafts, and reads what `changed` makes of features."""

    def __init__(self, backend, changed=lambda features: features):
        self.backend, self.changed, self.proposals = backend, changed, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def absorb(self, catch_up, starts, committed, table, features):
        self.backend.absorb(catch_up, starts, committed, table, self.changed(features))

    def grow(self, plan, features):
        drafts = self.backend.grow(plan, self.changed(features))
        self.proposals += [draft.tree.tokens.tolist() for draft in drafts]
        assert all(draft.draw is Draw.COUPLED for draft in drafts)
        return drafts


class Late:
    """Each token's features given for the next one's."""

    def __init__(self):
        self.last = None

    def __call__(self, features):
        before = features[:1] if self.last is None else self.last
        self.last = features[-1:]
        return np.ascontiguousarray(np.concatenate([before, features])[:-1])


def noted(engine, changed=lambda features: features):
    """The engine with its drafter's backend watched."""
    drafter = engine._parts.drafter._drafter
    drafter._backend = Noting(drafter._backend, changed)
    return drafter._backend


@pytest.mark.parametrize("kind", KINDS)
def test_control_given_features_of_the_neighbours_then_proposals_differ_and_tokens_do_not(
    open_engine, drafters, kind
):
    found, proposals = [], []
    for changed in (lambda features: features, Late()):
        engine = open_engine(drafters[kind], "chain:3", threads=1)
        backend = noted(engine, changed)
        found.append(outcomes(completions(engine, unstopped((130, 31), allowed=None))))
        proposals.append(backend.proposals)

    assert found[0] == found[1]
    assert proposals[0]
    assert proposals[0] != proposals[1]


def deaf(tensors):
    """The same, but what comes of the tokens before the one before is not heard."""
    name = "markov_head.joint_proj.weight"
    if name not in tensors:
        return tensors
    rank = len(tensors[name]) // 3
    return tensors | {name: np.where(np.arange(tensors[name].shape[1]) < rank, 0, tensors[name])}


def test_control_given_an_rnn_that_forgets_then_proposals_differ_and_tokens_do_not(
    open_engine, drafters, target_dir, tmp_path
):
    forgetful = names_of(write_feature_drafters(tmp_path, target_dir, deaf))
    found = {}
    for kind in ("gated", "rnn"):
        for names in (drafters, forgetful):
            engine = open_engine(names[kind], "chain:3", threads=1)
            backend = noted(engine)
            texts = outcomes(completions(engine, unstopped((130, 31), allowed=None)))
            found.setdefault(kind, []).append((texts, backend.proposals))

    (texts, heard), (same_texts, unheard) = found["rnn"]
    assert texts == same_texts
    assert heard
    assert heard != unheard
    assert found["gated"][0] == found["gated"][1]  # which never heard them


class Broken(Featured):
    """A drafter whose `verb` fails."""

    verb = ""

    def _fails(self, verb):
        if verb == self.verb:
            raise ZeroDivisionError(verb)

    def absorb(self, sequence_id, features):
        self._fails("absorb")
        super().absorb(sequence_id, features)

    def observe(self, sequence_id, commit):
        self._fails("observe")
        super().observe(sequence_id, commit)

    def propose(self, rows):
        self._fails("propose")
        return super().propose(rows)


@pytest.mark.parametrize("verb", ["absorb", "observe", "propose"])
def test_given_a_drafter_that_fails_then_no_token_changes_and_it_is_counted(
    open_engine, drafters, plain, backend, verb
):
    engine = open_engine(drafters["dspark"], "chain:3", threads=1)
    drafter = engine._parts.drafter._drafter
    drafter.__class__, Broken.verb = Broken, verb

    made = completions(engine, unstopped())

    assert differences(plain(backend), outcomes(made)) == []
    assert engine._parts.drafter.num_failures > 0
    if verb == "propose":
        assert engine.drafter_is_disabled
        assert engine._parts.drafter.num_failures == MAX_FAILURES
        assert engine._parts.drafter.tap_layers == ()


@pytest.mark.parametrize("kind", KINDS)
def test_given_states_that_are_not_numbers_then_no_token_changes(
    open_engine, drafters, plain, backend, kind
):
    engine = open_engine(drafters[kind], "tree:5", threads=1)
    noted(engine, lambda features: np.full_like(features, np.nan))

    assert differences(plain(backend), outcomes(completions(engine, unstopped()))) == []


def test_given_a_drafter_of_another_target_then_it_is_refused_with_a_sentence(
    open_engine, drafters, tiny_checkpoint_dir
):
    other = tiny_checkpoint_dir("qwen3", 5, num_hidden_layers=3)

    with pytest.raises(IncompatibleSpeculation, match="made for a target of 2 layers, this"):
        open_engine(drafters["dspark"], model=other)
    with pytest.raises(IncompatibleSpeculation, match="holds a block drafter, not what eagle3"):
        open_engine(drafters["dspark"].replace("dspark:", "eagle3:"))


@pytest.mark.parametrize("reads_beside", [True, False], ids=["beside", "control"])
@pytest.mark.parametrize("prompt_len", [60, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_given_a_prompt_then_no_proposal_waits_for_its_features(
    open_engine, drafters, backend, kind, prompt_len, reads_beside, monkeypatch
):
    if backend != "native":
        pytest.skip("only where it matters to no bit when a text was read")
    # given what each proposal takes in before it drafts
    taken, read, propose = [], Featured._read, Featured.propose

    def noted_read(self, sequence_id, progress, features):
        taken[-1] += len(features)
        read(self, sequence_id, progress, features)

    def noted_propose(self, rows):
        taken.append(0)
        drafts = propose(self, rows)
        taken.append(0)
        return drafts

    taken.append(0)
    monkeypatch.setattr(Featured, "_read", noted_read)
    monkeypatch.setattr(Featured, "propose", noted_propose)
    if not reads_beside:
        monkeypatch.setattr(Featured, "num_unread", lambda *_: 0)
    engine = open_engine(drafters[kind], "chain:2", threads=1)

    # when a prompt is read by the first round, or is longer than that
    prompt = tuple(at % 40 + 3 for at in range(prompt_len))
    engine.generate(prompt, SamplingParams(max_tokens=4))

    # then a proposal reads nothing but the newest of it; read late, it reads the prompt
    assert (max(taken[1::2]) == 0) is reads_beside
