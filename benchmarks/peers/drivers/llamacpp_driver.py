"""llama.cpp through its C interface: plain, a draft model, prompt lookup, and quantised weights.

The loops are the ones of llama.cpp's own simple examples (one `llama_decode` a step, a batch of
draft tokens for verification, K/V of rejected tokens removed), without the wrapper's sampling.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np
from gguf_export import export
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from protocol import Driver, Setting, Stopwatch, Timed, serve

QUANTISED = {"Q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0}
LOOKUP_NGRAM = 2


class Context:
    """A model and the tokens it has read; tokens chosen are the best ones, lowest id on ties."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._model = api.llama_model_load_from_file(
            str(path).encode(), api.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp refused {path}")
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        self._memory = api.llama_get_memory(self._context)
        self.vocab = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(self.vocab)
        self._batch = api.llama_batch_init(context, 0, 1)
        self.num_read = 0

    def read(self, tokens: Sequence[int], num_wanted: int) -> list[int]:
        """Read tokens; what follows each of the last `num_wanted`."""
        batch, first = self._batch, len(tokens) - num_wanted
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = self.num_read + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place >= first
        if api.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama_decode failed on {len(tokens)} tokens")
        self.num_read += len(tokens)
        return [self._best(place) for place in range(first, len(tokens))]

    def forget(self, num_kept: int) -> None:
        """Keep the first `num_kept` tokens only."""
        api.llama_memory_seq_rm(self._memory, 0, num_kept, -1)
        self.num_read = min(self.num_read, num_kept)

    def _best(self, place: int) -> int:
        logits = api.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


class ModelDraft:
    """Drafts by a small model, whose K/V follows the text."""

    def __init__(self, context: Context, num_draft: int) -> None:
        self._context = context
        self._num_draft = num_draft
        context.forget(0)

    def propose(self, text: Sequence[int]) -> list[int]:
        context = self._context
        draft = context.read(text[context.num_read :], 1)
        while len(draft) < self._num_draft:
            draft += context.read(draft[-1:], 1)
        return draft

    def keep(self, num_tokens: int) -> None:
        self._context.forget(num_tokens)


class LookupDraft:
    """Drafts by the wrapper's prompt lookup."""

    def __init__(self, num_draft: int) -> None:
        self._lookup = LlamaPromptLookupDecoding(LOOKUP_NGRAM, num_draft)

    def propose(self, text: Sequence[int]) -> list[int]:
        return [int(token) for token in self._lookup(np.asarray(text, np.intc))]

    def keep(self, num_tokens: int) -> None:
        pass


class LlamaCppDriver:
    """bf16 GGUF made from the checkpoint; quantised files made from that."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        api.llama_backend_init()
        self._setting = setting
        self._contexts: dict[str, Context] = {}
        self._paths = {"bf16": _exported(setting.model, setting.workspace, "target")}
        if setting.drafter is not None:
            self._paths["drafter"] = _exported(setting.drafter, setting.workspace, "drafter")
        for name, kind in QUANTISED.items():
            self._paths[name] = _quantised(self._paths["bf16"], name, kind)
        self._target("plain")
        drafting = ["draft model"] if "drafter" in self._paths else []
        quantised = [f"plain, {name}" for name in QUANTISED]
        system = api.llama_print_system_info().decode()
        return {
            "versions": {"llama-cpp-python": api.__version__, "build": system},
            "modes": ["plain", *drafting, "lookup", *quantised],
            "other_weights": quantised,
        }

    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        target = self._target(mode)
        draft = self._draft(mode, options)
        watch = Stopwatch()
        target.forget(0)
        text = [*prompt, *target.read(prompt, 1)]
        num_tokens = watch.add(text[-1:])
        while num_tokens < max_tokens:
            proposed = [] if draft is None else draft.propose(text)[: max_tokens - num_tokens - 1]
            chosen = target.read([text[-1], *proposed], len(proposed) + 1)
            agreed = [a == b for a, b in zip(proposed, chosen, strict=False)]
            num_agreed = agreed.index(False) if False in agreed else len(agreed)
            text += chosen[: num_agreed + 1]
            num_tokens = watch.add(chosen[: num_agreed + 1])
            if draft is not None:
                target.forget(len(text) - 1)
                draft.keep(len(text) - 1)
        return watch.result(max_tokens)

    def forward(self, num_tokens: int, context: int) -> float:
        target = self._target("plain")
        target.forget(0)
        target.read([2] * context, 1)
        started = time.perf_counter()
        target.read([2] * num_tokens, num_tokens)
        return time.perf_counter() - started

    def tokenize(self, text: str) -> list[int]:
        """For the check that both sides split text alike: no special tokens added or parsed."""
        content = text.encode()
        ids = (api.llama_token * (len(content) + 1))()
        vocab = self._target("plain").vocab
        count = api.llama_tokenize(vocab, content, len(content), ids, len(ids), 0, 0)
        return list(ids[:count])

    def _target(self, mode: str) -> Context:
        _, _, weights = mode.partition(", ")
        return self._context(weights or "bf16")

    def _draft(self, mode: str, options: Mapping[str, Any]) -> ModelDraft | LookupDraft | None:
        if mode == "draft model":
            return ModelDraft(self._context("drafter"), options["num_draft"])
        return LookupDraft(options["num_draft"]) if mode == "lookup" else None

    def _context(self, name: str) -> Context:
        if name not in self._contexts:
            setting = self._setting
            self._contexts[name] = Context(self._paths[name], setting.threads, setting.context)
        return self._contexts[name]


def _exported(directory: Path, workspace: Path, name: str) -> Path:
    target = workspace / f"{name}.gguf"
    return target if target.exists() else export(directory, target)


def _quantised(source: Path, name: str, kind: int) -> Path:
    target = source.with_suffix(f".{name}.gguf")
    if not target.exists():
        params = api.llama_model_quantize_default_params()
        params.ftype = kind
        params.pure = False
        unfinished = target.with_suffix(".unfinished")
        places = str(source).encode(), str(unfinished).encode()
        if api.llama_model_quantize(*places, ctypes.byref(params)) != 0:
            raise RuntimeError(f"llama.cpp could not quantise {source} to {name}")
        unfinished.replace(target)
    return target


if __name__ == "__main__":
    driver: Driver = LlamaCppDriver()
    serve(driver)
