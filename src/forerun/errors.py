"""The one error tree.

ForerunError
├── OptionError                a value the caller passed is out of range
│   ├── IncompatibleSpeculation   two parts that would not be exact (or not possible) together
│   └── GrammarError              a grammar that cannot be read, or that grew too complex
├── ModelError                 a checkpoint, tokenizer or drafter that cannot be used as it is
├── CapacityError              a request that cannot fit, with both numbers
│   └── QueueFull                 one that would fit, after those that wait; says when
├── BackendError               the machine or the build lacks something a backend needs
├── DrafterError               a drafter broke its contract; the engine goes on without it
└── EngineClosed               use after `close()`

A message says what happened, which limit was hit, and the way out.
"""


class ForerunError(Exception):
    """Base of every error that forerun raises on purpose."""


class OptionError(ForerunError, ValueError):
    """A value the caller passed is out of range; the message carries the limit."""


class IncompatibleSpeculation(OptionError):
    """The requested parts cannot be combined; the message says why and what to use."""


class GrammarError(OptionError):
    """A grammar cannot be read or enforced, or grew too complex while it was followed."""


class ModelError(ForerunError):
    """A checkpoint, tokenizer or drafter cannot be used; nothing was half-loaded."""


class CapacityError(ForerunError):
    """A request cannot fit in the model's context or in memory; the message has both numbers."""


class QueueFull(CapacityError):
    """Too much waits already; `retry_after_s` is about when there will be room again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendError(ForerunError):
    """The machine or the build lacks something the chosen backend needs."""


class DrafterError(ForerunError):
    """A drafter broke its contract; the engine continues without its proposal."""


class EngineClosed(ForerunError):
    """The engine was used after it was closed."""
