"""What a server says that it decodes with, in names that a request may ask for; and of names that
none may."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from forerun import Engine, Speculation
from forerun.serve.speculating import names_of

from .live import MODEL, Live, serving

TOLD = [
    ("auto", "auto", "match", "auto"),
    ("lookup", "chain:4", "match", "sequential"),
    ("exit:3", "chain:auto", "match", "sequential"),
    ("router(lm,nested(lm,chain:4,rejection))", "chain:auto", "match", "parallel"),
    ("dspark", "tree:auto", "match", "ahead:8"),
    ("lm", "tree:3x2x1:top", "rejection", "ahead:8:0.25"),
    ("eagle3", "tree:9:likeliest", "match", "ahead"),
]


@pytest.mark.parametrize("names", TOLD, ids=" + ".join)
def test_given_a_composition_then_it_is_told_in_the_names_it_was_asked_by(
    names: tuple[str, ...],
) -> None:
    assert tuple(names_of(Speculation(*names).composition()).values()) == names


def test_given_places_of_files_then_names_leave_them_out() -> None:
    lm, block = "lm:/secret/lm", "dspark:/secret/block"
    told = names_of(Speculation(f"router({lm},{block})", "tree:/secret/tree.json").composition())
    point = names_of(Speculation("prediction:/secret/text", "chain:2").composition())

    assert (told["drafter"], told["shape"]) == ("router(lm,dspark)", "tree:FILE.json")
    assert point["drafter"] == "prediction"


def test_given_a_server_then_its_model_says_what_decodes_and_asking_for_it_builds_nothing(
    http: httpx2.Client, server: Live
) -> None:
    own = http.get("/v1/models").json()["data"][0]["speculation"]
    before = server.service.load().num_compositions

    asked = {"prompt": "abcabcabcabcabc", "max_tokens": 20, "speculation": own}
    answer = http.post("/v1/completions", json=asked).json()

    assert own == {
        "drafter": "lookup", "shape": "chain:4", "rule": "match", "schedule": "sequential",
    }  # fmt: skip
    assert answer["timings"]["draft_n"] > 0
    assert server.service.load().num_compositions == before


def test_given_a_choice_left_to_the_server_then_its_model_names_what_was_chosen(
    chat_model: Path,
) -> None:
    # Nothing lies beside this model, so the choice is lookup; a place was never asked about.
    with (
        Engine(chat_model, threads=1, kv_positions=4096) as engine,
        serving(engine) as live,
        live.http() as http,
    ):
        told = http.get(f"/v1/models/{MODEL}").json()["speculation"]

    assert told == {
        "drafter": "lookup", "shape": "auto", "rule": "match", "schedule": "sequential",
    }  # fmt: skip


UNNAMED: list[tuple[Any, str]] = [
    *((way, "response_format") for way in ("grammar", "lm + grammar", "router(lm,grammar)")),
    ({"drafter": "grammar"}, "response_format"),
    *((way, "field prediction") for way in ("prediction", "prediction:/etc", "chain:2+prediction")),
    ({"drafter": "router(prediction, lm)"}, "field prediction"),
    ({"drafter": "wild"}, "available: auto, none, lookup, lm, dflash"),
    ({"shape": "wild"}, "available: auto, chain:K"),
]


@pytest.mark.parametrize(("way", "words"), UNNAMED, ids=lambda given: str(given)[:30])
def test_given_a_drafter_that_no_request_names_then_the_refusal_says_the_way_out(
    http: httpx2.Client, way: Any, words: str
) -> None:
    body = {"prompt": "abc", "max_tokens": 1, "speculation": way}

    answer = http.post("/v1/completions", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "speculation")
    assert words in error["message"]
    assert not re.search("DIR|FILE|/etc", error["message"])
