"""vLLM on CPU, in this process: plain, n-gram, suffix, drafters. One mode a process.

A draft model, or a drafter on features as its training exported it; a layout that this vLLM does
not take fails when it loads, and its words become the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol import Driver, Setting, Stopwatch, Timed, serve

METHODS = {
    "lookup": {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    "suffix": {"method": "suffix"},
    "draft model": {"method": "draft_model"},
    "dflash": {"method": "dflash"},
    "dspark": {"method": "dspark"},
    "eagle3": {"method": "eagle3"},
}


READS_DRAFTER = ("draft model", "dflash", "dspark", "eagle3")


def norm_each_layer() -> None:
    """Let DFlash norm the keys of its context with each layer's own weights.

    vLLM 0.32 hands the weights of all layers to one kernel, and its kernel for CPUs reads the first
    layer's only: drafts then get worse the more layers differ, and nothing says so.
    """
    import torch
    from vllm import _custom_ops
    from vllm.model_executor.models.qwen3_dflash import DFlashQwen3Model

    def normed(model: Any, keys: torch.Tensor) -> torch.Tensor:
        done = torch.empty_like(keys)
        for layer, weights in enumerate(model._k_norm_weights):
            _custom_ops.rms_norm(done[layer], keys[layer], weights, model._rms_norm_eps)
        return done

    DFlashQwen3Model._normalize_context_k = normed


class VllmDriver:
    """The engine's own step loop, greedy, prefix caching off, since prompts come back."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        import torch
        import vllm

        if setting.options.get("norms_each_layer"):
            norm_each_layer()
        speculation = None
        if setting.mode != "plain":
            num_draft = setting.options["num_draft"]
            speculation = {**METHODS[setting.mode], "num_speculative_tokens": num_draft}
            if setting.mode in READS_DRAFTER:
                speculation["model"] = str(setting.drafter)
        self._engine = vllm.LLM(
            model=str(setting.model),
            dtype=setting.options.get("dtype", "bfloat16"),
            enforce_eager=setting.options.get("is_eager", False),
            max_model_len=setting.context,
            max_num_seqs=1,
            enable_prefix_caching=False,
            speculative_config=speculation,
            disable_log_stats=not setting.options.get("counts", False),
        ).llm_engine
        self._count = 0
        versions = {"vllm": vllm.__version__, "torch": torch.__version__}
        return {"versions": versions, "modes": [setting.mode]}

    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._count += 1
        watch = Stopwatch()
        name = str(self._count)
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=list(prompt)), params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.outputs[0].token_ids:
                    watch.add(output.outputs[0].token_ids)
        return watch.result(max_tokens)

    def counts(self) -> Mapping[str, Any]:
        """What vLLM itself has counted of its drafts; needs the option `counts` when it loads."""
        start = "vllm:spec_decode_"
        known = {one.name.removeprefix(start): one for one in self._engine.get_metrics()}
        return {
            "num_drafts": known["num_drafts"].value,
            "num_accepted": known["num_accepted_tokens"].value,
            "num_by_slot": list(known["num_accepted_tokens_per_pos"].values),
        }

    def forward(self, num_tokens: int, context: int) -> float:
        raise NotImplementedError("vLLM has no call for one pass over a given number of tokens")


if __name__ == "__main__":
    driver: Driver = VllmDriver()
    serve(driver)
