"""docs/parameters.md is what live servers say, and a server that forgets one field is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forerun.engine.service import Job, Service
from forerun.serve.fields import ChatBody, CompletionBody
from forerun.serve.responses_fields import ResponsesBody
from serve.parameter_cells import ALL_BODIES, SAME, Answer, Column, found, verdict_of
from serve.parameter_models import write_model
from serve.parameters import WISHES, Wish
from serve.parameters_page import PAGE, page_of
from serve.structured_parts import CHAT, COMPLETIONS, RESPONSES

BODIES: dict[str, Any] = {COMPLETIONS: CompletionBody, CHAT: ChatBody, RESPONSES: ResponsesBody}
EXIT = Column("exit:1", "chain")


@pytest.fixture(scope="module", name="model")
def written_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("parameters"))


@pytest.mark.parametrize("path", BODIES)
def test_given_a_body_then_every_field_of_it_is_asked(path: str) -> None:
    asked = {name for wish in WISHES if wish.path == path for name in wish.asks}

    assert asked == set(BODIES[path].model_fields)


@pytest.mark.slow
def test_given_live_servers_then_the_page_says_what_they_answer(model: Path) -> None:
    everything = found(model)

    assert everything.faults == ()
    assert everything.unfelt == ()
    assert {column: num for column, num in everything.num_drafted.items() if not num} == {}
    assert page_of(everything) == PAGE.read_text(encoding="utf-8"), (
        "docs/parameters.md is not what live servers say: its first lines have the command"
    )


def forgets(monkeypatch: pytest.MonkeyPatch, drafter: str | None, **defaults: Any) -> None:
    """Let services forget parameters of requests that are drafted for so, or of all."""
    submit = Service.submit

    def forgetful(service: Service, job: Job, listener: Any) -> Any:
        asked = "" if job.speculation is None else job.speculation.drafter
        if drafter in (None, asked):
            job = replace(job, params=replace(job.params, **defaults))
        return submit(service, job, listener)

    monkeypatch.setattr(Service, "submit", forgetful)


def test_given_a_server_that_forgets_a_field_under_one_drafter_then_that_cell_is_a_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without it, a table of `same` could come of answers that are all alike."""
    forgets(monkeypatch, EXIT.drafter, top_k=0)

    everything = found(model, [EXIT, ALL_BODIES])

    assert {(one.column, one.fields) for one in everything.faults} == {(EXIT, ("top_k",))}
    assert everything.unfelt == ()
    assert "fault" in page_of(everything)


def test_given_a_server_that_forgets_a_field_everywhere_then_plain_decoding_does_not_feel_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all compositions forget would be the same in all of them."""
    forgets(monkeypatch, None, min_p=0.0)

    everything = found(model, [])

    assert {wish.fields for wish in everything.unfelt} == {("min_p",)}


ANSWERS: list[tuple[int, dict[str, Any], bool]] = [
    (400, {"param": "top_k", "message": "top_k is not for trees"}, True),
    (400, {"param": "speculation", "message": "speculation: no lanes"}, True),
    (400, {"param": "top_k", "message": "not for trees"}, False),
    (400, {"param": None, "message": "top_k is not for trees"}, False),
    (400, {"param": "prompt", "message": "prompt is empty"}, False),
    (500, {"param": "top_k", "message": "top_k failed"}, False),
    (503, {"param": None, "message": "the server is full"}, False),
]


@pytest.mark.parametrize(("status", "error", "may_be"), ANSWERS, ids=str)
def test_given_no_answer_then_only_a_400_that_names_the_part_is_a_refusal(
    status: int, error: dict[str, Any], may_be: bool
) -> None:
    wish = Wish(("top_k",), COMPLETIONS, {"top_k": 2})

    verdict = verdict_of(Answer(status, None, error), [], wish)

    assert verdict.startswith("refused: `" if may_be else "fault")


def test_given_another_text_then_it_is_a_fault_and_the_same_is_none() -> None:
    wish = Wish(("top_k",), COMPLETIONS, {"top_k": 2})

    assert verdict_of(Answer(200, ["a"], {}), ["a"], wish) == SAME
    assert verdict_of(Answer(200, ["b"], {}), ["a"], wish).startswith("fault")
