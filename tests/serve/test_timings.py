"""What the metrics say of how long choices took, by a clock that moves only when told to."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from prometheus_client import CollectorRegistry

from forerun.engine.results import Piece
from forerun.engine.service import Gained
from forerun.serve.timings import Clock


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def gained(num_tokens: int) -> Gained:
    tokens = tuple(range(num_tokens))
    return Gained(Piece(tokens, ("x",) * num_tokens, (False,) * num_tokens))


def counted(registry: CollectorRegistry, name: str) -> list[float | None]:
    """How many values a histogram has seen, and their sum."""
    labels, name = {"model_name": "tiny"}, f"vllm:{name}_seconds"
    return [registry.get_sample_value(f"{name}_{part}", labels) for part in ("count", "sum")]


def test_given_two_choices_that_take_turns_then_each_gap_is_between_tokens_of_one() -> None:
    registry, hands = CollectorRegistry(), Hands()
    request = Clock(registry, "tiny", hands).request()

    # The second choice says something a quarter of a second after the first, each a second apart.
    for choice, num_tokens, at_s in ((0, 1, 2.0), (1, 1, 2.25), (0, 4, 3.0), (1, 2, 3.25)):
        hands.s = 100.0 + at_s
        request.hear(choice, gained(num_tokens))

    assert counted(registry, "time_to_first_token") == [2, 2.0 + 2.25]
    # Of the gaps between whatever came: 0.25, 0.75 / 4 and 0.25 / 2.
    assert counted(registry, "inter_token_latency") == [2, 1.0 / 4 + 1.0 / 2]
