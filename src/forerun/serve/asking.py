"""From a checked body to jobs of the engine: prompts become tokens, fields become parameters.

Tokenizing and templates take time, so all of this runs off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from forerun.drafters.prediction import RunIndex
from forerun.engine.constraints import Grammar
from forerun.engine.kept_grammars import Grammars
from forerun.engine.patterns import Pattern
from forerun.engine.service import Job
from forerun.errors import ModelError
from forerun.models.conversation import plain_text
from forerun.models.template_budget import TemplateExceeded
from forerun.models.tokenizer import Tokenizer
from forerun.options import SamplingParams
from forerun.serve.calling import CallPlan, knows_tools, plan_of
from forerun.serve.fields import MAX_CHOICES, ChatBody, CompletionBody, SamplingBody
from forerun.serve.grammars import asked, refuse_lookalike, wanted
from forerun.serve.refusals import Refusal
from forerun.serve.speculating import drafts, speculation_of

_SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class Model:
    """What the server knows of the model it serves; `context_len` is prompt and answer together.

    `most_chars` is more text than so many tokens can spell: it is refused before it is tokenized,
    which for a body of some megabytes would take many seconds.
    """

    name: str
    tokenizer: Tokenizer
    context_len: int
    vocab: int
    default_tokens: int
    most_chars: int
    grammars: Grammars

    @property
    def has_template(self) -> bool:
        """Whether the model was made for chat; else a conversation is one text to continue."""
        return self.tokenizer.template is not None

    @property
    def knows_tools(self) -> bool:
        """Whether its template tells it of tools; else it calls one only where it is made to."""
        return knows_tools(self.tokenizer.template)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's jobs, in the order of its choices; `echoes` is put before each one's text, and
    `calls` says how tools are called in it, if they are."""

    jobs: tuple[Job, ...]
    echoes: tuple[str, ...]
    num_prompt_tokens: int
    calls: CallPlan | None = None


def ask_completion(body: CompletionBody, model: Model, partition: str) -> Asked:
    """The jobs of `POST /v1/completions`: `n` for each prompt, those of one prompt together.

    Raises:
        Refusal: a prompt that is empty or too long, too many choices, a field that cannot be.
    """
    if not body.max_tokens and not body.echo:
        raise Refusal(400, "max_tokens: 0 leaves nothing to answer but an echo", param="max_tokens")
    prompts = _prompts(body.prompt)
    if len(prompts) * body.n > MAX_CHOICES:
        raise Refusal(400, f"prompts times n must be at most {MAX_CHOICES}", param="n")
    tokenizer = model.tokenizer
    ids = [_ids(one, model, "prompt") if isinstance(one, str) else tuple(one) for one in prompts]
    texts = [one if isinstance(one, str) else tokenizer.decode(one) for one in prompts]
    jobs: list[Job] = []
    expected = _expected(body, model)
    for prompt in ids:
        num_tokens = _room(prompt, body.max_tokens, model, "prompt")
        params = _params(body, model, max(num_tokens, 1), body.logprobs)
        jobs += _choices(body, prompt, params, partition, expected)
    scores_prompt = body.echo and body.logprobs is not None
    is_whole = not body.max_tokens
    jobs = [replace(job, scores_prompt=scores_prompt, generates=not is_whole) for job in jobs]
    echoes = [text if body.echo else "" for text in texts for _ in range(body.n)]
    grammar = _grammar(body, wanted(body), None, model, partition)
    jobs = [replace(job, grammar=grammar) for job in jobs]
    return Asked(tuple(jobs), tuple(echoes), sum(map(len, ids)))


def ask_chat(body: ChatBody, model: Model, partition: str) -> Asked:
    """The jobs of `POST /v1/chat/completions`: one for each of `n` choices.

    Raises:
        Refusal: a conversation that the template refuses or that is too long.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    wish = wanted(body)
    plan = plan_of(body, model.tokenizer.template, None if wish is None else wish[1])
    is_told = body.tools and body.tool_choice != "none"
    tools = [one.function.told for one in body.tools or ()] if is_told else []
    prompt = chat_ids([one.told for one in body.messages], model, tools)
    most = body.max_completion_tokens or body.max_tokens
    num_tokens = _room(prompt, most, model, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _params(body, model, num_tokens, logprobs)
    jobs = _choices(body, prompt, params, partition, _expected(body, model))
    grammar = _grammar(body, wish, plan, model, partition)
    bound = tuple(replace(job, grammar=grammar) for job in jobs)
    return Asked(bound, ("",) * body.n, len(prompt), plan)


def _grammar(
    body: SamplingBody,
    wish: tuple[str, Pattern] | None,
    plan: CallPlan | None,
    model: Model,
    partition: str,
) -> Grammar | None:
    """What binds the answers, if something does: calls, or what their text is wished to be.

    Raises:
        Refusal: a grammar that cannot be had, none that may end, or text that looks like a call.
    """
    own = None if wish is None else asked(model.grammars, wish[1], partition, wish[0])
    if plan is None:
        return own
    if body.ignore_eos:
        raise Refusal(400, "ignore_eos: an answer ends behind its calls", param="ignore_eos")
    if wish is not None and plan.text == "instead":
        refuse_lookalike(model.grammars, *wish, plan.form.opening.strip())
    return asked(model.grammars, plan.pattern, partition, "tools")


def chat_ids(
    messages: Sequence[Mapping[str, Any]], model: Model, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """The prompt that a conversation is, by the model's template, which is told of `tools`.

    A model without one was not made for chat: it continues the messages as one text.

    Raises:
        Refusal: the template does not accept these messages.
    """
    tokenizer = model.tokenizer
    if not model.has_template:
        return _ids(plain_text(messages), model, "messages")
    try:
        text = tokenizer.render_chat(messages, tools)
    except TemplateExceeded as error:
        raise Refusal(400, str(error), param="messages") from error
    except ModelError as error:
        raise Refusal(
            400,
            "the model's chat template does not accept these messages: check the order of roles",
            param="messages",
        ) from error
    return tuple(encoded(text, model, "messages", add_special_tokens=False))


def encoded(text: str, model: Model, param: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text that may fit.

    Raises:
        Refusal: it cannot fit, however well it is tokenized.
    """
    if len(text) > model.most_chars:
        raise Refusal(
            400,
            f"{param} has {len(text)} characters, more than a context of {model.context_len} tokens"
            " can hold",
            param=param,
            code="context_length_exceeded",
        )
    return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[one for one in prompt if isinstance(one, int)]]
    return [one for one in prompt if not isinstance(one, int)]


def _ids(text: str, model: Model, param: str) -> tuple[int, ...]:
    """Token ids of a prompt; an empty one is the token that begins every text of this model."""
    ids = encoded(text, model, param)
    return tuple(ids) if ids else model.tokenizer.eos_ids[:1]


def _room(prompt: Sequence[int], asked: int | None, model: Model, param: str) -> int:
    """How many tokens the answer may have."""
    room = model.context_len - len(prompt)
    if not prompt:
        raise Refusal(400, f"{param} is empty: give something to continue", param=param)
    if room < 1 or (asked is not None and asked > room):
        wanted = "" if asked is None else f" and {asked} tokens were asked for"
        raise Refusal(
            400,
            f"the prompt has {len(prompt)} tokens{wanted}; the context has {model.context_len},"
            " prompt and answer together: give or ask for less",
            param=param if room < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    return min(room, model.default_tokens) if asked is None else asked


def _params(
    body: SamplingBody, model: Model, num_tokens: int, logprobs: int | None
) -> SamplingParams:
    """The engine's parameters; OpenAI's seeds may be negative, ours count modulo 2**64."""
    return SamplingParams(
        temperature=body.temperature,
        top_k=max(body.top_k, 0),
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_biases(body, model),
        max_tokens=num_tokens,
        stop=body.stops,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        seed=None if body.seed is None else body.seed % 2**_SEED_BITS,
        logprobs=logprobs,
    )


def _biases(body: SamplingBody, model: Model) -> Mapping[int, float]:
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    for token in biases:
        if token >= model.vocab:
            raise Refusal(
                400, f"logit_bias: token {token} is outside the vocabulary [0, {model.vocab})",
                param="logit_bias",
            )  # fmt: skip
    return MappingProxyType(biases)


def _expected(body: SamplingBody, model: Model) -> RunIndex | None:
    """The text that the answer is said to come to, ready to be followed."""
    if body.prediction is None:
        return None
    text, name = body.prediction.text, "prediction"
    return RunIndex(encoded(text, model, name, add_special_tokens=False))


def _choices(
    body: SamplingBody,
    prompt: tuple[int, ...],
    params: SamplingParams,
    partition: str,
    expected: RunIndex | None,
) -> list[Job]:
    """One job a choice: the same seed, and noise of its own."""
    speculation = speculation_of(body.speculation)
    return [
        Job(
            prompt,
            replace(params, choice=choice),
            drafts(body.speculation),
            partition,
            is_watched=body.forerun.trace,
            speculation=speculation,
            expected=expected,
        )
        for choice in range(body.n)
    ]
