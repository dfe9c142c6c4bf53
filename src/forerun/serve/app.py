"""The routes: from a checked body to a response. What requests mean is in the files beside this."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from forerun.engine.engine import Engine
from forerun.engine.service import Service
from forerun.protocols import BLOCK_LEN
from forerun.serve.answering import Answer, Setting, Wishes, begin
from forerun.serve.asking import Asked, Model, ask_chat, ask_completion, encoded
from forerun.serve.complaints import complaint
from forerun.serve.fields import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    SamplingBody,
    TokenizeBody,
)
from forerun.serve.forms import ChatForm, Form, TextForm
from forerun.serve.gate import ARRIVED_S, PARTITION, REQUEST_ID, Gate, Life
from forerun.serve.metrics import CONTENT_TYPE, LoadCollector, SpreadsCollector, exposition
from forerun.serve.page_routes import PageFacts, add_page
from forerun.serve.refusals import Refusal, is_ours, refusal_of
from forerun.serve.responses import ResponsesAnswer
from forerun.serve.responses_fields import ResponsesBody
from forerun.serve.responses_form import ResponsesForm
from forerun.serve.settings import ServeSettings
from forerun.serve.speculating import names_of
from forerun.serve.timings import Clock
from forerun.serve.wire import json_response, refusal_response

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes need; `speculation` names what decodes, by axis."""

    service: Service
    model: Model
    speculation: Mapping[str, str]
    setting: Setting
    life: Life
    registry: CollectorRegistry


def build_app(engine: Engine, service: Service, settings: ServeSettings, life: Life) -> ASGIApp:
    """The server as an ASGI application; engine and service stay their owner's."""
    model = _model(engine, settings)
    registry = CollectorRegistry()
    registry.register(LoadCollector(service.load, model.name))
    registry.register(SpreadsCollector(service.spreads, model.name))
    setting = Setting(
        service=service,
        model_name=model.name,
        fingerprint=_fingerprint(model.name, engine.numerics),
        longest_s=settings.request_s,
        ping_s=settings.ping_s,
        clock=Clock(registry, model.name),
        note=_note,
    )
    app = FastAPI(title="forerun", docs_url=None, redoc_url=None)
    composition = engine.inside().parts.composition
    assert composition is not None
    parts = Parts(service, model, names_of(composition), setting, life, registry)
    _add_generation(app, parts)
    _add_models(app, parts)
    _add_tokens(app, parts)
    _add_operation(app, parts)
    add_page(app, _page_facts(engine, model, settings))
    for kind in (Refusal, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    return Gate(app, settings, life, _note, setting.clock.now_s)


def _add_generation(app: FastAPI, parts: Parts) -> None:
    tokenizer = parts.model.tokenizer

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        form = TextForm(tokenizer, body.logprobs is not None)
        return await _answer(parts, form, body, request, partial(ask_completion, body))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        form = ChatForm(tokenizer, body.logprobs)
        response = await _answer(parts, form, body, request, partial(ask_chat, body))
        if not parts.model.has_template:
            response.headers["x-forerun-chat"] = "this model has no chat template; text continued"
        return _told_of_tools(response, parts.model, has_tools=bool(body.tools))

    @app.post("/v1/responses")
    async def responses(body: ResponsesBody, request: Request) -> Response:
        return await _respond(parts, body, request)


async def _answer(
    parts: Parts,
    form: Form,
    body: SamplingBody,
    request: Request,
    ask: Callable[[Model, str], Asked],
) -> Response:
    _refuse_misdirected(body, parts.model.name)
    options, request_id = body.stream_options, request.scope[REQUEST_ID]
    wishes = Wishes(request_id, body.stream, options.include_usage, options.include_obfuscation)

    async def answer() -> Response:
        asking = partial(ask, parts.model, request.scope[PARTITION])
        begun = await begin(parts.setting, asking, request.scope[ARRIVED_S])
        return await Answer(parts.setting, form, wishes, begun).respond(request)

    return await _in_our_words(answer(), request_id)


async def _respond(parts: Parts, body: ResponsesBody, request: Request) -> Response:
    _refuse_misdirected(body, parts.model.name)
    ask = partial(ask_chat, body.as_chat(), parts.model, request.scope[PARTITION])

    async def answer() -> Response:
        begun = await begin(parts.setting, ask, request.scope[ARRIVED_S])
        form = ResponsesForm(body, parts.model.name, begun.created, parts.model.tokenizer)
        request_id = request.scope[REQUEST_ID]
        return await ResponsesAnswer(parts.setting, form, begun, request_id).respond(request)

    response = await _in_our_words(answer(), request.scope[REQUEST_ID])
    return _told_of_tools(response, parts.model, has_tools=bool(body.tools))


def _told_of_tools(response: Response, model: Model, *, has_tools: bool) -> Response:
    if has_tools and not model.knows_tools:
        response.headers["x-forerun-tools"] = "this model is told of no tools; calls are forced"
    return response


async def _in_our_words(answer: Awaitable[Response], request_id: str) -> Response:
    """An answer; what the engine raises becomes a refusal, and our own faults go to the log."""
    try:
        return await answer
    except Exception as error:
        if is_ours(error):
            _note(error, request_id)
        raise refusal_of(error) from error


def _add_models(app: FastAPI, parts: Parts) -> None:
    model, created = parts.model, parts.setting.clock.created()
    card = {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "forerun",
        "max_model_len": model.context_len,
        "has_chat_template": model.has_template,
        "has_tool_template": model.knows_tools,
        "speculation": parts.speculation,
    }

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        _refuse_other_model(name, model.name)
        return json_response(card)


def _add_tokens(app: FastAPI, parts: Parts) -> None:
    tokenizer = parts.model.tokenizer

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        _refuse_other_model(body.model, parts.model.name)
        encode = partial(encoded, add_special_tokens=body.add_special_tokens)
        tokens = await run_in_threadpool(encode, body.prompt, parts.model, "prompt")
        answer = {"tokens": tokens, "count": len(tokens), "max_model_len": parts.model.context_len}
        return json_response(answer)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        _refuse_other_model(body.model, parts.model.name)
        if any(token >= parts.model.vocab for token in body.tokens):
            most = parts.model.vocab
            raise Refusal(400, f"a token is outside the vocabulary [0, {most})", param="tokens")
        return json_response({"prompt": await run_in_threadpool(tokenizer.decode, body.tokens)})


def _add_operation(app: FastAPI, parts: Parts) -> None:
    @app.get("/health")
    @app.get("/health/live")
    async def live() -> Response:
        return json_response({"status": "ok"})

    @app.get("/health/ready")
    async def ready() -> Response:
        if parts.life.is_draining:
            return json_response({"status": "draining"}, 503)
        drafter = (await run_in_threadpool(parts.service.load)).drafter
        return json_response({"status": "ok", "drafter": drafter})

    @app.get("/metrics")
    async def metrics() -> Response:
        text = await run_in_threadpool(exposition, parts.registry)
        return Response(text, media_type=CONTENT_TYPE)


def _model(engine: Engine, settings: ServeSettings) -> Model:
    inside = engine.inside()
    spec, slots = inside.parts.target.spec, inside.parts.slots
    tokenizer = engine.tokenizer
    context_len = min(spec.max_position, slots.num_blocks * BLOCK_LEN)
    longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
    longest = max([longest, *(len(text) for text in tokenizer.added.values())])
    return Model(
        name=settings.name,
        tokenizer=tokenizer,
        context_len=context_len,
        most_chars=context_len * longest,
        vocab=spec.vocab,
        default_tokens=settings.default_tokens,
        grammars=inside.grammars,
    )


def _page_facts(engine: Engine, model: Model, settings: ServeSettings) -> PageFacts:
    parts = engine.inside().parts
    return PageFacts(
        model=model.name,
        version=version("forerun"),
        numerics=engine.numerics,
        drafter=parts.drafter_name,
        has_template=model.has_template,
        fail=parts.drafter.inject_faults if settings.allows_faults else None,
    )


def _fingerprint(name: str, numerics: str) -> str:
    return "fr_" + hashlib.sha256(f"{name}\0{numerics}".encode()).hexdigest()[:10]


def _refuse_misdirected(body: SamplingBody | ResponsesBody, own: str) -> None:
    """Refuse what is for another model, and wishes for a stream that is none."""
    _refuse_other_model(body.model, own)
    if body.stream_options.model_fields_set and not body.stream:
        raise Refusal(400, "stream_options needs stream: true", param="stream_options")


def _refuse_other_model(asked: str | None, own: str) -> None:
    if asked is not None and asked != own:
        raise Refusal(
            404, "there is no such model here: see /v1/models", param="model",
            code="model_not_found",
        )  # fmt: skip


async def _refuse(request: Request, error: Any) -> Response:  # noqa: ARG001  as Starlette calls it
    if isinstance(error, RequestValidationError):
        error = complaint(error.errors())
    elif isinstance(error, HTTPException):
        error = _of_route(error)
    return refusal_response(error)


def _of_route(error: HTTPException) -> Refusal:
    """What routing itself refuses."""
    known = {404: "there is no such address", 405: "this address does not know that method"}
    if error.status_code in known:
        told = f"{known[error.status_code]}: /openapi.json lists what there is"
        return Refusal(error.status_code, told)
    return Refusal(400, "the request could not be read as JSON")


def _note(error: BaseException, request_id: str) -> None:
    _log.error("request %s failed", request_id, exc_info=error)
