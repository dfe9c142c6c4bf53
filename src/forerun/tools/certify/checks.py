"""What a certificate is made of: checks, what was left out and why, and the time there is.

Values only; must not know models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

Show = Callable[[str], None]

TIME_WAS_SPENT = "the time for it was spent: give a larger --budget-s"


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and whether it held; `detail` has the figures. The name of a negative control
    begins with `control:`, and it passes when the tampering was noticed."""

    name: str
    passed: bool
    detail: str

    def as_dict(self) -> dict[str, object]:
        """The three keys scripts build on."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not checked, and why."""

    name: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {"name": self.name, "reason": self.reason}


@dataclass(slots=True, eq=False)
class Findings:
    """What was found so far, told to `show` as it comes."""

    show: Show
    checks: list[Check] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, name: str, passed: bool, detail: str) -> None:  # noqa: FBT001  a finding
        """Note a check."""
        self.checks.append(Check(name, passed, detail))

    def skip(self, name: str, reason: object) -> None:
        """Note what was not checked; never silently."""
        self.skipped.append(Skipped(name, str(reason)))

    @property
    def passed(self) -> bool:
        """Whether something was checked and all of it held."""
        return bool(self.checks) and all(one.passed for one in self.checks)


@dataclass(slots=True, eq=False)
class Budget:
    """Seconds for the whole run, handed out in shares; what is not used stays for the rest."""

    budget_s: float
    _ends: float = field(init=False)

    def __post_init__(self) -> None:
        self._ends = monotonic() + self.budget_s

    @property
    def left_s(self) -> float:
        """Seconds left of the whole."""
        return max(0.0, self._ends - monotonic())

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return self.budget_s - (self._ends - monotonic())

    def num_fitting(self, each_s: float, most: int) -> int:
        """How many things that take `each_s` seconds each can still be done, `most` at most."""
        return most if each_s * most <= self.left_s else int(self.left_s / each_s)

    def share(self, part: float) -> Budget:
        """A budget of that part of what is left."""
        return Budget(part * self.left_s)


@dataclass(slots=True, eq=False)
class Turns:
    """Things of one kind, one after another: none is begun in less than the longest so far took;
    what is left out for that is said."""

    budget: Budget
    findings: Findings
    longest_s: float = 0.0

    def take(self, name: str, work: Callable[[], None]) -> None:
        """Do what has this name, if the time for it is there."""
        if not self.budget.num_fitting(self.longest_s, 1):
            self.findings.skip(name, TIME_WAS_SPENT)
            return
        self.findings.show(name)
        began_s = self.budget.spent_s
        work()
        self.longest_s = max(self.longest_s, self.budget.spent_s - began_s)
