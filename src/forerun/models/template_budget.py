"""What a chat template may spend: steps, sizes of values, characters it writes, and seconds.

Steps make it end, whatever it loops over or calls; sizes bound what happens between two steps,
where no clock can be looked at. Must not know templates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any

from forerun.errors import ModelError

_ITEM_CHARS = 8  # what an item of a list weighs beside its own characters
_CHARS_PER_STEP = 64  # of a value that is made
_CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ItemsView, ValuesView)


class TemplateExceeded(ModelError):
    """A chat template took more steps, room or time than one may; the message has the limit."""

    def __init__(self, limit: str) -> None:
        super().__init__(
            f"the model's chat template was stopped: it took more than {limit} for this"
            " conversation; send fewer or shorter messages, or have the template of the model's"
            " directory replaced"
        )


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """How much one rendering may take.

    `max_steps`: of passes through a body, calls, filters, operators, and 64 characters or one item
    of a value that is made. `max_chars`: of one value with all that it holds, and of all that is
    written, also where it is captured. `longest_s`: from its beginning, looked at with every step.
    """

    max_steps: int = 4_000_000
    max_chars: int = 16_000_000
    longest_s: float = 10.0


class Budget:
    """What is left of the limits in one rendering; `now_s` may count from anywhere.

    Raises:
        TemplateExceeded: nothing is left; by every method.
    """

    def __init__(self, limits: TemplateLimits, now_s: Callable[[], float]) -> None:
        self.num_steps = 0
        self._limits = limits
        self._now_s = now_s
        self._ends_s = now_s() + limits.longest_s
        self._num_written = 0
        # Kept with their weights: an id must not come to mean something else.
        self._weighed: dict[int, tuple[Any, int]] = {}

    def step(self, num: int = 1) -> None:
        """Take steps."""
        self.num_steps += num
        if self.num_steps > self._limits.max_steps:
            raise TemplateExceeded(f"{self._limits.max_steps} steps")
        if self._now_s() > self._ends_s:
            raise TemplateExceeded(f"{self._limits.longest_s:g} s")

    def refuse_over(self, num_chars: int) -> None:
        """Refuse a value before it is made."""
        if num_chars > self._limits.max_chars:
            raise TemplateExceeded(f"{self._limits.max_chars} characters in one value")

    def take(self, value: Any) -> None:
        """Pay for a value that was made."""
        weight = self.weight(value)
        self.refuse_over(weight)
        self.step(1 + weight // _CHARS_PER_STEP)

    def write(self, num_chars: int) -> None:
        """Note text that was written."""
        self._num_written += num_chars
        if self._num_written > self._limits.max_chars:
            raise TemplateExceeded(f"{self._limits.max_chars} written characters")

    def weight(self, value: Any) -> int:
        """The characters of a value and of all that it holds, as often as it holds them."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            return _ITEM_CHARS + value.bit_length() // 3
        if isinstance(value, range):
            return _ITEM_CHARS * len(value)
        return self._container(value) if isinstance(value, _CONTAINERS) else _ITEM_CHARS

    def _container(self, value: Any) -> int:
        """Looked through once: what is shared many times over is not walked as often."""
        if id(value) in self._weighed:
            return self._weighed[id(value)][1]
        self.step(len(value))
        parts = itertools.chain(value, value.values()) if isinstance(value, Mapping) else value
        weight = _ITEM_CHARS + sum(_ITEM_CHARS + self.weight(part) for part in parts)
        self.refuse_over(weight)
        self._weighed[id(value)] = value, weight
        return weight
