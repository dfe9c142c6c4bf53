"""Write docs/benchmarks.md and its pictures from measured files; nothing in it is typed by hand.

    python benchmarks/report.py benchmarks/results/*.json

Each file is what one measuring command wrote. Two files of the same table, from two runs, also give
the share of cells that agree within their intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accepted_page import accepted_section
from forecasts_page import forecasts_section
from lane_faults_page import faults_section
from lanes_page import lanes_section
from methods_page import methods_section
from page import Report
from peers_page import peers_section

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# Benchmarks

Written by `python benchmarks/report.py` from the files in `benchmarks/results`; to change a figure,
measure it again. Every ratio compares runs that took turns on one machine, and stands with its 95 %
interval (bootstrap over prompts and repetitions).

- *Without loops* leaves out tokens inside a repeated 4-gram, because loops flatter every drafter.
- *Floor* is the bytes that must move ÷ the bandwidth measured between the turns, on buffers of the
  models' own sizes. *Floor ratio* is the ratio to plain decoding if both ran at their floors: what
  is missing from it is ours to find. *Draft* is the share of time spent drafting. A dash: not
  counted, because rounds do not say how many passes of the drafter grew a tree.
- `260M` is the embedded target enlarged without changing a bit of its output
  (`benchmarks/inflate.py`), so drafters meet real text at a real size. *Shipped* is the embedded
  drafter as it is, which flatters it; *matched* is the drafter enlarged in the same way to a
  twentieth of the target's bytes, and is what headlines use. A drafter that reads what the target
  computed (`dspark`, `dflash`, `eagle3`) is as wide as the target in any case: as shipped it is
  only widened to fit, matched it has a tenth of the target's bytes.
"""


SECTIONS: dict[str, Callable[[Sequence[Report], Path], Iterator[str]]] = {
    "methods": methods_section,
    "accepted": accepted_section,
    "forecasts": forecasts_section,
    "lanes": lanes_section,
    "faults": faults_section,
    "peers": peers_section,
}


def main() -> int:
    """Read the files, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of measuring commands")
    parser.add_argument("--out", type=Path, default=DOCS / "benchmarks.md")
    arguments = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.files)]
    parts = [HEAD]
    for what, section in SECTIONS.items():
        own = [one for one in reports if one["what"] == what]
        if own:
            parts += section(own, arguments.out.parent)
    arguments.out.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
