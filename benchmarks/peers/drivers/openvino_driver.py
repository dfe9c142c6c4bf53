"""OpenVINO GenAI on CPU: plain, a draft model, prompt lookup. The weights stay bf16.

The checkpoint is exported once to OpenVINO's own format by optimum-intel, without compression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from protocol import Driver, Setting, Stopwatch, Timed, serve

LOOKUP_NGRAM = 3


class Arrivals(genai.StreamerBase):
    """Hands tokens to a stopwatch as the pipeline writes them, one or a chunk."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        self._watch.add([token] if isinstance(token, int) else list(token))
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class OpenVinoDriver:
    """A pipeline a mode, opened when first asked for."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        self._setting = setting
        self._model = _exported(setting.model, setting.workspace, "target")
        self._drafter = None
        if setting.drafter is not None:
            self._drafter = _exported(setting.drafter, setting.workspace, "drafter")
        self._pipelines: dict[str, genai.LLMPipeline] = {}
        self._pipeline("plain")
        drafting = ["draft model"] if self._drafter else []
        return {
            "versions": {"openvino": openvino.__version__, "openvino-genai": genai.__version__},
            "modes": ["plain", *drafting, "lookup"],
        }

    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        if mode != "plain":
            config.num_assistant_tokens = options["num_draft"]
        if mode == "lookup":
            config.max_ngram_size = LOOKUP_NGRAM
        ids = openvino.Tensor(np.asarray([prompt], np.int64))
        pipeline = self._pipeline(mode)
        watch = Stopwatch()
        pipeline.generate(ids, config, Arrivals(watch))
        return watch.result(max_tokens)

    def forward(self, num_tokens: int, context: int) -> float:
        raise NotImplementedError("a pipeline has no call for one pass over a number of tokens")

    def _pipeline(self, mode: str) -> genai.LLMPipeline:
        if mode not in self._pipelines:
            options: dict[str, Any] = self._properties()
            if mode == "draft model":
                options["draft_model"] = genai.draft_model(
                    str(self._drafter), "CPU", **self._properties()
                )
            elif mode == "lookup":
                options["prompt_lookup"] = True
            self._pipelines[mode] = genai.LLMPipeline(str(self._model), "CPU", **options)
        return self._pipelines[mode]

    def _properties(self) -> dict[str, Any]:
        return {
            "INFERENCE_NUM_THREADS": self._setting.threads,
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
        }


def _exported(directory: Path, workspace: Path, name: str) -> Path:
    target = workspace / f"{name}.openvino"
    if not target.exists():
        from optimum.intel import OVModelForCausalLM

        unfinished = workspace / f"{name}.unfinished"
        model = OVModelForCausalLM.from_pretrained(
            directory, export=True, compile=False, load_in_8bit=False
        )
        model.save_pretrained(unfinished)
        _export_tokenizer(directory, unfinished)
        unfinished.replace(target)
    return target


def _export_tokenizer(directory: Path, target: Path) -> None:
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer, detokenizer = convert_tokenizer(
        AutoTokenizer.from_pretrained(directory), with_detokenizer=True
    )
    openvino.save_model(tokenizer, target / "openvino_tokenizer.xml")
    openvino.save_model(detokenizer, target / "openvino_detokenizer.xml")


if __name__ == "__main__":
    driver: Driver = OpenVinoDriver()
    serve(driver)
