"""The page as a person uses it: a real browser, a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from forerun import Engine, Speculation
from forerun.cli import run as run_command

from .browser import CHROMIUM, Tab, browsing
from .live import Live, serving

if CHROMIUM is None:
    pytest.skip("there is no chromium here: apt install chromium", allow_module_level=True)

pytestmark = pytest.mark.alone
RECORDED = Path(__file__).parent / "data" / "recorded.jsonl"
# What a model might write to get out of the text it is in.
HOSTILE = (
    "</span><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """The embedded model, so that trees are worth looking at."""
    speculation = Speculation("lm", "tree:6")
    with (
        Engine(speculate=speculation, threads=1) as engine,
        serving(engine, name="embedded", allows_faults=True) as served,
    ):
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, live: Live) -> Iterator[Tab]:
    """A fresh page, connected; nothing may go wrong in it unseen."""
    browser.errors.clear()
    browser.open(f"{live.address}/")
    browser.wait("!document.getElementById('run').disabled")
    browser.run("document.getElementById('prompt').value = 'def quicksort(items):\\n'")
    browser.run("document.getElementById('tokens').value = 32")
    yield browser
    assert browser.errors == []


def click(tab: Tab, name: str) -> None:
    tab.run(f"document.getElementById('{name}').click()")
    tab.wait("document.getElementById('stop').disabled")


def kinds(tab: Tab, run: int = 0) -> list[str]:
    found: list[str] = tab.run(
        f"[...document.querySelectorAll('.ribbon')[{run}].children].map(one => one.classList[1])"
    )
    return found


def ribbon(tab: Tab, run: int = 0) -> str:
    found: str = tab.run(f"document.querySelectorAll('.ribbon')[{run}].textContent")
    return found


def test_given_a_completion_then_its_tokens_tree_lanes_and_bars_are_shown(tab: Tab) -> None:
    click(tab, "run")

    assert len(kinds(tab)) == 32
    assert {"draft", "bonus"} <= set(kinds(tab))
    assert tab.run("document.querySelectorAll('#tree .node.bonus').length") == 1
    assert tab.run("document.querySelectorAll('#tree .node').length") > 1
    assert tab.run("document.querySelectorAll('#lanes .time-verify').length") > 1
    assert tab.run("document.querySelectorAll('#bars .bar').length") >= 1
    underlined = "getComputedStyle(document.querySelector('.tok.{}')).textDecorationStyle"
    assert tab.run(underlined.format("draft")) == "solid"
    assert tab.run(underlined.format("bonus")) == "double"


def node_titles(tab: Tab) -> list[str]:
    """What hovering tells of the drafted nodes of the chosen round's tree."""
    found: list[str] = tab.run(
        "[...document.querySelectorAll('#tree g')].map((one) => one.textContent)"
        ".filter((text) => text.includes('margin'))"
    )
    return found


@pytest.mark.parametrize(
    ("composition", "said"),
    [
        ("lm + chain:3", [r"q [\d.]+ %", r"margin -?(\d|Inf)"]),
        ("lm + tree:6", [r"q [\d.]+ %", r"margin -?(\d|Inf)"]),
        ("lm + tree:6 + rejection", [r"\bp [\d.]+ %", r"q [\d.]+ %", "no margin: children"]),
        ("lookup + chain:3", ["no q: copied text", "no margin: copied text"]),
    ],
)
def test_given_a_drafted_node_then_hovering_tells_its_figures_or_why_there_are_none(
    tab: Tab, composition: str, said: list[str]
) -> None:
    tab.run(f"document.getElementById('a').value = '{composition}'")
    tab.run("document.getElementById('prompt').value = 'a = [1]\\nb = [1]\\na = [1]\\nb ='")
    tab.run("document.getElementById('temperature').value = 0.5")
    click(tab, "run")
    drafted = "[...document.querySelectorAll('.tok.draft')]"
    tab.run(f"{drafted}[0].click()")
    tab.run(f"{drafted}[0].focus()")

    titles = node_titles(tab)
    assert titles
    for told in [*titles, tab.text("#detail")]:
        for one in said:
            assert re.search(one, told), told


def test_given_keys_then_tokens_and_rounds_can_be_walked(tab: Tab) -> None:
    click(tab, "run")
    tab.run("document.querySelector('.ribbon .tok').focus()")
    for _ in range(3):
        tab.press("ArrowRight")

    detail = tab.text("#detail")
    assert "round" in detail
    assert "model's p" in detail
    assert tab.run("document.activeElement === document.querySelector('.ribbon').children[3]")

    tab.run("document.getElementById('inside').focus()")
    before = int(tab.run("document.getElementById('round').value"))
    tab.press("ArrowRight")
    assert int(tab.run("document.getElementById('round').value")) == before + 1
    for _ in range(before + 3):
        tab.press("ArrowLeft")
    assert int(tab.run("document.getElementById('round').value")) == 1


def test_given_a_seed_then_the_proof_says_identical_and_the_ghost_is_measured(tab: Tab) -> None:
    tab.run("document.getElementById('temperature').value = 0.8")
    click(tab, "prove")

    assert "identical: all 32 tokens" in tab.text("#note")
    assert set(kinds(tab, 0)) == {"target"}
    assert "draft" in kinds(tab, 1)
    assert ribbon(tab, 0) == ribbon(tab, 1)
    assert "as measured with speculation off" in tab.text("#ghost")
    assert tab.run("document.querySelectorAll('#lanes .time-ghost').length") == 32


def test_given_two_texts_that_differ_then_the_comparison_names_the_place(tab: Tab) -> None:
    found = tab.run(
        """import('/page/traces.js').then(({ firstDifference, newRun, roundOf }) => {
          const made = (ids) => {
            const run = newRun('', '');
            for (const id of ids) run.rounds.push(roundOf(
              { tokens: [1], parents: [-1], path: [0], bonus: id, kept: 1 }, run));
            return run;
          };
          return [[[5, 6], [5, 6]], [[5, 6], [5, 7]], [[5], [5, 6]]]
            .map(([a, b]) => firstDifference(made(a), made(b)));
        })"""
    )

    assert found == [-1, 1, 1]


def test_given_two_compositions_then_they_are_compared_and_a_wrong_one_is_told(tab: Tab) -> None:
    tab.run("document.getElementById('a').value = 'lookup + chain:3'")
    tab.run("document.getElementById('b').value = 'lm + tree:4'")
    click(tab, "both")

    assert ribbon(tab, 0) == ribbon(tab, 1)
    assert "A: speculation lookup + chain:3" in tab.text("#results")
    assert "B: speculation lm + tree:4" in tab.text("#results")
    tab.run("document.getElementById('a').value = 'lm:/etc'")
    click(tab, "run")
    assert "names a place of files" in tab.text("#note")
    tab.errors.clear()  # the browser notes every answer that is an error


def test_given_a_and_b_then_both_are_shown_and_either_can_be_looked_into(tab: Tab) -> None:
    click(tab, "both")

    assert ribbon(tab, 0) == ribbon(tab, 1)
    tab.run("document.querySelectorAll('.ribbon')[1].children[2].click()")
    assert tab.run("document.getElementById('of').value") == "1"
    assert "0 drafted" in tab.text("#told")


def test_given_a_drafter_that_fails_then_the_round_is_plain_and_the_text_the_same(tab: Tab) -> None:
    click(tab, "run")
    before, drafted = ribbon(tab), tab.run("document.querySelectorAll('#tree .node').length")
    click(tab, "fail")
    tab.wait("document.getElementById('note').textContent.includes('fails')")
    click(tab, "run")
    tab.run("document.querySelector('.ribbon .tok').click()")

    assert ribbon(tab) == before
    assert kinds(tab)[0] == "target"
    assert tab.run("document.querySelectorAll('#tree .node.target').length") == 1
    assert tab.run("document.querySelectorAll('#tree .node').length") == 2 < drafted


@pytest.mark.parametrize("composition", ["off", "lookup + chain:3"])
def test_given_an_answer_then_the_first_round_that_kept_a_draft_is_looked_at(
    tab: Tab, composition: str
) -> None:
    tab.run(f"document.getElementById('a').value = '{composition}'")
    tab.run("document.getElementById('tokens').value = 64")
    click(tab, "run")

    found = int(tab.run("document.getElementById('round').value"))
    drafted = (
        "[...document.querySelectorAll('.ribbon .draft')].map((one) => +one.dataset.round + 1)"
    )
    assert found == min(tab.run(drafted), default=1)
    assert (found == 1) == (composition == "off")


def test_given_a_chat_then_turns_are_kept_and_forgotten_on_demand(tab: Tab) -> None:
    tab.run("document.querySelector('input[value=chat]').click()")
    assert not tab.run("document.getElementById('untaught').hidden")
    click(tab, "run")

    assert tab.run("document.querySelectorAll('#turns li').length") == 2
    assert len(kinds(tab)) > 0
    click(tab, "fresh")
    assert tab.run("document.getElementById('turns').hidden")


def test_given_a_stop_then_the_page_is_ready_again(tab: Tab) -> None:
    tab.run("document.getElementById('tokens').value = 1000")
    tab.run("document.getElementById('run').click()")
    tab.wait("document.querySelectorAll('.tok').length > 4")
    click(tab, "stop")

    assert tab.text("#note") == "stopped"
    assert not tab.run("document.getElementById('run').disabled")


def test_given_a_recorded_trace_then_it_opens_as_it_was(tab: Tab) -> None:
    tab.choose_file("#open", RECORDED)
    tab.wait("document.getElementById('note').textContent.includes('recorded')")

    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for run in (0, 1):
        rounds = [one for one in lines if one["kind"] == "round" and one["request"] == run]
        origins = [token["origin"] for one in rounds for token in one["emitted"]]
        assert kinds(tab, run) == origins
        assert ribbon(tab, run) == "".join(t["text"] for one in rounds for t in one["emitted"])


def test_given_a_saved_trace_then_it_opens_again(tab: Tab) -> None:
    click(tab, "both")
    same = tab.run(
        """Promise.all([import('/page/traces.js'), import('/page/state.js')]).then(
          ([{ fileOf, runsOf }, { state }]) => {
            const text = fileOf(state.runs, state.about);
            const { header, runs } = runsOf(text);
            return [header.model, fileOf(runs, state.about) === text];
          })"""
    )

    assert same == ["embedded", True]


def test_given_a_written_page_then_it_shows_its_trace_without_a_server(
    browser: Tab, tmp_path: Path
) -> None:
    trace, page = tmp_path / "run.jsonl", tmp_path / "run.html"
    options = ["--max-tokens", "12", "--shape", "tree:4", "--threads", "1", "--trace", str(trace)]
    assert run_command(["generate", "def f(", *options]) == 0
    assert run_command(["trace", "page", str(trace), "-o", str(page)]) == 0
    browser.errors.clear()
    browser.open(page.as_uri())
    browser.wait("document.getElementById('note').textContent.includes('run.jsonl')")

    assert len(kinds(browser)) == 12
    assert "⟨" not in ribbon(browser)
    assert node_titles(browser)
    assert browser.run("document.querySelectorAll('#lanes .time-verify').length") >= 1
    assert browser.run("getComputedStyle(document.querySelector('.tok.draft')).textDecorationStyle")
    assert browser.run("performance.getEntriesByType('resource').length") == 0
    assert browser.errors == []
    browser.run(
        "document.head.append(Object.assign(document.createElement('script'),"
        " { textContent: \"document.title = 'owned'\" }))"
    )  # the control: its policy lets nothing else run
    assert browser.run("document.title") == "forerun"
    assert "Content Security Policy" in browser.errors.pop()


def test_given_a_hostile_trace_then_the_written_page_shows_it_as_text(
    browser: Tab, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for one in lines:
        if one["kind"] == "round":
            one["bonus_text"] = HOSTILE
            for token in one["emitted"]:
                token["text"] = token["token_text"] = HOSTILE
    trace = tmp_path / "hostile.jsonl"
    trace.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert run_command(["trace", "page", str(trace)]) == 0
    browser.errors.clear()
    browser.open(trace.with_suffix(".html").as_uri())

    assert HOSTILE in ribbon(browser)
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("document.title") == "forerun"
    assert browser.errors == []


def test_given_a_trace_of_the_command_line_then_its_rounds_are_shown(
    tab: Tab, live: Live, tmp_path: Path
) -> None:
    path = tmp_path / "command.jsonl"
    options = ["--max-tokens", "12", "--drafter", "lookup", "--threads", "1", "--trace", str(path)]
    assert run_command(["generate", "def f(", *options]) == 0
    tab.choose_file("#open", path)
    tab.wait("document.getElementById('note').textContent.includes('command')")

    assert len(kinds(tab)) == 12
    assert "⟨" in ribbon(tab)


def test_given_text_that_is_markup_then_it_stays_text(tab: Tab, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for one in lines:
        one["label"] = HOSTILE
        if one["kind"] == "round":
            one["texts"] = [HOSTILE] * len(one["texts"])
            one["bonus_text"] = one["drafter"] = HOSTILE
            for token in one["emitted"]:
                token["text"] = token["token_text"] = HOSTILE
    hostile = tmp_path / "hostile.jsonl"
    hostile.write_text("\n".join(map(json.dumps, lines)))
    tab.choose_file("#open", hostile)
    tab.wait("document.getElementById('note').textContent.includes('hostile')")
    tab.run("document.querySelector('.ribbon .tok').focus()")

    assert HOSTILE in ribbon(tab)
    assert tab.run("document.querySelectorAll('main img, main script').length") == 0
    assert tab.run("document.title") == "forerun"


def test_given_a_script_in_the_page_itself_then_its_policy_stops_it(tab: Tab) -> None:
    """The control of all the above: what is refused is seen in `errors`."""
    tab.run(
        "document.head.append(Object.assign(document.createElement('script'),"
        " { textContent: \"document.title = 'owned'\" }))"
    )

    assert tab.run("document.title") == "forerun"
    assert len(tab.errors) == 1
    assert "Content Security Policy" in tab.errors.pop()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json\n{}",
        '{"kind": "round"}',
        '{"kind": "round", "tokens": [1, 2], "parents": [-1, 1], "path": [0]}',
    ],
    ids=["empty", "not json", "no tree", "no tree of parents"],
)
def test_given_a_file_that_is_no_trace_then_it_is_refused(
    tab: Tab, tmp_path: Path, text: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(text)
    tab.choose_file("#open", broken)

    tab.wait("document.getElementById('note').textContent.includes('is no trace')")
