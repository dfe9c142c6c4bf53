"""forerun itself, on the same footing as the others: a mode is `plain` or `DRAFTER SHAPE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from protocol import Driver, Setting, Stopwatch, Timed, serve

from forerun import Engine, SamplingParams, Speculation
from forerun.backends.native import NativeBackend, default_cores
from forerun.backends.prefill import chain_batch, prefill
from forerun.models.weights import open_checkpoint
from forerun.protocols import BLOCK_LEN
from forerun.stats import timed
from forerun.tools import machine
from forerun.tools.costs import pass_bytes

DRAFTERS = ("lm", "dspark", "dflash", "eagle3")  # what a bare name means a directory for


class ForerunDriver:
    """One engine a mode and its options, opened when first asked for."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        self._setting = setting
        self._engines: dict[tuple[str, str], Engine] = {}
        self._backend: NativeBackend | None = None
        self._engine("plain", {})
        return {
            "versions": {"forerun": machine.forerun_version()},
            "modes": [mode for mode in setting.options["modes"] if self._is_possible(mode)],
        }

    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        engine = self._engine(mode, options)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        watch = Stopwatch()
        for piece in engine.stream(list(prompt), params):
            watch.add(piece.token_ids)
        return watch.result(max_tokens)

    def forward(self, num_tokens: int, context: int) -> float:
        backend = self._bare()
        blocks = np.arange(backend.num_blocks, dtype=np.int32)[None]
        prefill(backend, blocks, [2] * context, 0)
        tokens = np.full(num_tokens, 2, np.int32)
        batch = chain_batch(tokens, context, blocks, num_logits=num_tokens)
        backend.forward(batch)
        return timed(partial(backend.forward, batch))

    def floor(self, context: int) -> float:
        """Seconds that the bytes of one pass take at the bandwidth of this minute."""
        backend = self._bare()
        num_bytes = pass_bytes(backend.spec, context)
        backend.read_bandwidth(num_bytes)
        return num_bytes / backend.read_bandwidth(num_bytes)

    def _is_possible(self, mode: str) -> bool:
        drafter = mode.partition(" ")[0]
        return drafter in self._setting.drafters or drafter not in DRAFTERS

    def _engine(self, mode: str, options: Mapping[str, Any]) -> Engine:
        drafter, _, shape = mode.partition(" ")
        if mode == "plain":
            drafter, shape = "none", "auto"
        if drafter in self._setting.drafters:
            drafter = f"{drafter}:{self._setting.drafters[drafter]}"
        if shape == "chain":
            shape = f"chain:{options['num_draft']}"
        if (drafter, shape) not in self._engines:
            self._engines[drafter, shape] = Engine(
                self._setting.model,
                speculate=Speculation(drafter=drafter, shape=shape),
                threads=self._setting.threads,
                kv_positions=self._setting.context,
            )
        return self._engines[drafter, shape]

    def _bare(self) -> NativeBackend:
        if self._backend is None:
            self._backend = NativeBackend(
                open_checkpoint(self._setting.model),
                cores=default_cores()[: self._setting.threads],
                num_blocks=self._setting.context // BLOCK_LEN,
            )
        return self._backend


if __name__ == "__main__":
    driver: Driver = ForerunDriver()
    serve(driver)
