"""Do both readings of a learned drafter, the native core's and PyTorch's, propose the same blocks?

    python benchmarks/readings.py
    python benchmarks/readings.py --limit 60 --levels 4 --isa float32-portable --out readings.json

Each drafter beside the model drafts one greedy chain behind prompts of the suite, natively and by
the torch reference (float32), from the same features, those of the target on the fastest path.
Natively twice: on that path, whose products are bf16, and on the one that rounds nothing to it.
Counted are blocks that are equal as a whole, and first tokens. Where a block differs, the reference
says by how much it preferred its own token to the next best one where they part: a small margin is
a near tie that rounding tips, a large one is a fault. No clock. Exit status 1 if any margin is
above `--tie`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from forerun.backends.native import NativeBackend
from forerun.backends.native_features import NativeFeatureBackend
from forerun.backends.prefill import prefill
from forerun.backends.slots import blocks_for
from forerun.backends.torch.features import TorchFeatureBackend
from forerun.draft import Commit, Draft, Draw
from forerun.drafters.features import Featured
from forerun.models.drafter_files import DrafterCheckpoint, open_drafter
from forerun.models.resolve import resolve_model
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import Checkpoint, open_checkpoint
from forerun.options import SamplingParams
from forerun.protocols import DraftRow, FeatureBackend, Growth, Sampler
from forerun.stats import Span
from forerun.tools.machine import machine_name
from forerun.tools.prompt_files import read_suite, spread
from forerun.train.drafters import load_target

DRAFTERS = ("dspark", "dflash", "eagle3")
PATHS = ("auto", "float32-portable")
LONGEST_TEXT = 256  # tokens of a prompt; what lies before changes no reading
_GREEDY = Sampler(SamplingParams(temperature=0.0), 0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One block by both readings."""

    native: Draft
    torch: Draft

    @property
    def parts_at(self) -> int | None:
        """The first slot that differs; None where none does."""
        own, other = (one.tree.tokens[1:].tolist() for one in (self.native, self.torch))
        if own == other:
            return None
        same = [a == b for a, b in zip(own, other, strict=True)]
        return same.index(False)

    @property
    def margin(self) -> float:
        """By how much the reference prefers its own token where they part; 0 where they do not."""
        at = self.parts_at
        return (
            0.0 if at is None or self.torch.margins is None else float(self.torch.margins[1 + at])
        )


@dataclass(frozen=True, slots=True)
class Readings:
    """All blocks of a drafter by one native path, beside the reference's."""

    drafter: str
    isa: str
    numerics: str
    pairs: Sequence[Pair]


def main() -> int:
    """Count, print, write."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    directory = resolve_model(options.model)
    checkpoint = open_checkpoint(directory)
    tokenizer = load_tokenizer(directory, checkpoint.spec)
    prompts = spread(read_suite("all"), options.limit)
    texts = [tokenizer.encode(one.text)[-LONGEST_TEXT:] for one in prompts]
    rows = [
        counted(read(directory / "drafters" / name, checkpoint, texts, options.levels, isa))
        for isa in options.isa or PATHS
        for name in DRAFTERS
        if (directory / "drafters" / name).is_dir()
    ]
    report = {
        "what": "readings",
        "date": date.today().isoformat(),
        "command": "python benchmarks/readings.py " + shlex.join(sys.argv[1:]),
        "machine": machine_name(),
        "model": options.model,
        "num_levels": options.levels,
        "rows": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['drafter']}, {row['numerics']}: {row['num_equal']} of {row['num_blocks']} blocks"
            f" equal, first tokens {row['num_first_equal']}; widest margin where they part"
            f" {row['widest_margin']:.3f}"
        )
    return int(any(row["widest_margin"] > options.tie for row in rows))


def read(
    path: Path, checkpoint: Checkpoint, texts: Sequence[list[int]], num_levels: int, isa: str
) -> Readings:
    """Both readings' block behind each text."""
    drafter = open_drafter(path, checkpoint.spec)
    num_blocks = blocks_for(LONGEST_TEXT + 2 * num_levels + drafter_len(drafter))
    source = NativeBackend(checkpoint, num_blocks=num_blocks)
    target = NativeBackend(checkpoint, num_blocks=1, isa=isa)
    table = load_target(resolve_model(str(path.parent.parent))).model.embed_tokens.weight.detach()
    backends: list[FeatureBackend] = [
        NativeFeatureBackend(drafter, target, num_blocks=num_blocks),
        TorchFeatureBackend(drafter, table=table, num_blocks=num_blocks),
    ]
    growth = Growth(Draw.COUPLED, tuple(range(num_levels)))
    native, reference = (Featured(one, num_levels, Span(), growth) for one in backends)
    block_table = np.arange(num_blocks, dtype=np.int32)[None]
    pairs = []
    for text in track(texts, description=f"{path.name}, {target.isa}", transient=True):
        features = prefill(source, block_table, text[:-1], 0, drafter.spec.tap_layers)
        assert features is not None
        pairs.append(Pair(_block(native, text, features), _block(reference, text, features)))
    found = Readings(path.name, target.isa, target.numerics, pairs)
    for one in (native, reference, source, target):
        one.close()
    return found


def drafter_len(drafter: DrafterCheckpoint) -> int:
    """Positions that a pass of the drafter takes behind a text."""
    return int(getattr(drafter.spec, "block_len", 1))


def _block(drafter: Featured, text: list[int], features: NDArray[np.float32]) -> Draft:
    """What the drafter proposes behind a text whose last token is pending."""
    drafter.admit(1, text[:-1])
    drafter.absorb(1, features[:-1])
    drafter.observe(1, Commit((text[-1],), features[-1:]))
    row = DraftRow(1, text, len(text) - 1, _GREEDY, drafter.num_levels)
    drafted = drafter.propose([row])[0]
    drafter.release(1)
    return drafted


def counted(found: Readings) -> dict[str, Any]:
    """A drafter's row of the report."""
    pairs = found.pairs
    parts = [one.parts_at for one in pairs]
    return {
        "drafter": found.drafter,
        "isa": found.isa,
        "numerics": found.numerics,
        "num_blocks": len(pairs),
        "num_equal": parts.count(None),
        "num_first_equal": sum(at != 0 for at in parts),
        "margins": sorted(one.margin for one in pairs if one.parts_at is not None),
        "widest_margin": max((one.margin for one in pairs), default=0.0),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="forerun-code", help="with drafters beside it")
    parser.add_argument("--limit", type=int, default=0, help="prompts, spread; 0: all")
    parser.add_argument("--levels", type=int, default=4, help="tokens of a block")
    parser.add_argument("--tie", type=float, default=0.25, help="widest margin of a near tie")
    parser.add_argument("--isa", action="append", help="instruction path; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="of the reference")
    parser.add_argument("--out", type=Path, help="write the report here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
