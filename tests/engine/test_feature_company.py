"""What a drafter on features draws for a row does not depend on whose rows share its pass."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.conftest import HAS_NATIVE
from engine.feature_drafters import KINDS, OPENED_AS
from forerun import SamplingParams
from forerun.drafters import features

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

LENGTHS = (3, 21, 24, 27, 29, 55, 120)  # texts that grow over the end of a K/V block


def texts(engine, *, is_alone: bool):
    """Tokens of each prompt, all in the same rounds or one after another."""
    rng = random.Random(7)
    prompts = [[rng.randrange(10, 90) for _ in range(num)] for num in LENGTHS]
    params = [
        SamplingParams(temperature=1.0, seed=at, max_tokens=24, ignore_eos=True)
        for at in range(len(prompts))
    ]
    if is_alone:
        pairs = zip(prompts, params, strict=True)
        found = [engine.generate(prompt, one)[0] for prompt, one in pairs]
    else:
        found = engine.generate(prompts, params)
    assert sum(one.stats.num_drafted for one in found) > 0
    return [one.token_ids for one in found]


def opened_with(opened, kind, shape="chain:2", **options):
    return opened((f"{OPENED_AS[kind]}:{{{kind}}}", shape, "rejection"), **options)


@pytest.mark.parametrize("shape", ["chain:2", "tree:2x1"])
@pytest.mark.parametrize("kind", KINDS)
def test_given_a_sampled_rule_then_a_seed_gives_the_same_tokens_in_any_company(opened, kind, shape):
    alone = texts(opened_with(opened, kind, shape), is_alone=True)

    assert texts(opened_with(opened, kind, shape), is_alone=False) == alone


def test_control_given_blocks_for_what_is_drafted_only_then_company_changes_tokens(
    opened, monkeypatch
):
    """A block drafter is fed more slots than are asked for, where a wider table has room."""
    monkeypatch.setattr(features, "slots_fed", lambda spec, num_levels: num_levels)
    alone = texts(opened_with(opened, "dspark"), is_alone=True)

    assert texts(opened_with(opened, "dspark"), is_alone=False) != alone


def test_given_the_backends_then_all_feed_as_many_slots_as_blocks_are_owned_for():
    torch_features = pytest.importorskip("forerun.backends.torch.features")
    native = (Path(__file__).parents[2] / "native" / "reader.cpp").read_text(encoding="utf-8")

    assert torch_features.FREE_SLOTS == features.FREE_SLOTS
    assert f"kFreeSlots = {features.FREE_SLOTS};" in native
