"""A response as the events it is made of, item by item; pure.

message    item added, part added, text …, text done, part done, item done
each call  item added, arguments …, arguments done, item done
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from forerun.engine.sequence import TokenLogprobs
from forerun.serve.answers import Choice
from forerun.serve.calling import Said
from forerun.serve.responses_form import ResponsesForm, status_of
from forerun.serve.wire import padding

Event: TypeAlias = tuple[str, dict[str, Any]]


class Telling:
    """How much of a response was told; `opens_at_once`: it has a message, whatever comes."""

    def __init__(self, form: ResponsesForm, *, opens_at_once: bool) -> None:
        self._form = form
        self._opens_at_once = opens_at_once
        self._is_open = self._has_message = False
        self._num_calls = 0

    def begin(self) -> Iterator[Event]:
        """What can be told before anything is known."""
        if self._opens_at_once:
            yield from self._open()

    def add(self, choice: Choice, said: Said, rows: Sequence[TokenLogprobs]) -> Iterator[Event]:
        """What a piece added: text of the message, then parts of calls."""
        if said.text or (rows and not choice.calls and self._is_open):
            yield from self._open()
            scores, pad = self._form.logprobs(rows), self._pad(said.text)
            values = {**self._place, "delta": said.text, "logprobs": scores, **pad}
            yield "response.output_text.delta", values
        for part in said.calls:
            if part.id is not None:
                yield from self._close(choice)
                self._num_calls += 1
                item = self._form.call_item(choice.calls[part.index], "in_progress")
                values = {"output_index": self._index, "item": item | {"arguments": ""}}
                yield "response.output_item.added", values
            place = {"item_id": self._call_id(choice), "output_index": self._index}
            if part.arguments:
                values = {**place, "delta": part.arguments, **self._pad(part.arguments)}
                yield "response.function_call_arguments.delta", values

    def end(self, choice: Choice) -> Iterator[Event]:
        """What is left to tell once all has come."""
        if not self._num_calls:
            yield from self._open()
        yield from self._close(choice)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._form.item_id, "output_index": 0, "content_index": 0}

    @property
    def _index(self) -> int:
        """Which item of the response the last one is."""
        return self._num_calls - 1 + self._has_message

    def _call_id(self, choice: Choice) -> str:
        item = self._form.call_item(choice.calls[self._num_calls - 1], "in_progress")
        return str(item["id"])

    def _pad(self, text: str) -> dict[str, str]:
        if not self._form.body.stream_options.include_obfuscation:
            return {}
        return {"obfuscation": padding(len(text))}

    def _open(self) -> Iterator[Event]:
        """Begin the message, if nobody has."""
        if self._has_message:
            return
        self._has_message = self._is_open = True
        form = self._form
        yield "response.output_item.added", {"output_index": 0, "item": form.item(None)}
        yield "response.content_part.added", {**self._place, "part": form.part("", [])}

    def _close(self, choice: Choice) -> Iterator[Event]:
        """End the item that was told last."""
        if self._num_calls:
            yield from self._close_call(choice)
        elif self._is_open:
            self._is_open = False
            form, place, text = self._form, self._place, choice.text
            scores, part = form.logprobs(choice.logprobs), form.part(text, choice.logprobs)
            yield "response.output_text.done", {**place, "text": text, "logprobs": scores}
            yield "response.content_part.done", {**place, "part": part}
            yield "response.output_item.done", {"output_index": 0, "item": form.item(choice)}

    def _close_call(self, choice: Choice) -> Iterator[Event]:
        is_last = self._num_calls == len(choice.calls) and choice.completion is not None
        call = choice.calls[self._num_calls - 1]
        item = self._form.call_item(call, status_of(choice) if is_last else "completed")
        values = {"output_index": self._index, "item": item}
        done = {"item_id": item["id"], "name": call.name, "arguments": call.arguments}
        yield "response.function_call_arguments.done", done | {"output_index": self._index}
        yield "response.output_item.done", values
