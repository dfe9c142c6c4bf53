"""Figures of benchmarks/confidence.py on drafts whose worth is known."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture
def confidence(monkeypatch):
    """The script as a module."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "confidence.py"
    spec = spec_from_file_location("benchmark_of_confidence", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_given_chances_that_are_right_then_they_cost_no_nats_and_blind_ones_do(confidence):
    nats = confidence.nats
    truth = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert nats(truth, truth) < 1e-3
    assert nats(torch.full((4,), 0.5), truth) == pytest.approx(0.6931, abs=1e-3)
    assert nats(1 - truth, truth) > 5


def test_given_bins_then_a_value_has_the_share_of_its_own(confidence):
    values = torch.tensor([0.1, 0.2, 1.1, 1.2]).repeat(500)
    truth = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(500)
    table = confidence.Binned.fitted(0.0, 1.0, 2, values, truth)
    assert table.of(torch.tensor([-3.0, 0.5, 1.5, 9.0])).tolist() == pytest.approx(
        [0.0, 0.0, 1.0, 1.0], abs=0.01
    )


def test_given_who_knows_what_is_kept_then_the_yield_is_that_of_no_wasted_token(confidence):
    is_kept = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0]])
    none = torch.zeros(*is_kept.shape)
    rows = [confidence.Row(0.0, none[..., None], none, is_kept, none, none.bool())]
    knows = confidence.best_yield(rows, lambda one: one.is_kept, 0.1)
    blind = confidence.best_yield(rows, lambda one: torch.full_like(one.is_kept, 0.9), 0.1)
    assert knows == pytest.approx(6 / (3 * 1.3 + 0.3))  # three drafted, three kept, three own
    assert blind < knows
