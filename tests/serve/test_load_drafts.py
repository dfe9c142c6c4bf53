"""`shape=auto` and `tree:auto` under load: real requests of a server, 1, 4 and 9 at a time.

Seconds are those of a machine that is made up here, so that counts repeat; models, rounds, drafts,
the server and its clients are real.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forerun import Engine, SamplingParams, Speculation
from forerun.control.pace import Paces
from forerun.control.prices import Costs, Prices
from forerun.draft import Verdict
from forerun.rules.match import Match
from forerun.stats import RoundStats

from .live import Live, serving

SHAPES = ("tree:auto", "auto")
MOST, NUM_CASES = 9, 18
PASS_S = 0.5  # of the small model
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
Seconds = Callable[[int], float]


def like_a_cpu(num_nodes: int) -> float:
    """Some nodes ride along with one; beyond them each takes time."""
    return max(10.0, 1.0 * num_nodes)


def free(_: int) -> float:
    """As many as there are ride along."""
    return 10.0


@dataclass(frozen=True)
class Case:
    """A request, for the server and for an engine."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int

    def body(self) -> dict[str, Any]:
        """As the server takes it."""
        return {**dataclasses.asdict(self), "ignore_eos": True}

    def params(self) -> SamplingParams:
        """As an engine takes it."""
        values = dataclasses.asdict(self)
        del values["prompt"]
        return SamplingParams(**values, ignore_eos=True)


def cases(num: int) -> list[Case]:
    """Of different lengths, in turns greedy and sampled."""
    return [
        Case(
            prompt="abcdefgh"[at % 5 :] * (1 + at % 4),
            max_tokens=100 - 7 * (at % 5),
            temperature=(0.0, 0.7)[at % 2],
            seed=at,
        )
        for at in range(num)
    ]


@dataclass(frozen=True)
class Answers:
    """The texts of requests, and how many nodes were drafted below a row in a round of it."""

    texts: list[str]
    num_drafted: int
    nodes_a_round: float

    @staticmethod
    def of(bodies: list[Any]) -> Answers:
        """Each round of a row gains what was kept of its draft, and one token more."""
        timings = [body["timings"] for body in bodies]
        num_rounds = sum(one["predicted_n"] - one["draft_n_accepted"] for one in timings)
        num_drafted = sum(one["draft_n"] for one in timings)
        texts = [body["choices"][0]["text"] for body in bodies]
        return Answers(texts, num_drafted, num_drafted / num_rounds)


@pytest.fixture(scope="module")
def model(
    chat_model: Path, tiny_checkpoint_dir: Callable[..., Path], tmp_path_factory: Any
) -> Path:
    """A model with a small one beside it."""
    directory = tmp_path_factory.mktemp("loaded") / "tiny-chat"
    shutil.copytree(chat_model, directory)
    near = tiny_checkpoint_dir(
        "qwen3", 4, max_position_embeddings=40_960, near=(chat_model, 0.02), scale=0.6
    )
    shutil.copytree(near, directory / "drafters" / "lm")
    return directory


@pytest.fixture(scope="module")
def plain(model: Path) -> list[str]:
    """What plain decoding answers to each case by itself."""
    speculation = Speculation("none")
    with Engine(model, speculate=speculation, threads=1, kv_positions=4096) as engine:
        return [engine.generate(one.prompt, one.params())[0].text for one in cases(NUM_CASES)]


def make_up(patch: pytest.MonkeyPatch, verify_s: Seconds) -> None:
    """Let every timing and every round take the seconds of another machine."""
    costs = Costs(tuple((num, verify_s(num)) for num in WIDTHS), PASS_S)
    patch.setattr("forerun.engine.drafting.measured", lambda *_: costs)
    pace, price = Paces.learn, Prices.learn

    def told(stats: RoundStats) -> RoundStats:
        verify = verify_s(stats.num_rows + stats.num_drafted)
        draft = PASS_S * stats.num_draft_passes
        return dataclasses.replace(stats, verify_s=verify, draft_s=draft, round_s=verify + draft)

    patch.setattr(Paces, "learn", lambda self, stats, *a, **b: pace(self, told(stats), *a, **b))
    patch.setattr(Prices, "learn", lambda self, stats: price(self, told(stats)))


@contextmanager
def served(model: Path, shape: str, verify_s: Seconds = like_a_cpu) -> Iterator[Live]:
    """A server whose machine is made up."""
    with pytest.MonkeyPatch.context() as patch:
        make_up(patch, verify_s)
        speculation = Speculation("lm", shape)
        with (
            Engine(model, speculate=speculation, threads=1, kv_positions=16_384) as engine,
            serving(engine) as live,
        ):
            yield live


def asked(live: Live, num_at_a_time: int) -> Answers:
    """Twice as many requests as run at a time, three at least; each leaves when another ended."""
    with live.http() as http, ThreadPoolExecutor(num_at_a_time) as pool:
        made = cases(max(3, 2 * num_at_a_time))
        answers = list(pool.map(lambda one: http.post("/v1/completions", json=one.body()), made))
    assert {answer.status_code for answer in answers} == {200}
    return Answers.of([answer.json() for answer in answers])


def drafted(live: Live) -> float:
    """Drafted tokens of all requests so far, by the server's metrics."""
    with live.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(DRAFT_TOKENS))


@pytest.mark.parametrize("shape", SHAPES)
def test_given_a_crowd_then_fewer_nodes_are_drafted_and_as_many_as_before_once_it_has_left(
    model: Path, plain: list[str], shape: str
) -> None:
    with served(model, shape) as live:
        found = [asked(live, num) for num in (1, 4, MOST, 1)]
        total = drafted(live)

    alone, some, crowd, again = found
    for one in found:
        assert one.texts == plain[: len(one.texts)]
    assert alone.nodes_a_round > some.nodes_a_round > crowd.nodes_a_round
    assert crowd.nodes_a_round < 0.35 * alone.nodes_a_round
    assert again.nodes_a_round > 0.7 * alone.nodes_a_round
    assert total == sum(one.num_drafted for one in found)


@pytest.mark.parametrize("shape", SHAPES)
def test_control_given_nodes_that_cost_nothing_then_a_crowd_drafts_as_much_as_one(
    model: Path, plain: list[str], shape: str
) -> None:
    with served(model, shape, free) as live:
        alone, crowd = asked(live, 1), asked(live, MOST)

    assert crowd.nodes_a_round > 0.7 * alone.nodes_a_round
    assert crowd.texts == plain


@pytest.mark.parametrize("shape", SHAPES)
def test_control_given_a_rule_that_keeps_a_token_too_many_then_texts_are_others(
    model: Path, plain: list[str], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Match.judge

    def judge(self: Match, draft: Any, target: Any, noise: Any) -> Verdict:
        verdict = honest(self, draft, target, noise)
        below = draft.tree.tokens[draft.tree.parents == verdict.path[-1]]
        return Verdict(verdict.path, int(below[0]) if len(below) else verdict.bonus)

    monkeypatch.setattr(Match, "judge", judge)
    with served(model, shape) as live:
        crowd = asked(live, MOST)

    assert crowd.texts != plain
