"""Engines with parts of a test's own."""

from __future__ import annotations

import dataclasses

from forerun import Engine
from forerun.drafters.guard import Guard
from forerun.shapes.tree import Tree


def with_parts(engine: Engine, *, drafter=None, num_steps=4, **parts) -> Engine:
    """The engine with parts of the test's own; its own drafter is closed."""
    if drafter is not None:
        engine._parts.drafter.close()
        shape = Tree(num_steps)
        vocab = engine._parts.target.spec.vocab
        parts |= {"shape": shape, "drafter": Guard(drafter, shape, vocab)}
    engine._parts = dataclasses.replace(engine._parts, **parts)
    return engine
