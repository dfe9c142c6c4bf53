"""Which backends read the same weights: those of the same files, options and cores."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from weakref import ref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.feature_drafters import write_feature_drafters  # noqa: E402  after the skip
from forerun.backends import sharing  # noqa: E402
from forerun.backends.sharing import OpenModels  # noqa: E402
from forerun.models.drafter_files import open_drafter  # noqa: E402
from forerun.models.weights import open_checkpoint  # noqa: E402
from forerun.options import EngineOptions  # noqa: E402
from forerun.protocols import ForwardBatch  # noqa: E402

OPTIONS = EngineOptions(backend="torch", kv_positions=64)


@pytest.fixture
def directory(tiny_checkpoint_dir, tmp_path):
    return shutil.copytree(tiny_checkpoint_dir("qwen3", 0), tmp_path / "model")


def batch_of(tokens):
    count = len(tokens)
    return ForwardBatch(
        token_ids=np.array(tokens, np.int32),
        parents=np.arange(-1, count - 1, dtype=np.int32),
        row_starts=np.array([0, count], np.int32),
        committed=np.zeros(1, np.int32),
        block_table=np.zeros((1, 1), np.int32),
        logit_nodes=np.arange(count, dtype=np.int32),
    )


def opened(models, directory, options=OPTIONS, cores=None):
    return models.model(open_checkpoint(directory), options, cores)


def logits_of(backend, tokens=(3, 4, 5)):
    return backend.forward(batch_of(tokens)).logits.numpy()


def test_given_the_same_files_then_weights_are_shared_and_k_v_is_not(directory):
    models = OpenModels()
    first = opened(models, directory)
    alone = models.weight_bytes
    second = opened(models, directory, EngineOptions(backend="torch", kv_positions=128))
    apart = opened(OpenModels(), directory)

    assert second.weights is first.weights
    assert models.weight_bytes == alone > 0
    assert (first.num_blocks, second.num_blocks) == (2, 4)
    assert apart.weights is not first.weights
    expected = logits_of(apart)
    logits_of(second, (9, 8, 7))
    first.close()
    np.testing.assert_array_equal(logits_of(second), expected)


def changed_in_place(directory):
    """The same names, other contents: what a deployment that copies over a model leaves."""
    file = directory / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("different", ["type", "cores", "path", "files"])
def test_given_other_options_cores_or_files_then_nothing_is_shared(directory, different):
    models = OpenModels()
    first = opened(models, directory)
    options, cores = OPTIONS, None
    if different == "type":
        options = EngineOptions(backend="torch", dtype="float64", kv_positions=64)
    elif different == "cores":
        cores = (min(os.sched_getaffinity(0)),)
    elif different == "path":
        directory = shutil.copytree(directory, directory.with_name("other"))
    else:
        changed_in_place(directory)

    second = opened(models, directory, options, cores)

    assert second.weights is not first.weights
    assert models.weight_bytes == first.weights.num_bytes + second.weights.num_bytes


def test_given_a_link_to_a_model_then_it_is_the_same_model(directory):
    models = OpenModels()
    link = directory.with_name("link")
    link.symlink_to(directory)

    assert opened(models, link).weights is opened(models, directory).weights


def test_given_the_last_backend_closes_then_the_memory_goes_and_a_new_one_loads_again(directory):
    models = OpenModels()
    backends = [opened(models, directory) for _ in range(2)]
    weights = ref(backends[0].weights)

    backends[0].close()
    gc.collect()
    assert weights() is not None
    backends[1].close()
    gc.collect()
    assert weights() is None
    assert models.weight_bytes == 0

    again = opened(models, directory)
    assert models.weight_bytes == again.weights.num_bytes


def test_given_two_threads_that_open_one_model_at_once_then_it_is_loaded_once(
    directory, monkeypatch
):
    models, begun, found = OpenModels(), threading.Barrier(2), []
    loads = []
    load = sharing.open_backend

    def counted(checkpoint, options, cores, weights=None):
        loads.append(weights)
        return load(checkpoint, options, cores, weights)

    monkeypatch.setattr(sharing, "open_backend", counted)

    def open_at_once():
        begun.wait()
        found.append(opened(models, directory))

    threads = [threading.Thread(target=open_at_once) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found[0].weights is found[1].weights
    assert [weights is None for weights in loads] == [True, False]


@pytest.mark.parametrize("kind", ["dspark", "eagle3", "rnn"])
def test_given_a_drafter_on_features_then_it_is_shared_beside_one_target_only(
    kind, directory, tmp_path
):
    models = OpenModels()
    target = opened(models, directory)
    drafter = open_drafter(write_feature_drafters(tmp_path, directory)[kind], target.spec)
    first, second = (models.features(drafter, target, OPTIONS, None) for _ in range(2))
    own = OpenModels()
    elsewhere = models.features(drafter, opened(own, directory), OPTIONS, None)

    assert first.weights is second.weights
    assert elsewhere.weights is not first.weights
    first.close()
    second.close()
    elsewhere.close()
    gc.collect()
    assert models.weight_bytes == target.weights.num_bytes
