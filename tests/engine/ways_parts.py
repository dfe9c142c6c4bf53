"""A model with drafters beside it, and the ways that requests of one service may ask for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from engine.feature_drafters import write_feature_drafters
from engine.service_parts import Held, Listener, around, jobs, outcome
from forerun import Speculation
from forerun.drafters.prediction import RunIndex
from forerun.engine.service import Service, ServiceLimits

LIMITS = ServiceLimits(max_compositions=16)
# Of each request in turn; None is the engine's own way, `off` none at all.
ASKED = (
    None,
    "off",
    "lookup + tree:8",
    "lm",
    "lm + chain:5",
    "lm + tree:3x2x1",
    "lm + chain:4 + rejection",
    "lm + tree:6 + traversal",
    "exit:1 + chain:3 + match",
    "dspark + chain:4",
    "eagle3 + tree:3x2x1",
    "router(lm,lookup) + chain:4",
    "lm + chain:3 + kseq",
    "nested(lookup,chain:3,match) + chain:4 + match",
    "lookup + chain:6 + rejection",
    "lm + chain:4 + block",
    "dspark + tree:5 + traversal",
)
NUM = len(ASKED)
SAMPLED = ("rejection", "block", "traversal", "kseq")


def write_model(root: Path, target: Path, lm: Path) -> Path:
    """The target with a small model and drafters that read features beside it."""
    model = root / "model"
    shutil.copytree(target, model)
    shutil.copytree(lm, model / "drafters" / "lm")
    for name, path in write_feature_drafters(root, target).items():
        shutil.copytree(path, model / "drafters" / name)
    return model


def asked_of(job, text):
    """A job in the way that `text` says."""
    if text is None or text == "off":
        return dataclasses.replace(job, speculates=text is None)
    return dataclasses.replace(job, speculation=Speculation.parse(text))


def mixed_jobs(num=NUM, seed=0, **changes):
    """Requests of every length and way to sample, each in a way of its own."""
    return [
        asked_of(job, ASKED[at % len(ASKED)]) for at, job in enumerate(jobs(num, seed, **changes))
    ]


def predicted(job, text, num_wrong=0):
    """A job that is expected to come to `text`, of which every n-th token is wrong."""
    ids = list(text)
    for at in range(num_wrong, len(ids), num_wrong or len(ids) + 1):
        ids[at] = (ids[at] + 1) % 200
    return dataclasses.replace(job, expected=RunIndex(ids))


def one_by_one(engine, asked, limits=LIMITS):
    """What each comes to with nobody beside it, and what was drafted for it and kept."""
    found = []
    with Service(engine, limits) as service:
        for job in asked:
            listener = Listener()
            service.submit(job, listener)
            found.append(listener.completion)
    return found


def together(engine, asked, limits=LIMITS):
    """What they come to when all are there at once: no pass is made before the last has come."""
    target = around(engine, Held)
    listeners = [Listener() for _ in asked]
    with Service(engine, limits) as service:
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        target.gate.set()
        return [listener.completion for listener in listeners]


def most_rows(completions):
    """Rows of the largest round."""
    return max(one.num_rows for done in completions for one in done.stats.rounds)


def outcomes(completions):
    return [outcome(one) for one in completions]


def counts(completions):
    """What was drafted for each, and kept."""
    return [(one.stats.num_drafted, one.stats.num_accepted) for one in completions]
