"""The public names, and that asking for them costs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import forerun

NAMES = [
    "BackendError",
    "CapacityError",
    "Completion",
    "DrafterError",
    "Engine",
    "EngineClosed",
    "ForerunError",
    "GrammarError",
    "IncompatibleSpeculation",
    "ModelError",
    "OptionError",
    "Pattern",
    "Piece",
    "SamplingParams",
    "Speculation",
    "__version__",
]


def test_given_the_package_then_its_public_names_are_these():
    assert sorted(forerun.__all__) == NAMES
    assert all(hasattr(forerun, name) for name in NAMES)


def test_given_an_unknown_name_then_it_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = forerun.nothing


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import forerun", ["torch", "numpy.random", "tokenizers", "typer"]),
        ("from forerun import Engine", ["torch", "transformers", "typer"]),
    ],
)
def test_given_an_import_then_nothing_heavy_comes_along(statement, absent):
    program = f"import sys; {statement}; print([n for n in {absent!r} if n in sys.modules])"

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert loaded.strip() == "[]"
