"""Transformers on PyTorch: plain, a draft model (`assistant_model`), prompt lookup."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from protocol import Driver, Setting, Stopwatch, Timed, serve
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.generation.streamers import BaseStreamer

MODES = ("plain", "draft model", "lookup")


class Arrivals(BaseStreamer):
    """Hands each chunk of new tokens to a stopwatch; the first chunk is the prompt itself."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self._watch.add(value.flatten().tolist())
        self._has_prompt = True

    def end(self) -> None:
        pass


class TransformersDriver:
    """`generate` of the library, bf16 weights, greedy."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        torch.set_num_threads(setting.threads)
        self._dtype = getattr(torch, setting.options.get("dtype", "bfloat16"))
        self._model = self._open(setting.model)
        self._drafter = None if setting.drafter is None else self._open(setting.drafter)
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "modes": [mode for mode in MODES if mode != "draft model" or self._drafter],
        }

    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        ids = torch.tensor([prompt])
        watch = Stopwatch()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=Arrivals(watch),
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                **self._speculation(mode, options),
            )
        return watch.result(max_tokens)

    def forward(self, num_tokens: int, context: int) -> float:
        cache = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            self._model(torch.ones(1, context, dtype=torch.long), past_key_values=cache)
            started = time.perf_counter()
            self._model(torch.full((1, num_tokens), 2), past_key_values=cache)
            return time.perf_counter() - started

    def _speculation(self, mode: str, options: Mapping[str, Any]) -> dict[str, Any]:
        if mode == "plain":
            return {}
        if mode == "lookup":
            return {"prompt_lookup_num_tokens": options["num_draft"]}
        self._drafter.generation_config.num_assistant_tokens = options["num_draft"]
        self._drafter.generation_config.num_assistant_tokens_schedule = "constant"
        self._drafter.generation_config.assistant_confidence_threshold = 0.0
        return {"assistant_model": self._drafter}

    def _open(self, directory: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=self._dtype).eval()
        model.generation_config.eos_token_id = None  # every engine writes exactly N tokens
        model.generation_config.pad_token_id = 0
        model.generation_config.do_sample = False
        model.generation_config.temperature = None
        return model


if __name__ == "__main__":
    driver: Driver = TransformersDriver()
    serve(driver)
