"""A chat template of a model's directory ends, whatever it does, and one that is none too."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forerun.errors import ModelError
from forerun.models.chat_template import render
from forerun.models.template_budget import Budget, TemplateExceeded, TemplateLimits
from forerun.models.template_sandbox import Sandbox

# As Qwen2.5 publishes it (Apache-2.0), with the namespace and slices of Qwen3's.
PUBLISHED = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}{{- tool | tojson(ensure_ascii=False) }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<r>')
        and message.content.endswith('</r>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ content }}
        {%- for call in message.tool_calls or [] if call.function is defined %}
            {{- '\n<tool_call>\n{"name": "' }}{{- call.function.name }}
            {{- '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<r>\n' }}{{- message.content | trim | replace('\t', ' ') }}{{- '\n</r>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
TOOLS = [{"type": "function", "function": {"name": f"f{at}", "parameters": {}}} for at in range(8)]
CALL = {"function": {"name": "f1", "arguments": {"city": "Åland", "days": [1, 2]}}}


def conversation(num_messages: int) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "How is the weather? " * 20},
        {"role": "assistant", "content": "<think>\nhm</think>\n\nI look.", "tool_calls": [CALL]},
        {"role": "tool", "content": "\t12 degrees "},
        {"role": "assistant", "content": "Twelve degrees."},
    ]
    return list(itertools.islice(itertools.cycle(said), num_messages))


def standing_clock() -> float:
    return 0.0


def impatient_clock(num_looks: int) -> Callable[[], float]:
    """Stands still, and fails the test that looks at it more often: a template that is not
    stopped would hang it."""
    looks = itertools.count(1)

    def now_s() -> float:
        assert next(looks) <= num_looks, "the template goes on"
        return 0.0

    return now_s


def without_limits(template: str, **values: Any) -> str:
    """What the library's own sandbox makes of a template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = Sandbox(Budget(TemplateLimits(), standing_clock)).filters[
        "tojson"
    ]
    return environment.from_string(template).render(**values)


def test_given_a_published_template_and_dozens_of_messages_then_a_hundredth_is_enough() -> None:
    messages = conversation(60)
    limits = TemplateLimits()
    hundredth = TemplateLimits(limits.max_steps // 100, limits.max_chars // 100)

    text = render(PUBLISHED, messages, {}, TOOLS, limits=hundredth, now_s=standing_clock)

    wanted = without_limits(PUBLISHED, messages=messages, tools=TOOLS, add_generation_prompt=True)
    assert text == wanted
    assert text.count("<tool_call>") == 15


def test_given_the_most_messages_that_a_request_may_have_then_it_is_rendered() -> None:
    text = render(PUBLISHED, conversation(1024), {}, TOOLS, now_s=standing_clock)

    assert text.count("<|im_start|>") == 1026


@pytest.mark.parametrize(
    "template",
    [
        "{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.revindex }}{% else %}"
        "none{% endfor %}",
        "{% for m in [] %}{% else %}none{% endfor %}{{ messages[1:][0]['role'] }}",
        "{{ [3, 1, 2]|sort|map('string')|join(', ') }}{{ [1, 2, 3]|sum }}{{ 'a\nb'|indent(2) }}",
        "{{ messages|selectattr('role', 'equalto', 'tool')|list|length }}"
        "{{ messages|map(attribute='role')|unique|join('/') }}",
        "{% macro f(n, x=[1, n]) %}{{ n }}{{ x }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(4) }}{% macro g() %}<{{ caller() }}>{% endmacro %}{% call g() %}x{% endcall %}",
        "{% for x in [[1], [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
        "{% set x %}{{ 'a'.center(5) }}|{% endset %}{{ x ~ 1 ~ none ~ x }}"
        "{{ '%s-%03d' % ('a', 7) }}",
        "{{ '{}:{:>4}'.format('a', 1.5) }}{{ '%s'|format(2) }}{{ ','.join(['a', 'b']) }}",
        "{% filter upper %}abc{% endfilter %}{{ (1, 2)[0] }}{{ '<b>'|e }}{{ 'ab' in ['ab'] }}",
        "{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ loop.cycle(1, 2) }}"
        "{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ x|default('y') }}{{ 2 ** 8 // 3 % 50 }}{{ -1.5|abs }}{{ none }}{{ true }}",
        "{{ messages[0].content.split(' ')|first }}{{ 'aXbX'|replace('X', 'y', 1) }}",
    ],
)
def test_given_what_templates_do_then_counting_changes_nothing(template: str) -> None:
    messages = conversation(7)

    assert render(template, messages, {}) == without_limits(template, messages=messages)


MANY = "{% set many = range(99999) %}"
ENDLESS = [
    "{% for i in many %}{% for j in many %}{% endfor %}{% endfor %}",
    "{% for i in many %}{% for j in many if false %}{% endfor %}{% endfor %}",
    "{% for i in many %}{% if many|map('string')|list %}{% endif %}{% endfor %}",
    "{% for i in many %}{% if many|map(attribute='real')|sum %}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "{% block a %}{% if messages %}{% for i in range(9) %}{% for j in many %}{% endfor %}"
    "{% endfor %}{% endif %}{% endblock %}{% for i in range(9) %}{{ self.a() }}{% endfor %}",
    "{% for i in many %}{% set c = many|sort %}{% endfor %}",
    "{% set ns = namespace(s='') %}{% for i in many %}{% set ns.s = ns.s ~ 'x' * 99 %}"
    "{% endfor %}",
]  # fmt: skip


@pytest.mark.timeout(120)  # one that is not stopped while it looks at no clock
@pytest.mark.parametrize("template", ENDLESS)
def test_given_a_template_that_goes_on_and_on_then_it_is_stopped_after_its_steps(
    template: str,
) -> None:
    limits = TemplateLimits(max_steps=50_000)

    with pytest.raises(TemplateExceeded, match=r"more than 50000 steps .* send fewer"):
        render(MANY + template, conversation(2), {}, limits=limits, now_s=impatient_clock(60_000))


def test_given_limits_of_nobody_then_a_template_has_four_million_steps() -> None:
    # A pass makes 15 million characters: 234 thousand steps, and next to no time.
    body = "{% set long = ('x' * 10000) * 1500 %}{% endfor %}"

    with pytest.raises(TemplateExceeded, match="more than 4000000 steps"):
        render("{% for i in range(18) %}" + body, [], {}, now_s=impatient_clock(1000))
    # The control: two passes fewer are within it.
    assert render("{% for i in range(16) %}" + body, [], {}, now_s=impatient_clock(1000)) == ""


GROWING = [
    "{% set ns = namespace(x='x') %}{% for i in range(64) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(64) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(64) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(64) %}{% set ns.x = {1: ns.x, 2: ns.x} %}"
    "{% endfor %}",
    "{{ 'a' * 9999 * 9999 * 9999 }}", "{{ [1] * 9999 * 9999 * 9999 }}", "{{ 'x'.center(10 ** 9) }}",
    "{{ ('%(a)s' * 9999) % {'a': long} }}", "{{ ('{0}' * 9999).format(long) }}",
    "{{ ('{a}' * 9999).format_map({'a': long}) }}", "{{ long.replace('', long) }}",
    "{{ long|replace('x', long) }}", "{{ long.join(long) }}", "{{ long|join(long) }}",
    "{{ [long] * 9999 }}", "{{ ('x\n' * 9999)|indent(9999) }}", "{{ [long]|list * 9999 }}",
    "{% for i in range(9999) %}{% set x %}{{ long }}{% endset %}{% endfor %}",
    "{% for i in range(99999) %}{% set x %}{{ '" + "y" * 999 + "' }}{% endset %}{% endfor %}",
    "{% for i in range(99999) %}{% set x %}" + "y" * 999 + "{% endset %}{% endfor %}",
    "{% macro f() %}" + "y" * 999 + "{% endmacro %}{% for i in range(99999) %}{% set x = f() %}"
    "{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("template", GROWING)
def test_given_a_value_that_grows_then_it_is_refused_before_it_is_made(template: str) -> None:
    limits = TemplateLimits(max_chars=1_000_000)
    long = "{% set long = 'x' * 9999 %}"

    tracemalloc.start()
    with pytest.raises(TemplateExceeded, match=r"more than 1000000 (written )?characters"):
        render(long + template, [], {}, limits=limits, now_s=standing_clock)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 30_000_000


@pytest.mark.parametrize(
    "expression",
    [
        "'%1000000000d' % 1", "'%*d' % (1000000000, 1)", "'%.1000000000f'|format(1)",
        "'{:1000000000}'.format(1)", "'{:{}}'.format(1, 1000000000)", "'x'|center(1000000000)",
        "'x'|indent(1000000000)", "[1]|slice(1000000000)|list", "[1]|batch(1000000000, 0)|list",
        "1.5|round(1000000000, 'ceil')", "[1]|tojson(indent=1000000000)", "lipsum(1000000000)",
        "'a'.translate({97: 'b'})", "(1).to_bytes(1000000000, 'big')", "'x'|wordwrap(1, true, 'y')",
        "[[1]]|sum(start=[])", "strftime_now('%Y' * 999)", "(1).__class__()", "[1, 2].append(3)",
    ],
)  # fmt: skip
def test_given_what_no_step_could_bound_then_it_is_refused(expression: str) -> None:
    with pytest.raises(ModelError, match="chat template failed"):
        render("{{ " + expression + " }}", [], {})


def test_given_a_macro_that_calls_itself_for_ever_then_the_template_fails() -> None:
    with pytest.raises(ModelError, match="recursion"):
        render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [], {})


def ticking(tick_s: float) -> Callable[[], float]:
    times: Iterator[float] = itertools.count(0.0, tick_s)
    return lambda: next(times)


def test_given_a_clock_that_runs_out_then_the_template_is_stopped_by_seconds() -> None:
    template = "{% for i in range(1000) %}{% if messages in [messages] %}{% endif %}{% endfor %}"
    limits = TemplateLimits(longest_s=2.0)

    with pytest.raises(TemplateExceeded, match="more than 2 s"):
        render(template, conversation(2), {}, limits=limits, now_s=ticking(0.01))
    with pytest.raises(TemplateExceeded, match="more than 10 s"):
        render(template, conversation(2), {}, now_s=ticking(0.1))
    # The control: the same template under a clock that is not done when it is.
    assert render(template, conversation(2), {}, limits=limits, now_s=ticking(1e-6)) == ""
