"""The page's files: small, complete, and unable to run what a model wrote."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import forerun
from forerun import Engine, Speculation

from .live import MODEL, Live, serving

PAGE = Path(forerun.__file__).parent / "serve" / "page"
MOST_BYTES = 60_000
KEY = "a-key-of-the-tests"
# What turns text into markup or code.
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser|\beval\b"
    r"|new Function|createContextualFragment|setHTMLUnsafe"
)


def own_engine(directory: Path) -> Engine:
    """One service at a time is an engine's; these tests need one of their own."""
    speculation = Speculation("lookup", "chain:4")
    return Engine(directory, speculate=speculation, threads=1, kv_positions=4096)


def scripts() -> list[Path]:
    return sorted(PAGE.glob("*.js"))


def test_given_all_files_then_they_fit_the_budget_and_all_are_served(server: Live) -> None:
    files = sorted(PAGE.iterdir())

    assert 0 < sum(one.stat().st_size for one in files) <= MOST_BYTES
    with server.http() as http:
        for one in files:
            answer = http.get(f"/page/{one.name}")
            assert (answer.status_code, answer.content) == (200, one.read_bytes())
        assert http.get("/").content == (PAGE / "index.html").read_bytes()
        assert http.get("/page/../serve/app.py").status_code == 404
        assert http.get("/page/%2e%2e/app.py").status_code == 404


def test_given_the_page_then_its_policy_lets_nothing_inline_or_foreign_run(server: Live) -> None:
    with server.http() as http:
        answer = http.get("/")
    rules = dict(
        one.strip().partition(" ")[::2]
        for one in answer.headers["content-security-policy"].split(";")
    )

    assert rules["default-src"] == "'self'"
    assert "script-src" not in rules
    assert "style-src" not in rules
    assert rules["frame-ancestors"] == rules["object-src"] == rules["base-uri"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    html = answer.text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
    assert not re.search(r"(?:src|href)=\"(?!/page/)", html)


@pytest.mark.parametrize("script", scripts(), ids=lambda one: one.name)
def test_given_a_script_then_text_never_becomes_markup(script: Path) -> None:
    assert not MARKUP.search(script.read_text())
    assert MARKUP.search("element.innerHTML = text")  # the control


def test_given_keys_then_the_page_opens_without_one_and_tells_nothing(live_with_key: Live) -> None:
    with live_with_key.http() as http:
        assert http.get("/").status_code == 200
        assert http.get("/page/page.js").status_code == 200
        for path in ("/page/about.json", "/page/", "/page/other.js", "/metrics"):
            assert http.get(path).status_code == 401
        assert http.post("/", json={}).status_code == 401
        assert http.post("/page/drafter-failure", json={}).status_code == 401
    with live_with_key.http(authorization=f"Bearer {KEY}") as http:
        assert http.get("/page/about.json").json()["model"] == MODEL


@pytest.fixture(scope="module")
def live_with_key(chat_model: Path):
    hashes = (hashlib.sha256(KEY.encode()).digest(),)
    with own_engine(chat_model) as engine, serving(engine, key_hashes=hashes) as live:
        yield live


def test_given_no_flag_then_nobody_makes_the_drafter_fail(server: Live) -> None:
    with server.http() as http:
        assert http.get("/page/about.json").json()["can_fail"] is False
        answer = http.post("/page/drafter-failure", json={"num": 1})

    assert answer.status_code == 403
    assert "--allow-faults" in answer.json()["error"]["message"]


def test_given_the_flag_then_a_failed_proposal_changes_no_text(chat_model: Path) -> None:
    body = {"prompt": "abcabcabcabc", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    with (
        own_engine(chat_model) as engine,
        serving(engine, allows_faults=True) as live,
        live.http() as http,
    ):
        before = http.post("/v1/completions", json=body | {"forerun": {"trace": True}}).json()
        assert http.post("/page/drafter-failure", json={"num": 1}).json() == {"num": 1}
        after = http.post("/v1/completions", json=body | {"forerun": {"trace": True}}).json()
        assert http.post("/page/drafter-failure", json={"num": 99}).status_code == 400

    assert after["choices"] == before["choices"]
    assert after["forerun"]["rounds"][0][0]["tokens"] != before["forerun"]["rounds"][0][0]["tokens"]
