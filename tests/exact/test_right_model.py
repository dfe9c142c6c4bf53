"""The native backend runs the model that Transformers runs: random checkpoints, written by it.

bf16 products cannot equal float32 ones, so the bar is on choices: each greedy token is the
argmax of Transformers' float32 logits, or within 0.05 standard deviations of the logits of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from forerun.backends.native import NativeBackend  # noqa: E402 - only where torch is
from forerun.backends.prefill import prefill  # noqa: E402
from forerun.models.spec import Rope  # noqa: E402
from forerun.models.weights import Checkpoint, open_checkpoint  # noqa: E402
from forerun.protocols import BLOCK_LEN, ForwardBatch  # noqa: E402

MOST = 0.05  # standard deviations of the logits
NUM_BLOCKS = 12
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A Transformers model and the config values it does not take from the common ones."""

    model: str
    values: dict[str, Any] = field(default_factory=dict)


COMMON = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 144,
    "vocab_size": 211,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.1,
}
CASES = {
    "llama": Case("LlamaForCausalLM", {"tie_word_embeddings": False}),
    "llama with llama3 rope": Case(
        "LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}
    ),
    "llama, seven heads wider than hidden": Case(
        "LlamaForCausalLM",
        {"hidden_size": 84, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 64},
    ),
    "mistral": Case("MistralForCausalLM", {"sliding_window": None, "head_dim": 32}),
    "qwen2": Case("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2, odd widths": Case(
        "Qwen2ForCausalLM",
        {
            "hidden_size": 84,
            "intermediate_size": 75,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 203,
        },
    ),
    "qwen3": Case("Qwen3ForCausalLM", {"head_dim": 48, "tie_word_embeddings": True}),
    "qwen3, untied": Case(
        "Qwen3ForCausalLM",
        {
            "head_dim": 80,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint on disk, and the same weights in Transformers' float32."""

    directory: Path
    reference: Any

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        return run(self.reference, tokens)

    def bf16_logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """What Transformers itself makes of the weights in bf16."""
        cls = type(self.reference)
        return run(cls.from_pretrained(self.directory, dtype=torch.bfloat16).eval(), tokens)


def run(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """`[n V]` logits after every token."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].float().numpy()
    return logits


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """The checkpoint of a case, written once."""
    made: dict[str, Written] = {}

    def write(name: str) -> Written:
        if name not in made:
            directory = tmp_path_factory.mktemp("written")
            made[name] = write_checkpoint(directory, CASES[name], sorted(CASES).index(name))
        return made[name]

    return write


def write_checkpoint(directory: Path, case: Case, seed: int) -> Written:
    torch.manual_seed(seed)
    cls = getattr(transformers, case.model)
    model = cls(cls.config_class(**{**COMMON, **case.values}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # norms of one and biases of zero would hide their absence
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.to(torch.bfloat16).save_pretrained(directory)
    return Written(directory, cls.from_pretrained(directory, dtype=torch.float32).eval())


class Reader:
    """One sequence on a native backend."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.backend = NativeBackend(checkpoint, num_blocks=NUM_BLOCKS)
        self._table = np.arange(NUM_BLOCKS, dtype=np.int32)[None]

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Prompt and greedy continuation."""
        tokens = list(prompt)
        prefill(self.backend, self._table, tokens[:-1], 0)
        for _ in range(num_tokens):
            batch = self._batch(tokens[-1:], len(tokens) - 1)
            tokens.append(int(np.argmax(self.backend.forward(batch).logits[0])))
        return tokens

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """`[n V]` logits after every token, all in one pass."""
        return np.array(self.backend.forward(self._batch(tokens, 0)).logits)

    def _batch(self, tokens: list[int], committed: int) -> ForwardBatch:
        n = len(tokens)
        return ForwardBatch(
            token_ids=np.array(tokens, np.int32),
            parents=np.arange(-1, n - 1, dtype=np.int32),
            row_starts=np.array([0, n], np.int32),
            committed=np.array([committed], np.int32),
            block_table=self._table,
            logit_nodes=np.arange(n, dtype=np.int32),
        )


def native_logits(checkpoint: Checkpoint, tokens: list[int]) -> NDArray[np.float32]:
    reader = Reader(checkpoint)
    try:
        return reader.logits(tokens)
    finally:
        reader.backend.close()


def distance(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Root mean square difference, in standard deviations of each row."""
    difference = (logits - reference) / reference.std(axis=1, keepdims=True)
    return float(np.sqrt(np.mean(np.square(difference))))


def margins(reference: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """`[n]` how far below the reference's best logit each choice lies, in standard deviations."""
    taken = np.take_along_axis(reference, chosen[:, None], axis=1)[:, 0]
    below: NDArray[np.float32] = (reference.max(axis=1) - taken) / reference.std(axis=1)
    return below


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_transformers(
    name: str,
    written: Callable[[str], Written],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    # given a random checkpoint written by Transformers
    model = written(name)
    prompt = np.random.default_rng(1).integers(0, 203, 8).tolist()
    # when the native backend continues a prompt greedily
    reader = Reader(open_checkpoint(model.directory))
    tokens = reader.greedy(prompt, 96)
    reader.backend.close()
    # then every token is what Transformers would choose in float32, or as good as
    reference = model.logits(tokens[:-1])[len(prompt) - 1 :]
    worst = margins(reference, np.array(tokens[len(prompt) :]))
    record_testsuite_property(f"worst margin of {name}, greedy", f"{worst.max():.4f} of {MOST}")
    assert worst.max() <= MOST


@pytest.mark.parametrize("name", CASES)
def test_logits_after_a_long_text_are_transformers(
    name: str,
    written: Callable[[str], Written],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    # given a text of random tokens, which unlike greedy text never repeats itself
    model = written(name)
    tokens = np.random.default_rng(2).integers(0, 203, NUM_BLOCKS * BLOCK_LEN).tolist()
    # when both models read it
    logits, reference = (
        native_logits(open_checkpoint(model.directory), tokens),
        model.logits(tokens),
    )
    # then they choose alike after every token
    worst = margins(reference, np.argmax(logits, axis=1)).max()
    record_testsuite_property(f"worst margin of {name}, long", f"{worst:.4f} of {MOST}")
    assert worst <= MOST
    # ... and the native logits are no farther from float32 than Transformers' own bf16
    assert distance(logits, reference) <= distance(model.bf16_logits(tokens), reference)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama with llama3 rope", {"rope": Rope()}),
        ("qwen3, untied", {"rope": Rope(theta=1e4)}),
        ("qwen3", {"qk_norm": False}),
        ("qwen2", {"qkv_bias": False}),
        ("llama", {"norm_eps": 0.05}),
        ("mistral", {"num_heads": 2, "num_kv_heads": 1, "head_dim": 64}),
    ],
)
def test_a_slightly_wrong_model_is_caught(
    name: str, change: dict[str, Any], written: Callable[[str], Written]
) -> None:
    # given the weights of a model under a spec that differs in one thing
    model = written(name)
    right = open_checkpoint(model.directory)
    wrong = replace(right, spec=replace(right.spec, **change))
    tokens = np.random.default_rng(2).integers(0, 203, NUM_BLOCKS * BLOCK_LEN).tolist()
    logits, reference = native_logits(wrong, tokens), model.logits(tokens)
    # then both bars notice
    assert margins(reference, np.argmax(logits, axis=1)).max() > MOST
    assert distance(logits, reference) > distance(model.bf16_logits(tokens), reference)
