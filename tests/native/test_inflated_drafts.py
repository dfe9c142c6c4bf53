"""Drafters that read features, enlarged with their target: token for token the same drafts.

Random drafters, so what they draft is noise and any other bit would soon be another token.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import bf16_bits

from forerun import Engine, SamplingParams, Speculation
from forerun.models.drafter_files import drafter_tensors, open_drafter, write_drafter
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec, MarkovKind
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.tools.inflation import Frame, Size

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILY = resolve_model("forerun-code")
TARGET = read_spec(FAMILY)
SIZE = Size(
    6 * TARGET.num_parameters,
    Frame(4 * TARGET.hidden, TARGET.num_layers + 1, 2 * TARGET.num_heads),
    {},
)
BODY = replace(TARGET, num_layers=2, ffn=256, tied=True, bos_id=None, eos_ids=())
SPECS: dict[str, tuple[DrafterSpec, str]] = {
    "dspark": (
        BlockSpec(
            body=BODY,
            block_len=6,
            is_shifted=True,
            tap_layers=(1, 5, 9),
            target_hidden=TARGET.hidden,
            num_target_layers=TARGET.num_layers,
            mask_id=1,
            windows=(0, 0),
            is_causal=(False, False),
            markov_rank=16,
            markov_kind=MarkovKind.RNN,
        ),
        "deepspec",
    ),
    "eagle3": (
        EagleSpec(
            body=replace(BODY, num_layers=1, family="llama", qk_norm=False, vocab=512),
            tap_layers=(1, 5, 8),
            target_hidden=TARGET.hidden,
            num_target_layers=TARGET.num_layers,
            target_vocab=TARGET.vocab,
            has_token_map=True,
        ),
        "eagle3",
    ),
}


def write_random(directory: Path, kind: str, seed: int) -> None:
    spec, layout = SPECS[kind]
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, shape in drafter_tensors(spec).items():
        middle, spread = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, shape[-1] ** -0.5)
        values = rng.normal(middle, spread, shape).astype(np.float32)
        tensors[name] = bf16_bits(values).reshape(shape)
    if kind == "eagle3":
        tensors["d2t"] = 7 * np.arange(512, dtype=np.int64)  # every eighth token
    write_drafter(directory, spec, tensors, layout=layout)


def family(directory: Path, seed: int) -> Path:
    """The embedded target with random drafters of every kind."""
    directory.mkdir()
    for file in FAMILY.glob("*.*"):
        (directory / file.name).symlink_to(file)
    for kind in SPECS:
        write_random(directory / "drafters" / kind, kind, seed)
    return directory


@pytest.fixture(scope="module")
def inflate() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("inflate")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def models(inflate: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small family, and it enlarged with drafters as shipped and of matched size."""
    root = tmp_path_factory.mktemp("drafts")
    found = {"small": family(root / "small", 1)}
    for ratio in ("shipped", "matched"):
        asked = {"parameters": "small", "ratio": ratio, "seed": 0, "model": "small"}
        plan = inflate.make_plan(found["small"], SIZE, ratio)
        inflate.write(plan, root / ratio, asked)
        found[ratio] = root / ratio
    return found


class Notes:
    """A witness that keeps what was drafted."""

    def __init__(self) -> None:
        self.drafts: list[tuple[list[int], list[int]]] = []

    def saw(self, rows: Any, drafts: Any, *_: Any) -> None:
        self.drafts += [(one.tree.tokens.tolist(), one.tree.parents.tolist()) for one in drafts]

    def settled(self, stats: Any) -> None:
        """Nothing is timed."""


def drafts_of(model: Path, kind: str, shape: str, temperature: float) -> Any:
    notes = Notes()
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=12, ignore_eos=True)
    with Engine(model, speculate=Speculation(kind, shape), witness=notes, threads=1) as engine:
        text = engine.generate(["def quicksort(items):"], [params])[0].text
    return text, notes.drafts


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("dspark", "chain:4"),
        ("dspark", "tree:3x2x1"),
        ("eagle3", "chain:3"),
        ("eagle3", "tree:2x2"),
    ],
)
def test_enlarged_drafters_draft_the_same_tokens(
    models: dict[str, Path], kind: str, shape: str, temperature: float
) -> None:
    text, drafts = drafts_of(models["small"], kind, shape, temperature)
    assert max(len(tokens) for tokens, _ in drafts) > 3
    for ratio in ("shipped", "matched"):
        assert drafts_of(models[ratio], kind, shape, temperature) == (text, drafts)


@pytest.mark.parametrize("kind", SPECS)
def test_another_drafter_drafts_others(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """The control: what is compared does depend on the drafter."""
    text, drafts = drafts_of(models["small"], kind, "chain:3", 0.0)
    other = drafts_of(family(tmp_path / "other", 2), kind, "chain:3", 0.0)
    assert other[0] == text
    assert other[1] != drafts


def test_the_record_says_how_large_each_drafter_is(models: dict[str, Path]) -> None:
    shipped, matched = (
        json.loads((models[ratio] / "inflation.json").read_text())["drafters"]
        for ratio in ("shipped", "matched")
    )
    for kind in SPECS:
        assert shipped[kind]["done"] == "its interface widened, nothing else"
        assert matched[kind]["byte_ratio"] >= 1 / 10 > shipped[kind]["byte_ratio"]
        assert matched[kind]["shape"]["target_hidden"] == 4 * TARGET.hidden
        stored = open_drafter(models["matched"] / "drafters" / kind)
        assert stored.num_bytes == matched[kind]["num_bytes"]
        if kind == "eagle3":
            assert stored.token_map.tolist() == list(range(0, TARGET.vocab, 8))
        assert stored.spec.num_target_layers == TARGET.num_layers + 1
        assert stored.spec.tap_layers == SPECS[kind][0].tap_layers
        assert not (models["matched"] / "drafters" / kind / "parts").exists()
