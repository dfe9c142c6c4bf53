"""Block drafters with a vocabulary of their own, against package `speculators` (vLLM project).

Run by hand as `peer_reading.py` is: `PYTHONPATH=src:tests python -m pytest -W ignore -o
filterwarnings= tests/exact/peer_draft_vocabulary.py`. Files that are written here are what the
package's own config and model take, and what it says is what the module here says.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exact.second_reading_cases import VOCAB, Case, apart, block_spec, body, drawn, drawn_tensor
from forerun.models.drafter_files import drafter_tensors, open_drafter, write_drafter
from forerun.models.drafter_spec import BlockSpec, MarkovKind

pytest.importorskip("speculators")
torch = pytest.importorskip("torch")

from forerun.backends.torch.block import BlockDrafter  # noqa: E402  after the skip

CLOSE, FAR = 1e-5, 1e-2
NUM_KNOWN, START, SEED = 40, 13, 7
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "vanilla": {"is_shifted": True, "markov_rank": 8, "has_confidence": True},
    "gated": {"is_shifted": True, "markov_rank": 8, "markov_kind": MarkovKind.GATED},
    "rnn": {"is_shifted": True, "markov_rank": 8, "markov_kind": MarkovKind.RNN},
}
TABLE = (drawn(SEED, "table", (VOCAB, 48)) / 512).astype(np.float32)
FEATURES = (drawn(SEED, "features", (START, 144)) / 32).astype(np.float32)
TOKENS = (drawn(SEED, "tokens", (START + 9,)) + 127) % (VOCAB - 2) + 2


def spec_of(kind: str) -> BlockSpec:
    fields = block_spec(body("qwen3", 2, 48, 16), **SPECS[kind])
    empty = np.zeros(0)
    case = Case(kind, SEED, fields, {}, empty, empty, empty, empty, empty, empty, {})
    spec = case.built_spec()
    assert isinstance(spec, BlockSpec)
    return replace(
        spec, draft_vocab=NUM_KNOWN, body=replace(spec.body, tied=True, eos_ids=(), bos_id=None)
    )


def written(directory: Path, spec: BlockSpec) -> Path:
    tensors: dict[str, Any] = {
        name: drawn_tensor(SEED, name, shape) for name, shape in drafter_tensors(spec).items()
    }
    known = np.sort(np.argsort(drawn(SEED, "known", (VOCAB,)), kind="stable")[:NUM_KNOWN])
    tensors["d2t"] = known - np.arange(NUM_KNOWN)
    write_drafter(directory, spec, tensors, layout="speculators")
    return directory


def package_model(directory: Path) -> Any:
    """The package's model of a directory's config and tensors, in float64."""
    from safetensors.torch import load_file
    from speculators import DFlashSpeculatorConfig, DSparkSpeculatorConfig
    from speculators.models.dflash import DFlashDraftModel
    from speculators.models.dspark import DSparkDraftModel

    config = json.loads((directory / "config.json").read_text())
    is_spark = config["speculators_model_type"] == "dspark"
    made = (DSparkSpeculatorConfig if is_spark else DFlashSpeculatorConfig)(**config)
    made.transformer_layer_config._attn_implementation = "eager"
    model = (DSparkDraftModel if is_spark else DFlashDraftModel)(made)
    stored = load_file(directory / "model.safetensors")
    missing, unexpected = model.load_state_dict(
        stored | {"embed_tokens.weight": torch.from_numpy(TABLE)}, strict=False
    )
    assert not unexpected
    assert all(name.startswith("verifier_") for name in missing)
    return model.double().eval()


def package_logits(model: Any, spec: BlockSpec) -> Any:
    """Draft logits of the block whose anchor is the pending token, the text's own tokens in it."""
    num_tokens = START + 1 + spec.block_len
    ids = torch.from_numpy(TOKENS)[None]
    anchors = torch.zeros((1, num_tokens))
    anchors[0, START] = 1
    noise = drawn(SEED, "noise", (num_tokens - START, FEATURES.shape[1])) / 32
    features = torch.from_numpy(np.concatenate([FEATURES, noise]))[None].double()
    states = torch.zeros((1, num_tokens, spec.body.hidden), dtype=torch.float64)
    documents = torch.zeros((1, num_tokens), dtype=torch.long)
    with torch.no_grad():
        hidden, logits, *_ = model._backbone_forward(
            features, ids, anchors, states, documents, max_anchors=1
        )
        if spec.markov_rank:
            before = ids[:, START : START + spec.block_len]
            logits = logits + model.markov_head.block_bias(
                prev_token_ids=before, hidden_states=hidden.view(1, spec.block_len, -1)
            )
    return logits[0]


def own_logits(directory: Path, spec: BlockSpec) -> tuple[Any, Any]:
    """Logits over the target's vocabulary from the same file, and the tokens that it drafts."""
    checkpoint = open_drafter(directory)
    assert checkpoint.spec == spec
    model = BlockDrafter(spec)
    tensors = {
        name: torch.from_numpy(checkpoint.tensor(name).float32())
        for name in model.state_dict()
        if name != "d2t"
    }
    assert checkpoint.token_map is not None
    tensors["d2t"] = torch.from_numpy(checkpoint.token_map - np.arange(NUM_KNOWN))
    model.load_state_dict(tensors)
    model.double()
    fed = torch.full((spec.block_len,), spec.mask_id)
    fed[0] = int(TOKENS[START])
    context, anchor = torch.arange(START), torch.tensor([[START]])
    with torch.no_grad():
        hidden = model.blocks(
            model.fuse(torch.from_numpy(FEATURES).double())[None],
            context,
            torch.from_numpy(TABLE)[fed][None].double(),
            START + torch.arange(spec.block_len),
            model.masks(context, anchor, spec.block_len),
        )
        before = torch.from_numpy(TOKENS[START : START + spec.block_len])[None]
        said = model.logits(hidden, torch.zeros(0)) + model.markov(before, hidden)
    return said[0], model.target_ids()


@pytest.mark.parametrize("kind", SPECS)
def test_logits_of_the_known_tokens_agree_and_others_have_none(tmp_path: Path, kind: str) -> None:
    spec = spec_of(kind)
    directory = written(tmp_path, spec)
    model = package_model(directory)
    assert model.use_draft_vocab

    expected = package_logits(model, spec)
    found, ids = own_logits(directory, spec)

    assert expected.shape == (spec.block_len, NUM_KNOWN)
    assert apart(found[:, ids].numpy(), expected.numpy()) < CLOSE
    unknown = torch.ones(VOCAB, dtype=torch.bool)
    unknown[ids] = False
    assert torch.isinf(found[:, unknown]).all()
    # and the two maps of the file say the same tokens
    assert torch.equal(model.t2d.nonzero()[:, 0], ids)
    assert torch.equal(model.d2t + torch.arange(NUM_KNOWN), ids)
    # control: a wrong map
    assert apart(found[:, ids.roll(1)].numpy(), expected.numpy()) > FAR
