"""Grammars for tests: random schemas, who checks them, and a grammar easy to see through."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np

from forerun import Engine, SamplingParams, Speculation
from forerun.engine.grammar import Compiler
from forerun.engine.patterns import Pattern
from forerun.engine.service import Job

from .service_parts import SAMPLING, prompt_of

REGEXES = (
    r"[a-c]{2,6}",
    r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,2})?",
    r"(ab|cd)*e",
    r"[A-Z][a-z]+( [A-Z][a-z]+){0,2}",
    r"(\{[a-z]=[0-9]\};){1,3}",
)


def plainly(target_dir):
    return Engine(
        target_dir, speculate=Speculation("none"), kv_positions=4096, threads=1, backend="native"
    )


def compiler_of(engine) -> Compiler:
    tokenizer, spec = engine.tokenizer, engine._parts.target.spec
    return Compiler(tokenizer, spec.vocab, frozenset({*spec.eos_ids, *tokenizer.eos_ids}))


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "boolean", "enum", "array", "object"]
    kind = rng.choice(kinds[: 4 if depth > 1 else 6])
    match kind:
        case "string":
            return {"type": "string", "maxLength": rng.randrange(1, 6)}
        case "integer":
            return {"type": "integer", "minimum": -rng.randrange(50), "maximum": rng.randrange(900)}
        case "enum":
            return {"enum": rng.sample(["red", "green", 7, None, "blue", 1.5], 3)}
        case "array":
            items = random_schema(rng, depth + 1)
            return {"type": "array", "items": items, "maxItems": rng.randrange(1, 4)}
        case "object":
            return object_schema(rng, depth)
    return {"type": "boolean"}


def object_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    names = rng.sample(["name", "size", "a", "is_big", "tags"], rng.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    """Of the schemas above only."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
        case "array":
            is_short = isinstance(value, list) and len(value) <= schema["maxItems"]
            return is_short and all(is_valid(schema["items"], one) for one in value)
    inner = schema["properties"]
    return set(value) == set(inner) and all(is_valid(inner[name], value[name]) for name in inner)


def patterns(num: int, seed: int = 0) -> list[tuple[Pattern, Any]]:
    """Schemas and regular expressions in turn, each with a check of a whole text."""
    rng, found = random.Random(seed), []
    for at in range(num):
        if at % 3 == 2:
            regex = REGEXES[at // 3 % len(REGEXES)]
            found.append((Pattern("regex", regex), re.compile(regex).fullmatch))
        else:
            schema = object_schema(rng)
            found.append((Pattern("json_schema", json.dumps(schema)), checker(schema)))
    return found


def checker(schema):
    return lambda text: is_valid(schema, json.loads(text))


def bound_jobs(compiler: Compiler, num: int, seed: int = 0, max_tokens: int = 60, **changes):
    """Requests bound by grammars with every way to sample, and the check of each one's text.

    A stop string may cut a text, and few allowed tokens may leave none: those two are taken out.
    """
    rng = random.Random(seed)
    ways = [
        {k: v for k, v in one.items() if k not in ("allowed_tokens", "stop")} for one in SAMPLING
    ]
    ways = [one for one in ways if "stop_token_ids" not in one]
    jobs, checks = [], []
    for at, (pattern, check) in enumerate(patterns(num, seed)):
        params = SamplingParams(seed=at, max_tokens=max_tokens, **ways[at % len(ways)])
        grammar = compiler.compile(pattern)
        prompt = prompt_of(rng.choice((1, 5, 33, 100)), at)
        jobs.append(Job(prompt, params, grammar=grammar, **changes))
        checks.append(check)
    return jobs, checks


class Listed:
    """A grammar of a few texts, one token a byte: what may follow is found by looking."""

    def __init__(self, texts: list[list[int]], vocab: int, end_id: int) -> None:
        self.texts, self.vocab, self.end_ids = texts, vocab, frozenset({end_id})

    def begin(self):
        return self

    def next(self, text) -> set[int]:
        known = list(text)
        ways = [one for one in self.texts if one[: len(known)] == known]
        end = next(iter(self.end_ids))
        return {one[len(known)] if len(one) > len(known) else end for one in ways}

    def forced(self, text, most):
        found = []
        while len(found) < most and len(ways := self.next([*text, *found])) == 1:
            found += ways
            if found[-1] in self.end_ids:
                break
        return found

    def allowed(self, text, tree):
        masks = np.ones((len(tree), self.vocab), np.bool_)
        for node in range(len(tree)):
            path = [int(tree.tokens[at]) for at in tree.path(node)[1:]]
            ways = self.next([*text, *path])
            is_legal = all(token in self.next([*text, *path[:at]]) for at, token in enumerate(path))
            if is_legal and ways and not (self.end_ids & {*path}):
                masks[node] = False
                masks[node, list(ways)] = True
        return masks
