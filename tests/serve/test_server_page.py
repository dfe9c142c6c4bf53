"""docs/server.md says what the server does: its tables against the code and a live server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2

from forerun.serve.body import REFUSED
from forerun.serve.fields import ChatBody, CompletionBody
from forerun.serve.responses_fields import ResponsesBody

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose first header cell and number of columns are these."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line == heading:
            next(lines)
            break
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    assert found, heading
    return found


def test_given_the_page_then_its_fields_are_those_of_the_bodies() -> None:
    table = rows("| field | chat | completions | what it does here |")

    for column, body in ((1, ChatBody), (2, CompletionBody)):
        listed = {name for row in table if row[column] == "yes" for name in CODE.findall(row[0])}
        assert listed == set(body.model_fields)


def test_given_the_page_then_it_names_every_field_of_responses() -> None:
    sentence = PAGE[PAGE.index("`/v1/responses` takes") : PAGE.index("Known and refused")]

    assert set(ResponsesBody.model_fields) <= set(CODE.findall(sentence))


def test_given_the_page_then_its_refusals_are_those_of_the_code() -> None:
    listed = {
        name: (row[1], [json.loads(value) for value in CODE.findall(row[2])])
        for row in rows("| field | why | taken |")
        for name in CODE.findall(row[0])
    }

    assert listed == {name: (why, list(taken)) for name, (why, taken) in REFUSED.items()}


def test_given_the_page_then_its_addresses_are_those_that_are_served(http: httpx2.Client) -> None:
    named = {
        tuple(one.split(" "))
        for row in rows("| address | what it is |")
        for one in CODE.findall(row[0])
    }
    paths = http.get("/openapi.json").json()["paths"]

    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert {(method, path.replace("{id}", "{name}")) for method, path in named} == (
        served | {("GET", "/openapi.json")}
    )


def test_given_the_page_then_every_metric_it_names_is_there(http: httpx2.Client) -> None:
    http.post("/v1/completions", json={"prompt": "ababab", "max_tokens": 8, "temperature": 0})
    text = http.get("/metrics").text

    missing = PAGE[PAGE.index("stay empty here") : PAGE.index("## Who may come in")]
    names = re.findall(r"`((?:vllm|forerun):[a-z_]+)`", PAGE.replace(missing, ""))

    assert len(names) > 15
    assert [one for one in names if f"\n{one}" not in text] == []
