"""Requests of one service, each in a way of its own: none comes to something else for it."""

from __future__ import annotations

import dataclasses

import pytest

from engine.conftest import HAS_NATIVE, KV_POSITIONS
from engine.service_parts import Held, Listener, alone, around, is_whole, jobs, outcome, played
from engine.ways_parts import (
    ASKED,
    LIMITS,
    SAMPLED,
    asked_of,
    counts,
    mixed_jobs,
    most_rows,
    one_by_one,
    outcomes,
    predicted,
    together,
    write_model,
)
from forerun import Engine, SamplingParams, Speculation
from forerun.control.shared_prices import SharedPrices
from forerun.drafters.mixed import Mixed
from forerun.engine import grouping
from forerun.engine.service import Service

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

OWN = [
    ("lookup", "chain:4"),
    ("lm", "tree:5"),
    ("none",),
    ("eagle3", "chain:3"),
    ("lm", "chain:4", "match", "ahead:4"),
]
LONG = SamplingParams(temperature=0.8, seed=3, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory, target_dir, lm_name):
    lm = lm_name.removeprefix("lm:")
    return write_model(tmp_path_factory.mktemp("ways"), target_dir, lm)


@pytest.fixture
def open_model(model):
    engines = []

    def opened(*names, **options):
        options = {"threads": 1, "kv_positions": KV_POSITIONS, "backend": "native"} | options
        speculation = Speculation(*(names or ("lookup", "chain:4")))
        engines.append(Engine(model, speculate=speculation, **options))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def single(model):
    """What every request of `mixed_jobs` comes to with nobody beside it."""
    with Engine(
        model, speculate=Speculation("lookup", "chain:4"), threads=1, kv_positions=KV_POSITIONS,
        backend="native",
    ) as engine:  # fmt: skip
        return one_by_one(engine, mixed_jobs())


def is_sampled(text):
    return text is not None and text.endswith(SAMPLED)


def test_given_a_way_of_its_own_then_a_request_that_is_judged_by_choices_comes_to_the_same(
    open_model, single
):
    plain = alone(open_model("none"), jobs(len(ASKED)))

    differing = [
        text
        for text, own, other in zip(ASKED, outcomes(single), plain, strict=True)
        if own != other and not is_sampled(text)
    ]

    assert differing == []
    drafted = [one.stats.num_drafted for one in single]
    assert all(num > 0 for num, text in zip(drafted, ASKED, strict=True) if text != "off")


@pytest.mark.parametrize("own", OWN, ids=" ".join)
def test_given_ways_of_all_kinds_at_once_then_each_comes_out_as_if_alone(open_model, single, own):
    engine = open_model(*own)

    completions = together(engine, mixed_jobs())

    assert most_rows(completions) >= 12
    for text, mixed, apart in zip(ASKED, completions, single, strict=True):
        assert outcome(mixed) == outcome(apart), text
    assert is_whole(engine)


def test_given_requests_at_odd_moments_then_each_comes_out_as_if_alone(open_model):
    engine = open_model()
    asked = mixed_jobs(32, seed=4)
    apart = outcomes(one_by_one(engine, asked))

    with Service(engine, LIMITS) as service:
        listeners = played(service, asked, seed=9, share_cancelled=0.2)

    for listener, other in zip(listeners, apart, strict=True):
        completion = listener.completion
        if completion.finish_reason == "cancelled":
            assert completion.token_ids == other[0][: len(completion.token_ids)]
        else:
            assert outcome(completion) == other
    assert is_whole(engine)


def test_given_rules_that_read_the_same_then_rows_share_a_pass(open_model):
    """The control is below: another rule takes a pass of its own."""
    choices = [asked_of(job, text) for job, text in zip(short_jobs(4), ASKED[:4], strict=True)]
    laws = [asked_of(short_jobs(1)[0], "lm + chain:4 + rejection")]

    num_passes, num_rounds = passes_a_round(open_model(), choices)
    num_more, num_rounds_with_laws = passes_a_round(open_model(), [*choices, *laws])

    assert num_passes == num_rounds
    assert num_more > num_rounds_with_laws


def short_jobs(num):
    """Requests that all run for the same number of rounds at least."""
    return [
        dataclasses.replace(jobs(1)[0], prompt=(5, 6, 7 + at), params=LONG) for at in range(num)
    ]


def passes_a_round(engine, asked):
    """Target passes that chose tokens, in a round that all requests shared."""
    target, seen = around(engine, Held), []
    target.on_pass = lambda batch: seen.append(len(batch.logit_nodes) > 0)
    listeners = [Listener() for _ in asked]
    with Service(engine, LIMITS) as service:
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        target.gate.set()
        completions = [listener.completion for listener in listeners]
    rounds = {one.began_s: one.num_rows for done in completions for one in done.stats.rounds}
    assert max(rounds.values()) == len(asked)
    return sum(seen), len(rounds)


class ToNeighbours(Mixed):
    """Hands each row to the guard of the row before it."""

    def __init__(self, seats, tap_layers, shares):
        ids = list(seats)
        moved = {
            at: dataclasses.replace(seats[at], guard=seats[before].guard)
            for at, before in zip(ids, [ids[-1], *ids[:-1]], strict=True)
        }
        super().__init__(moved, tap_layers, shares)


def test_given_rows_handed_to_a_neighbour_s_drafter_then_the_counts_tell(
    open_model, single, monkeypatch
):
    """A control: tokens are the target's under match, but what is drafted is not the same."""
    monkeypatch.setattr(grouping, "Mixed", ToNeighbours)
    asked = [job for job, text in zip(mixed_jobs(), ASKED, strict=True) if not is_sampled(text)]
    right = [one for one, text in zip(single, ASKED, strict=True) if not is_sampled(text)]

    wrong = together(open_model(), asked)

    assert outcomes(wrong) == outcomes(right)
    assert sum(accepted for _, accepted in counts(wrong)) < sum(
        accepted for _, accepted in counts(right)
    )


def test_given_rows_judged_by_a_neighbour_s_rule_then_it_is_seen(open_model, single, monkeypatch):
    """A control: one group of all rows under the first one's rule."""
    monkeypatch.setattr(grouping, "grouped", one_group)

    wrong = together(open_model(), mixed_jobs())

    assert outcomes(wrong) != outcomes(single)


def one_group(rows, own, shares):
    return [grouping.Group(list(rows), grouping._mixed(list(rows), own, (), shares))]


@pytest.mark.parametrize("text", ["lookup + tree:8", "lm", "lm + chain:4 + rejection"])
def test_given_company_of_another_way_then_how_much_to_draft_is_learned_all_the_same(
    open_model, text
):
    engine = open_model("lm", "auto")
    own, others = short_jobs(3), [asked_of(job, text) for job in short_jobs(1)]

    done = together(engine, [*own, *others])

    assert outcomes(done[:3]) == outcomes(one_by_one(engine, own))
    assert any(one.stats.num_drafted > 0 for one in done[:3])
    assert engine._parts.pace._verify.knows(4)


@pytest.mark.parametrize("text", ["lm + tree:auto", "dspark + tree:auto"])
def test_given_a_tree_of_any_size_beside_others_then_it_has_as_many_nodes_as_they_can_bear(
    open_model, monkeypatch, text
):
    def drafted(node_s):
        """Nodes of one request in a crowd, were passes to take so long a node."""

        class Timed(SharedPrices):
            def learn(self, stats, num_rows, num_drafted):
                verify_s = 0.01 + node_s * (stats.num_rows + stats.num_drafted)
                super().learn(
                    dataclasses.replace(stats, verify_s=verify_s, round_s=verify_s, draft_s=0.0),
                    num_rows, num_drafted,
                )  # fmt: skip

        monkeypatch.setattr("forerun.engine.parts.SharedPrices", Timed)
        done = together(open_model("none"), asked)
        assert outcomes(done) == plain
        return done[0].stats.num_drafted

    own, *others = short_jobs(6)
    asked = [asked_of(own, text), *others]
    plain = outcomes(one_by_one(open_model("none"), [own, *others]))

    cheap, dear = drafted(0.0), drafted(0.02)

    assert cheap > 2 * dear


def test_given_a_text_that_comes_then_it_is_followed_and_counted(open_model):
    engine = open_model("none")
    job = dataclasses.replace(jobs(1)[0], params=LONG)
    text = one_by_one(engine, [job])[0].token_ids

    right, wrong = one_by_one(engine, [predicted(job, text), predicted(job, range(150, 190))])

    assert right.token_ids == wrong.token_ids == text
    assert right.prediction == (
        right.stats.num_accepted,
        right.stats.num_drafted - right.stats.num_accepted,
    )
    assert right.prediction[0] > 0.7 * len(text)
    assert len(right.stats.rounds) < len(text) / 3
    assert wrong.prediction[0] <= wrong.prediction[1]


def test_given_a_text_with_faults_then_the_engine_drafts_where_it_has_nothing_to_say(open_model):
    engine = open_model("lm", "chain:4")
    job = dataclasses.replace(jobs(1)[0], params=LONG)
    text = one_by_one(engine, [job])[0].token_ids

    done = one_by_one(engine, [predicted(job, text, num_wrong=7), predicted(job, text[:9])])

    assert [one.token_ids for one in done] == [text, text]
    assert done[0].prediction[1] > 0
    assert all(one.prediction[0] > 0 for one in done)
    assert done[1].prediction[0] <= 9
    assert done[1].stats.num_accepted > done[1].prediction[0]  # the engine's own did the rest


@pytest.mark.parametrize(
    "own", [OWN[0], OWN[1], OWN[4], ("lookup", "chain:4", "rejection")], ids=" ".join
)
def test_given_predictions_among_others_then_nobody_comes_to_something_else(open_model, own):
    engine = open_model(*own)
    asked = mixed_jobs(20, seed=2)
    texts = [one.token_ids for one in one_by_one(engine, asked)]
    can_follow = [
        job.speculation is None or job.speculation.rule in ("auto", "rejection") for job in asked
    ]
    told = [
        predicted(job, text, num_wrong=at % 4 + 3) if can and at % 3 else job
        for at, (job, text, can) in enumerate(zip(asked, texts, can_follow, strict=True))
    ]
    apart = one_by_one(engine, told)

    completions = together(engine, told)

    assert outcomes(completions) == outcomes(apart)
    if own[-1] != "rejection":
        judged = [job.speculation is None or job.speculation.rule == "auto" for job in asked]
        same = [one.token_ids == text for one, text in zip(completions, texts, strict=True)]
        assert all(same[at] for at in range(len(asked)) if judged[at])
    assert is_whole(engine)


def test_given_a_request_that_is_watched_then_it_is_told_who_drafted(open_model):
    engine = open_model()
    base = dataclasses.replace(jobs(1)[0], params=LONG, is_watched=True)
    text = one_by_one(engine, [base])[0].token_ids
    asked = [
        predicted(base, text),
        asked_of(base, "lm + chain:4"),
        asked_of(base, "router(lm,lookup) + chain:4"),
        asked_of(base, "off"),
        base,
    ]
    listeners = [Listener() for _ in asked]
    with Service(engine, LIMITS) as service:
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        assert len({one.completion.token_ids for one in listeners}) == 1

    names = [
        {event.seen.drafter for event in one.events if getattr(event, "seen", None)} - {""}
        for one in listeners
    ]
    assert "prediction" in names[0]
    assert names[1] == {"lm"}
    assert names[2] <= {"lm", "lookup"}
    assert names[2]
    assert names[3] == set()
    assert names[4] <= {"lookup"}


def test_given_the_other_backend_then_ways_beside_each_other_come_out_as_plain(open_model):
    pytest.importorskip("torch").set_num_threads(1)
    engine = open_model(backend="torch")
    ways = (
        "lookup + tree:8",
        "lm + chain:3",
        "exit:1 + chain:3",
        "dspark + chain:4",
        "lm + tree:4",
    )
    asked = [
        dataclasses.replace(asked_of(job, way), params=dataclasses.replace(LONG, max_tokens=6))
        for job, way in zip(short_jobs(len(ways)), ways, strict=True)
    ]
    plain = one_by_one(engine, [dataclasses.replace(job, speculates=False) for job in asked])

    completions = together(engine, asked)

    assert [one.token_ids for one in completions] == [one.token_ids for one in plain]
    assert sum(drafted > 0 for drafted, _ in counts(completions)) >= 2
