"""From the four names of a `Speculation` to live parts: shape, rule, schedule and, by
`drafting.py`, the drafter."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from pathlib import Path

from forerun.backends.slots import Slots
from forerun.composition import Composition, ScheduleName, ShapeName
from forerun.control.pace import Paces
from forerun.control.patience import Patience
from forerun.control.prices import Prices
from forerun.control.shared_prices import SharedPrices
from forerun.drafters.features import Featured
from forerun.drafters.guard import Guard
from forerun.drafters.lookup import Lookup
from forerun.drafters.overlapped import Overlapped
from forerun.drafters.waits import Spares
from forerun.engine.discovery import discovered
from forerun.engine.drafting import Openers, Surroundings, build_drafter
from forerun.engine.scheduling import Depths, scheduled
from forerun.engine.shaping import RULES, live_shape
from forerun.engine.witness import Witness
from forerun.models.tokenizer import Tokenizer
from forerun.options import Speculation
from forerun.protocols import Backend, Drafter, Rule, Schedule, Shape
from forerun.schedules.ahead import Ahead
from forerun.schedules.sequential import Sequential
from forerun.shapes.chain import Chain
from forerun.stats import LaneMeter, RoundMeter, Span


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a round is made of: a target with its K/V blocks, and an answer to each question."""

    target: Backend
    slots: Slots
    drafter: Guard
    shape: Shape
    rule: Rule
    schedule: Schedule
    schedule_reason: str = ""
    pace: Paces | None = None  # only where nobody asked for a length
    prices: Prices | None = None  # only where nobody asked for a number of nodes
    patience: Patience | None = None  # only where something works ahead
    witness: Witness | None = None
    drafter_name: str = ""  # of the one that was built: never `auto`
    # What was built, by name; of these only the shape may be `auto`: a chain as `pace` has it.
    composition: Composition | None = None
    schedule_figures: Callable[[], str] = str  # measured when they are asked for
    shared_prices: SharedPrices | None = None  # as `prices`, of parts beside the engine's own

    def lengths_for(self, sequence_ids: Rows[int], num_rows: int) -> list[int]:
        """Most nodes to draft for each of these rows, of so many in a round."""
        if self.pace is None:
            return [self.shape.max_drafted] * len(sequence_ids)
        return self.pace.lengths_for(sequence_ids, num_rows)


def build_parts(
    speculation: Speculation,
    target: Backend,
    directory: Path,
    tokenizer: Tokenizer,
    opens: Openers,
    meter: RoundMeter,
) -> Parts:
    """Check all four names, then load what they need.

    `directory` is the target's, where its own drafters lie; `meter.model` sums the seconds of a
    drafter's own backend calls, as far as the target waits for them.

    Raises:
        OptionError: a name that is unknown.
        IncompatibleSpeculation: a drafter that does not fit the target.
        ModelError: a drafter that cannot be loaded.
    """
    wanted = speculation.composition()
    slots, name = Slots(target.num_blocks), wanted.drafter
    prices = Prices() if _is_priced(wanted) else None
    around = Surroundings(
        target, slots, directory, tokenizer, opens, Span(),
        shape=live_shape(wanted.shape, name.name), rule=wanted.rule,
        siblings=wanted.shape.siblings, prices=prices, schedule=wanted.schedule,
    )  # fmt: skip
    if name.name == "auto":
        name, around = discovered(around)
        around = replace(around, shape=live_shape(wanted.shape, name.name))
    shape, drafter = around.shape, build_drafter(name, around)
    pace = _pace_of(wanted, name.name, drafter, shape)
    held = shape if pace is None else None
    chosen = scheduled(wanted.schedule, drafter, around, name, held)
    schedule = chosen.schedule
    if chosen.depths is not None:
        shape, pace = _paced_ahead(chosen.depths)
    drafter, patience = _timed(drafter, schedule, around, meter)
    guard = Guard(drafter, shape, target.spec.vocab)
    return Parts(
        target, slots, guard, shape, RULES[wanted.rule], schedule, chosen.reason, pace, prices,
        patience, drafter_name=name.name, schedule_figures=chosen.figures,
        composition=replace(wanted, drafter=name, schedule=_name_of(schedule, wanted.schedule)),
    )  # fmt: skip


def build_beside(
    own: Parts,
    wanted: Composition,
    directory: Path,
    tokenizer: Tokenizer,
    opens: Openers,
    meter: RoundMeter,
) -> Parts:
    """Parts for requests that want others than the engine's own: the same target and K/V blocks,
    drafted for between passes. Touches nothing that a round may be using.

    Raises:
        OptionError, IncompatibleSpeculation, ModelError: as `build_parts`.
    """
    name, prices = wanted.drafter, SharedPrices() if _is_priced(wanted) else None
    around = Surroundings(
        own.target, own.slots, directory, tokenizer, opens, meter.model,
        shape=live_shape(wanted.shape, name.name), rule=wanted.rule,
        siblings=wanted.shape.siblings, prices=prices, schedule=wanted.schedule,
    )  # fmt: skip
    drafter = build_drafter(name, around)
    return Parts(
        own.target, own.slots, Guard(drafter, around.shape, own.target.spec.vocab), around.shape,
        RULES[wanted.rule], Sequential(), "a request asked for it",
        _pace_of(wanted, name.name, drafter, around.shape), shared_prices=prices,
        drafter_name=name.name, composition=wanted,
    )  # fmt: skip


def _name_of(schedule: Schedule, asked: ScheduleName) -> ScheduleName:
    """What a live schedule is called; a number that was left to us is told."""
    if isinstance(schedule, Ahead):
        return ScheduleName("ahead", schedule.num_branches, asked.damping)
    return ScheduleName("sequential" if schedule.num_branches == 0 else "parallel")


def _is_priced(wanted: Composition) -> bool:
    """Whether the number of a tree's nodes is left to us, to be learned from what they cost."""
    is_free = wanted.shape.kind == "tree" and not wanted.shape.size and not wanted.shape.file
    return is_free and wanted.rule == "match"


def _pace_of(wanted: Composition, name: str, drafter: Drafter, shape: Shape) -> Paces | None:
    """Who learns how much to draft, where that is left to us."""
    is_paced = wanted.shape == ShapeName() and wanted.rule == "match" and name != "none"
    return _pace(drafter, shape) if is_paced else None


def _timed(
    drafter: Drafter, schedule: Schedule, around: Surroundings, meter: RoundMeter
) -> tuple[Drafter, Patience | None]:
    """The drafter as it is scheduled, and who learns how long to wait for what works ahead."""
    if schedule.num_branches == 0:
        meter.model = around.span  # the target waits for all of it
        return drafter, None
    meter.lane, patience = LaneMeter(), Patience()
    return _overlapped(drafter, schedule, patience, around, meter), patience


def _overlapped(
    drafter: Drafter,
    schedule: Schedule,
    patience: Patience,
    around: Surroundings,
    meter: RoundMeter,
) -> Overlapped:
    """The drafter on a lane of its own; under a sampled rule a row that misses waits for it."""
    assert meter.lane is not None
    return Overlapped(
        drafter,
        schedule,
        waits=patience,
        spares=Spares(Lookup() if around.rule == "match" else None),
        meter=meter.lane,
        span=meter.model,
        vocab=around.target.spec.vocab,
    )


def _pace(drafter: Drafter, shape: Shape) -> Paces:
    """A block's first token is the dear one: its pace looks at a short chain and at a whole one."""
    if not isinstance(drafter, Featured):
        return Paces(shape.max_drafted)
    longest = min(shape.max_drafted, drafter.num_levels)
    return Paces(longest, (2, longest))


def _paced_ahead(depths: Depths) -> tuple[Chain, Paces]:
    """What to draft beside a verification, from nothing to `depths.most`: it begins with the usual.

    Rounds tell a pace what drafting costs that is waited for, not what a lane is left to do, so
    that depths which cost a lane more than they can yield are none of its choices. Within them it
    is free: a text that repeats itself keeps drafts twice as long as others, and one that keeps
    none is best decoded plainly.
    """
    return Chain(depths.most), Paces(depths.most, (depths.usual,))
