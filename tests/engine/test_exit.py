"""Self-speculation: the lower layers draft with the target's own keys and values."""

from __future__ import annotations

import shutil

import pytest

from forerun import Engine, IncompatibleSpeculation, OptionError, SamplingParams, Speculation

PROMPTS = ["def f(", "a = [1, 2]\n" * 12, "x"]


@pytest.fixture
def model(tiny_checkpoint_dir, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint_dir("qwen3", 0), directory)
    return directory


def generated(model, *names, backend="native", temperature=0.8):
    params = [
        SamplingParams(temperature=temperature, seed=at, max_tokens=20, ignore_eos=True)
        for at in range(len(PROMPTS))
    ]
    with Engine(model, speculate=Speculation(*names), backend=backend, threads=1) as engine:
        return engine.generate(PROMPTS, params)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("shape", ["auto", "chain:3", "chain:auto", "tree:5", "tree:2x2"])
def test_given_an_early_exit_then_the_tokens_are_those_of_plain_decoding(
    model, backend, temperature, shape
):
    plain = generated(model, "none", backend=backend, temperature=temperature)

    found = generated(model, "exit:1", shape, backend=backend, temperature=temperature)

    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    assert all(one.stats.num_failures == 0 for one in found)
    assert sum(one.stats.num_drafted for one in found) > 0


def test_control_given_another_temperature_then_the_tokens_differ(model):
    plain = generated(model, "none", temperature=0.8)

    assert [one.token_ids for one in plain] != [
        one.token_ids for one in generated(model, "exit:1", "tree:5", temperature=1.2)
    ]


def test_given_an_exit_behind_the_last_layer_then_it_is_refused(model):
    with pytest.raises(
        OptionError, match=r"exit:2 leaves no layer to verify with: the model has 2"
    ):
        generated(model, "exit:2")


def test_given_an_inflated_model_then_an_exit_is_refused(model):
    (model / "inflation.json").write_text("{}")

    with pytest.raises(IncompatibleSpeculation, match="upper layers are identities"):
        generated(model, "exit:1")


def test_given_a_target_that_is_its_own_first_layers_then_every_draft_is_kept(model):
    # given a second layer that writes nothing
    from safetensors.numpy import load_file, save_file

    path = model / "model.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        if ".layers.1." in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = tensors[name] * 0
    save_file(tensors, path)

    # then the first layer foretells all of it
    found = generated(model, "exit:1", "chain:4")
    assert sum(one.stats.num_accepted for one in found) == sum(
        one.stats.num_drafted for one in found
    )
