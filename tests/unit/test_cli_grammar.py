"""`forerun generate` and `forerun chat` with a grammar, as a user runs them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")
pytest.importorskip("llguidance", reason="the extra `grammar` is not installed")

from forerun import GrammarError, cli
from forerun.engine.grammar import Followed

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_checkpoint_dir: Callable[..., Path]) -> str:
    return str(tiny_checkpoint_dir("qwen3", 3, max_position_embeddings=512, scale=0.6))


@pytest.fixture
def generated(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command in this process: the object it printed, or the sentence of its refusal."""

    def run(*words: str, code: int = 0) -> Any:
        common = ["generate", "-m", model, "--threads", "1", "--seed", "1", "-n", "60"]
        assert cli.run([*common, *words]) == code
        said = capsys.readouterr()
        if "--json" in words and code == 0:
            return json.loads(said.out)
        return said.err if code else said.out

    return run


@pytest.mark.parametrize("temperature", ["0", "1.2"])
def test_given_a_schema_then_the_text_is_of_it_with_and_without_drafts(
    generated: Callable[..., Any], tmp_path: Path, temperature: str
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    asked = ("abcabc", "-t", temperature, "--json")

    drafted = generated(*asked, "-d", "lookup", "--json-schema", str(path))
    plain = generated(*asked, "-d", "none", "--json-schema", json.dumps(SCHEMA))
    free = generated(*asked, "-d", "lookup")

    assert drafted["token_ids"] == plain["token_ids"] != free["token_ids"]
    assert drafted["finish_reason"] == "stop"
    assert set(json.loads(drafted["text"])) == {"city", "days"}
    assert drafted["stats"]["num_accepted"] > 0
    assert plain["stats"]["num_drafted"] == 0


def test_given_each_way_then_what_is_printed_is_of_it(
    generated: Callable[..., Any], tmp_path: Path
) -> None:
    lark = tmp_path / "laugh.lark"
    lark.write_text('start: "ho"{1,3} "!"')

    assert generated("x", "--regex", "[a-c]{4}").strip("abc") == "\n"
    assert generated("x", "--choice", "yes", "--choice", "no") in ("yes\n", "no\n")
    assert generated("x", "--grammar", str(lark)).replace("ho", "") == "!\n"
    assert json.loads(generated("x", "--json-schema", '{"const": {"a": 1}}')) == {"a": 1}
    assert generated("x", "--json-object", "-n", "4").startswith("{")


def test_given_a_file_of_prompts_then_every_text_is_of_the_grammar(
    generated: Callable[..., Any], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two two"}\n')

    found = generated("--prompts", str(prompts), "--regex", "[0-9]{2}", "--json")

    assert [one["text"].isdigit() for one in found["completions"]] == [True, True]


def test_given_too_few_tokens_then_people_hear_that_the_text_is_not_whole(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "-m", model, "x", "--threads", "1", "--regex", "[a-c]{40}", "-n", "5"]

    assert cli.run(words) == 0
    assert "is not whole: 5 tokens were too few" in capsys.readouterr().err


def test_given_what_cannot_be_then_one_sentence_says_so(
    generated: Callable[..., Any], tmp_path: Path
) -> None:
    gbnf = tmp_path / "list.gbnf"
    gbnf.write_text('root ::= "a" | "b"')
    trace = str(tmp_path / "run.jsonl")
    wrong = {
        "a text can be of one kind only": ("--regex", "a", "--choice", "b"),
        "ignore_eos": ("--regex", "a", "--ignore-eos"),
        "leave out one of the two": ("--regex", "a", "--trace", trace),
        "this looks like GBNF": ("--grammar", str(gbnf)),
        "cannot be read: No such file": ("--json-schema", "no-such.json"),
        "cannot be used": ("--json-schema", '{"type": "robot"}'),
        "let them go unenforced": ("--json-schema", '{"type": "array", "uniqueItems": true}'),
        "--lenient is about --json-schema": ("--lenient",),
        "cannot be used: at": ("--regex", "a("),
    }

    for sentence, words in wrong.items():
        said = generated("x", *words, code=2)
        assert sentence in said, said
        assert said.count("\n") == 1


# --- chat --------------------------------------------------------------------------------------


@pytest.fixture
def talked(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """The command with lines of a user: the answers, what people hear, and the exit code."""

    def run(lines: str, *words: str) -> tuple[list[str], str, int]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        common = ["chat", "-m", model, "--threads", "1", "--seed", "1", "-n", "40", "--json"]
        code = cli.run([*common, *words])
        said = capsys.readouterr()
        messages = json.loads(said.out)["messages"] if code == 0 else []
        return [one["content"] for one in messages if one["role"] == "assistant"], said.err, code

    return run


@pytest.mark.parametrize("temperature", ["0", "1.2"])
def test_given_a_grammar_then_every_answer_is_of_it_with_and_without_drafts(
    talked: Callable[..., Any], temperature: str
) -> None:
    asked, ways = ("one\ntwo two\n", "-t", temperature), ("yes", "no", "perhaps")
    choices = tuple(word for way in ways for word in ("--choice", way))

    drafted, _, _ = talked(*asked, "-d", "lookup", *choices)
    plain, _, _ = talked(*asked, "-d", "none", *choices)
    free, _, _ = talked(*asked, "-d", "lookup")

    assert drafted == plain
    assert len(drafted) == 2
    assert set(drafted) <= set(ways)
    assert not set(free) & set(ways)


def test_given_each_way_to_say_it_then_the_answer_is_of_it(
    talked: Callable[..., Any], tmp_path: Path
) -> None:
    lark = tmp_path / "laugh.lark"
    lark.write_text('start: "ho"{1,3} "!"')
    schema = json.dumps({"const": {"a": 1}, "uniqueItems": True})

    def answer(*words: str) -> str:
        (only,), _, _ = talked("x\n", *words)
        return str(only)

    assert answer("--regex", "[a-c]{4}").strip("abc") == ""
    assert answer("--grammar", str(lark)).replace("ho", "") == "!"
    assert json.loads(answer("--json-schema", '{"const": {"a": 1}}')) == {"a": 1}
    assert json.loads(answer("--json-schema", schema, "--lenient")) == {"a": 1}
    assert answer("--json-object", "-n", "4").startswith("{")


def test_given_a_process_of_its_own_then_it_answers_so_too(model: str) -> None:
    words = ["chat", "-m", model, "--threads", "1", "--choice", "yes", "--choice", "no", "--json"]

    done = subprocess.run(
        [sys.executable, "-m", "forerun.cli", *words],
        input="x\n", capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip

    assert json.loads(done.stdout)["messages"][-1]["content"] in ("yes", "no")


def test_given_too_few_tokens_then_a_cut_answer_is_told_and_a_whole_one_is_not(
    talked: Callable[..., Any],
) -> None:
    _, cut, _ = talked("x\n", "--regex", "[a-c]{40}", "-n", "5")
    _, whole, _ = talked("x\n", "--regex", "[a-c]{3}", "-n", "5")
    _, free, _ = talked("x\n", "-n", "5")

    assert "is not whole: 5 tokens were too few" in cut
    assert "is not whole" not in whole + free


def tiring(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """Let grammars of this many tokens and more be too complex to be followed."""
    allowed = Followed.allowed

    def until_tired(self: Followed, text: list[int], tree: Any) -> Any:
        if len(text) >= num_tokens:
            raise GrammarError("the grammar cannot be followed beyond token 3: ask for a simpler")
        return allowed(self, text, tree)

    monkeypatch.setattr(Followed, "allowed", until_tired)


def test_given_a_grammar_that_fails_on_the_way_then_the_transcript_has_what_came_and_the_error(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given: answers of two letters, or four; from the third token on nothing can be followed.
    tiring(monkeypatch, 3)
    words = ["chat", "-m", model, "--threads", "1", "--seed", "1", "-d", "none", "--json"]

    def talk(*grammar: str) -> tuple[int, Any, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
        code = cli.run([*words, *grammar])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    # When
    code, failed, heard = talk("--regex", "[ab]{4}")
    whole_code, whole, _ = talk("--regex", "[ab]{2}")

    # Then
    assert (code, heard.count("\n")) == (2, 1)
    assert f"forerun: {failed['error']}\n" == heard
    assert [one["role"] for one in failed["messages"]] == ["user", "assistant"]
    assert len(failed["messages"][1]["content"].strip("ab")) == 0
    assert len(failed["messages"][1]["content"]) == 3
    # And the control: what can be followed has both answers, and no error.
    assert (whole_code, whole["error"], len(whole["messages"])) == (0, None, 4)


def test_given_a_conversation_that_no_longer_fits_then_its_transcript_says_so(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n" + "x" * 600 + "\n"))

    code = cli.run(["chat", "-m", model, "--threads", "1", "-n", "4", "--json"])
    said = capsys.readouterr()

    found = json.loads(said.out)
    assert code == 0
    assert f"forerun: {found['error']}: the conversation ends here" in said.err
    assert [one["role"] for one in found["messages"]] == ["user", "assistant", "user"]


def test_given_a_grammar_that_cannot_be_then_it_is_said_before_anybody_types(
    talked: Callable[..., Any],
) -> None:
    for sentence, words in {
        "cannot be used: at": ("--regex", "a("),
        "ignore_eos": ("--regex", "a", "--ignore-eos"),
        "a text can be of one kind only": ("--regex", "a", "--choice", "b"),
    }.items():
        _, said, code = talked("", *words)
        assert (code, said.count("\n")) == (2, 1), said
        assert sentence in said
    assert talked("", "--regex", "a")[2] == 0
