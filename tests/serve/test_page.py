"""The page's files: small, complete, and unable to run what a model wrote."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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


ROUND: dict[str, Any] = {
    "kind": "round", "tokens": [1, 2, 3], "parents": [-1, 0, 0], "texts": ["a", "b", "c"],
    "path": [0, 1], "bonus": 4, "bonus_text": "d", "kept": 2, "draw": "coupled",
    "drafter": "lm", "ranks": [-1, 0, 1], "margins": [None, 1.25, -1.25],
    "scores": [None, 0.75, 0.5], "p": None, "q": [None, 0.625, 0.125],
    "emitted": [
        {"token": 2, "text": "b", "token_text": "b", "origin": "draft", "node": 1, "logprob": -0.25,
         "top": [["b", -0.25], ["c", -1.5]]},
        {"token": 4, "text": "d", "token_text": "d", "origin": "bonus", "node": None},
    ],
}  # fmt: skip
SAMPLED = ROUND | {
    "draw": "sampled", "margins": None, "scores": None, "p": [None, 0.5, 0.25],
    "emitted": [{k: v for k, v in one.items() if k != "logprob"} for one in ROUND["emitted"]],
}  # fmt: skip
COPIED = ROUND | {"draw": "point", "margins": None, "ranks": None, "q": None, "drafter": "lookup"}


def hovered(directory: Path, **files: str) -> list[str]:
    """What the page says of the first kept draft of each round, and of the one beside it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here to run the page's functions: apt install nodejs")
    for one in scripts():
        (directory / one.name).write_text(files.get(one.stem) or one.read_text())
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "ask.js").write_text(
        "import { detailOf, figuresOf } from './drawing.js';"
        "import { newRun, roundOf } from './traces.js';"
        "const rounds = JSON.parse(process.argv[2]).map((one) => roundOf(one, newRun('', '')));"
        "console.log(JSON.stringify(rounds.map((one) =>"
        " [detailOf(one.emitted[0], one), figuresOf(one, 2).join('; ')].join(' | '))));"
    )
    asked = [node, str(directory / "ask.js"), json.dumps([ROUND, SAMPLED, COPIED])]
    done = subprocess.run(asked, capture_output=True, check=True, timeout=120)
    found: list[str] = json.loads(done.stdout)
    return found


def test_given_a_draft_then_hovering_tells_p_q_margin_and_round_or_why_not(tmp_path: Path) -> None:
    coupled, sampled, copied = hovered(tmp_path)

    for said in ("round 1", "model's p 78 %", "q 63 %", "margin 1.25", "| model's p 22 %"):
        assert said in coupled
    for said in ("round 1", "p 50 %", "q 63 %", "no margin: children are drawn from q"):
        assert said in sampled
    assert "no q: copied text has no law" in copied
    assert "no margin: copied text has no law" in copied


@pytest.mark.parametrize("name", ["p", "q", "margin", "model's p"])
def test_control_given_a_page_without_a_figure_then_it_is_missed(tmp_path: Path, name: str) -> None:
    drawing = (PAGE / "drawing.js").read_text()
    without = re.sub(rf'.*add\("{name}", .*\n', "", drawing)
    assert without != drawing

    found = " ".join(hovered(tmp_path, drawing=without))

    assert not re.search(rf"· +(no )?{name}[ :]", found)


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
