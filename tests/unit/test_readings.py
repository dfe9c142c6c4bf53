"""Two readings of a learned drafter: equal blocks are counted, near ties told from faults."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from forerun.draft import Draft, Draw
from forerun.tree import TokenTree

torch = pytest.importorskip("torch")
pytest.importorskip("forerun._native", reason="the native core is not built")


@pytest.fixture
def readings(monkeypatch):
    """The script as a module."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "readings.py"
    spec = spec_from_file_location("benchmark_of_readings", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def drafted(*tokens, margins=None):
    tree = TokenTree.chain([0, *tokens])
    kept = np.array([0.0, *(margins or [1.0] * len(tokens))], np.float32)
    return Draft(tree, Draw.COUPLED, margins=kept)


def test_given_blocks_that_part_then_the_reference_s_margin_there_counts(readings):
    equal = readings.Pair(drafted(3, 4), drafted(3, 4))
    near = readings.Pair(drafted(3, 4, 5), drafted(3, 6, 5, margins=[2.0, 0.01, 3.0]))

    assert (equal.parts_at, equal.margin) == (None, 0.0)
    assert near.parts_at == 1
    assert near.margin == pytest.approx(0.01)
    row = readings.counted(readings.Readings("dspark", "avx2", "canonical-bf16", [equal, near]))
    assert (row["num_blocks"], row["num_equal"], row["num_first_equal"]) == (2, 1, 2)
    assert row["widest_margin"] == pytest.approx(0.01)
    assert (row["drafter"], row["isa"], row["numerics"]) == ("dspark", "avx2", "canonical-bf16")


@pytest.mark.parametrize("is_wrong", [False, True], ids=["as it is", "with another table"])
def test_given_the_embedded_drafters_then_both_readings_agree_and_a_wrong_one_is_told(
    readings, monkeypatch, capsys, is_wrong
):
    """The control reads tokens from rows of a table that are not theirs."""

    class Rolled(readings.TorchFeatureBackend):
        def __init__(self, drafter, *, table, num_blocks):
            rows = torch.roll(table, 7, 0) if is_wrong else table
            super().__init__(drafter, table=rows, num_blocks=num_blocks)

    monkeypatch.setattr(readings, "TorchFeatureBackend", Rolled)
    monkeypatch.setattr(sys, "argv", ["readings.py", "--limit", "3"])

    assert readings.main() == is_wrong
    told = capsys.readouterr().out
    assert ("dspark, canonical-bf16: 3 of 3 blocks equal" in told) is not is_wrong
    assert told.count("canonical-float32: 3 of 3 blocks equal") == (0 if is_wrong else 2)
