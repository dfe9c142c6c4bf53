"""What is certified: a model on a machine, the prompts, the seeds; and engines and backends of it.

Knows how to open things; must not know what is asked of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from forerun.backends import open_backend
from forerun.engine.engine import Engine
from forerun.models.resolve import resolve_model
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.options import EngineOptions, Speculation
from forerun.protocols import BLOCK_LEN, Backend
from forerun.tools.arguments import EngineArguments
from forerun.tools.prompt_files import Prompt

PLAIN = Speculation(drafter="none")
_NUM_BLOCKS = 8  # of a bare backend: a text of some eighty tokens, a tree, and rows beside it


@dataclass(frozen=True, slots=True)
class Subject:
    """The model and machine of a certificate; every seed used is made from `seed`."""

    engine: EngineArguments
    prompts: tuple[Prompt, ...]
    seed: int

    def seeds(self, num: int, purpose: int = 0) -> list[int]:
        """`num` different seeds; those of two purposes differ too."""
        first = (self.seed << 24) + (purpose << 20)
        return [(first + index) % 2**53 for index in range(num)]

    def open(self, speculation: Speculation) -> Engine:
        """The model as an engine that speculates so; the caller closes it.

        Raises:
            ForerunError: what is not built or does not fit, as a sentence.
        """
        return self.engine.open(speculation)

    @contextmanager
    def backend(self, *, threads: int | None = None, isa: str | None = None) -> Iterator[Backend]:
        """The bare backend under an engine, on another number of threads or path if given.

        Raises:
            ForerunError: what an engine would refuse too, such as lanes that share a core.
        """
        asked = self.engine
        threads = asked.threads if threads is None else threads
        lanes = asked.cores()
        options = EngineOptions(
            backend=asked.backend,
            device=asked.device,
            isa=isa or asked.isa,
            threads=threads,
            kv_positions=_NUM_BLOCKS * BLOCK_LEN,
        )
        checkpoint = open_checkpoint(resolve_model(asked.model))
        cores = lanes.get("target") or options.cores_of("target")
        with closing(open_backend(checkpoint, options, cores)) as backend:
            yield backend

    def token_ids(self) -> list[list[int]]:
        """The prompts as the model reads them."""
        directory = resolve_model(self.engine.model)
        tokenizer = load_tokenizer(directory, open_checkpoint(directory).spec)
        return [tokenizer.encode(prompt.text) for prompt in self.prompts]
