"""Whether a grammar can be read at all, found out in a process that may die of it.

The library bounds most of its work but not all: some patterns take minutes, or a stack without end.
This file is run by itself, without the rest of the package, on a grammar from its standard input,
within limits of time and memory that the kernel keeps.
"""

from __future__ import annotations

import subprocess
import sys
import threading

CPU_S = 2  # more of it is not spent on any grammar
_WALL_S = 30.0  # on a machine that has other things to do
MEMORY_BYTES = 2 << 30
STACK_BYTES = 512 << 20  # taken as it is used
DIED = "it takes too much time or memory to read"


def trouble_with(grammar: str) -> str:
    """Why a grammar, in the library's own form, had better not be read here; "" if it may be."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            input=grammar.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return DIED
    except OSError as error:
        return f"it cannot be tried: {error.strerror}"
    return DIED if done.returncode else ""


def main() -> None:
    """Read a grammar and find its first mask, on a deep stack; whether it is any good is not asked
    here."""
    import os
    import resource

    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammar = sys.stdin.buffer.read().decode()
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_read, args=(grammar,))
    thread.start()
    thread.join()


def _read(grammar: str) -> None:
    from llguidance import LLMatcher, LLTokenizer

    LLMatcher(LLTokenizer("byte"), grammar, log_level=0).compute_bitmask()


if __name__ == "__main__":
    main()
