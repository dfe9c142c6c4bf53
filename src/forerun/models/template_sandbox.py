"""jinja2's sandbox with a budget: whatever a template does is paid for, and what grows is refused
before it is made.

Between two payments happens only what is linear in values whose sizes are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from json import JSONEncoder
from string import Formatter
from types import CodeType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from forerun.models.template_budget import Budget, TemplateLimits
from forerun.models.template_steps import with_counters

_MAX_FACTOR = 10_000
_MAX_INDENT = 64
_MAX_DATE_CHARS = 1000
_PADDING = frozenset({"center", "ljust", "rjust", "zfill"})
_UNBOUNDED_METHODS = frozenset({"translate", "maketrans", "expandtabs", "to_bytes"})
_UNBOUNDED_FILTERS = ("urlize", "wordwrap", "xmlattr", "pprint")
_COUNTED_FILTERS = ("batch", "center", "indent", "round", "slice")  # by a number they are given
_PRINTF = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")


class _Generation(Extension):
    """`{% generation %}` marks answers for training; for rendering it is its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Not written out: it may hold one long text under many names, or itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders one template on one budget."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            optimized=False,  # what is computed while a template is compiled is not paid for
            finalize=self._written,
        )
        self._budget = budget
        del self.globals["lipsum"]
        self.globals |= {
            "namespace": _Namespace, "raise_exception": _raise, "strftime_now": _strftime_now,
        }  # fmt: skip
        for name in _UNBOUNDED_FILTERS:
            del self.filters[name]
        self.filters |= {
            "tojson": self._to_json, "join": self._join, "replace": self._replace,
            "format": self._format, "sum": self._sum,
        }  # fmt: skip
        for name in _COUNTED_FILTERS:
            self.filters[name] = self._refusing_numbers(self.filters[name])
        for name, function in self.filters.items():
            self.filters[name] = self._paid(function)

    def template(self, source: str) -> Template:
        """A template, which spends this budget.

        Raises:
            TemplateError, RecursionError, SyntaxError: it is none.
        """
        return Template.from_code(self, _compiled(source), self.make_globals(None), None)

    def enter(self, num_chars: int) -> None:
        """A body begins that writes so many characters by itself."""
        self._budget.step()
        self._budget.write(num_chars)

    def stepped(self) -> bool:
        """True, for a step."""
        self._budget.step()
        return True

    def kept(self, value: Any) -> Any:
        """A value that was made, paid for; items of an iterator are when they come."""
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            return self._counted(value)
        self._budget.take(value)
        return value

    def joined(self, *parts: Any) -> str:
        """The parts as one text."""
        self._budget.refuse_over(sum(map(self._budget.weight, parts)))
        text = "".join(map(str, parts))
        self._budget.take(text)
        return text

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call something for a template."""
        owner = getattr(obj, "__self__", None)
        if owner is self:  # without the names of loops, which jinja2 gives to every call
            return obj(*args)
        if isinstance(owner, str | bytes):
            args = self._fitting(owner, obj.__name__, args)
        self._budget.step()
        return self.kept(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` for a template."""
        if operator in ("*", "**"):
            self._refuse_product(left, right)
        if operator == "%" and isinstance(left, str | bytes):
            values = right.values() if isinstance(right, Mapping) else right
            self._refuse_printf(left, values if isinstance(right, Mapping | tuple) else [right])
        return self.kept(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may see it."""
        return attr not in _UNBOUNDED_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with what its fields may see and how wide they may be bounded."""
        function = super().wrap_str_format(value)
        if function is None:
            return None

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> str:
            # Of `format_map` the one argument is a mapping, which weighs what it holds.
            self._refuse_fields(value.__self__, [*args, *kwargs.values()])
            return function(*args, **kwargs)

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return with_counters(super()._parse(source, name, filename))

    @pass_context  # or constants would be written without it
    def _written(self, _: Any, value: Any) -> str:
        self._budget.take(value)
        text = str(value)
        self._budget.write(len(text))
        return text

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self._budget.take(item)
            yield item

    def _paid(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            self._budget.step()
            return self.kept(function(*args, **kwargs))

        return paid

    def _refusing_numbers(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def refusing(value: Any, *args: Any, **kwargs: Any) -> Any:
            longest = 0
            for given in (*args, *kwargs.values()):
                self._refuse_factor(given)
                longest = max(longest, given if isinstance(given, int) else len(str(given)))
            if isinstance(value, str):  # `indent` does so on every line
                self._budget.refuse_over(len(value) + (value.count("\n") + 1) * longest)
            return function(value, *args, **kwargs)

        return refusing

    def _fitting(self, text: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a method of a text, whose result is not too large."""
        if name in _PADDING and args and isinstance(args[0], int):
            self._budget.refuse_over(args[0])
        elif name == "replace" and len(args) > 1:
            self._budget.refuse_over(len(text) + text.count(args[0]) * len(args[1]))
        elif name == "join" and args:
            items = list(args[0])
            self._budget.refuse_over(self._budget.weight(items) + len(items) * len(text))
            return (items,)
        return args

    def _refuse_factor(self, value: Any) -> None:
        if isinstance(value, int) and abs(value) > _MAX_FACTOR:
            raise TemplateError(f"a factor above {_MAX_FACTOR} is not allowed")

    def _refuse_product(self, left: Any, right: Any) -> None:
        for one, other in ((left, right), (right, left)):
            self._refuse_factor(one)
            if isinstance(one, int) and isinstance(other, str | bytes | list | tuple):
                self._budget.refuse_over(one * self._budget.weight(other))

    def _refuse_printf(self, text: str | bytes, values: Any) -> None:
        found = _PRINTF.findall(text if isinstance(text, str) else text.decode("latin-1"))
        for size in (size for sizes in found for size in sizes if size):
            if size == "*":
                raise TemplateError("a width that is an argument is not allowed")
            self._refuse_factor(int(size))
        self._refuse_formatted(len(text), len(found), values)

    def _refuse_fields(self, text: str, values: list[Any]) -> None:
        fields = [field for field in Formatter().parse(text) if field[1] is not None]
        for spec in (field[2] or "" for field in fields):
            if "{" in spec:
                raise TemplateError("a width that is an argument is not allowed")
            for size in re.findall(r"\d+", spec):
                self._refuse_factor(int(size))
        self._refuse_formatted(len(text), len(fields), values)

    def _refuse_formatted(self, num_chars: int, num_fields: int, values: Any) -> None:
        widest = max(map(self._budget.weight, values), default=0)
        self._budget.refuse_over(num_chars + num_fields * max(widest, 1))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - as templates call it
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,  # noqa: FBT001, FBT002
    ) -> str:
        if indent is not None and not 0 <= indent <= _MAX_INDENT:
            raise TemplateError(f"an indent above {_MAX_INDENT} is not allowed")
        encoder = JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        pieces, num_chars = [], 0
        for piece in encoder.iterencode(value):
            pieces.append(piece)
            num_chars += len(piece)
            self._budget.refuse_over(num_chars)
        return "".join(pieces)

    def _join(self, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
        items = value if attribute is None else map(make_attrgetter(self, attribute), value)
        (texts,) = self._fitting(str(d), "join", ([str(item) for item in items],))
        return str(d).join(texts)

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        self._fitting(str(s), "replace", (str(old), str(new)))
        return str(s).replace(str(old), str(new), -1 if count is None else count)

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if args and kwargs:
            raise TypeError("format takes arguments by place or by name, not both")
        return self.call_binop(None, "%", str(value), kwargs or args)

    def _sum(self, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
        if not isinstance(start, int | float):  # lists are copied for every one that is added
            raise TemplateError("only numbers can be summed up")
        values = iterable if attribute is None else map(make_attrgetter(self, attribute), iterable)
        return sum(values, start)


@lru_cache(maxsize=4)
def _compiled(source: str) -> CodeType:
    """Reading a template takes longer than rendering it, and a model has one."""
    code = Sandbox(Budget(TemplateLimits(), lambda: 0.0)).compile(source)
    assert isinstance(code, CodeType)
    return code


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(text: str) -> str:
    if len(text) > _MAX_DATE_CHARS:
        raise TemplateError(f"a date's form above {_MAX_DATE_CHARS} characters is not allowed")
    return datetime.now().strftime(text)
