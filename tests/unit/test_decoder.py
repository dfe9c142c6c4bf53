"""The torch decoder gives the logits that Transformers gives, for every family and layout."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from forerun.backends.torch.decoder import Decoder  # noqa: E402  (needs the extra)
from forerun.models.spec import spec_from_config  # noqa: E402

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-no-groups": ("Llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": ("Llama", {"head_dim": 32}),
    "llama-bias": ("Llama", {"attention_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "mistral": ("Mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}


def reference(name: str) -> Any:
    """A random Transformers model whose norms and biases are random too."""
    family, changes = CASES[name]
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def ours(model: Any) -> Decoder:
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    decoder = Decoder(spec_from_config(config))
    state = model.state_dict()
    if decoder.spec.tied:
        state.pop("lm_head.weight", None)
    decoder.load_state_dict(state)
    return decoder


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str) -> None:
    model = reference(name)
    token_ids = torch.randint(0, SMALL["vocab_size"], (2, 100))
    with torch.no_grad():
        expected, found = model(token_ids).logits, ours(model)(token_ids)
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


def test_parameter_count_is_the_specs() -> None:
    decoder = ours(reference("qwen3-tied"))
    assert sum(p.numel() for p in decoder.parameters()) == decoder.spec.num_parameters


def test_float64_is_kept_throughout() -> None:
    model = reference("qwen3")
    token_ids = torch.randint(0, SMALL["vocab_size"], (1, 50))
    with torch.no_grad():
        single, double = ours(model)(token_ids), ours(model).double()(token_ids)
    assert double.dtype == torch.float64
    assert (single - double).abs().max() < 1e-4 * double.abs().max()


def test_layers_compose_with_another_attention() -> None:
    """The building blocks alone, with attention written out, give `forward`."""
    decoder = ours(reference("qwen3")).double()
    token_ids = torch.randint(0, SMALL["vocab_size"], (2, 20))
    with torch.no_grad():
        x = decoder.embed(token_ids)
        rotation = decoder.rotation(torch.arange(20), x.dtype)
        future = torch.ones(20, 20, dtype=torch.bool).triu(1)
        for layer in decoder.layers:
            q, k, v = layer.attention_inputs(x, rotation)
            k, v = (heads.repeat_interleave(2, dim=1) for heads in (k, v))
            scores = (q @ k.transpose(-1, -2)) / k.shape[-1] ** 0.5
            attended = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
            x = layer.feed_forward(layer.attention_output(x, attended))
        assert torch.allclose(decoder.head(x), decoder(token_ids), rtol=1e-9, atol=1e-12)
