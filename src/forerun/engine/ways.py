"""Ways to be decoded that requests ask for, beside the engine's own: built once, shared, bounded.

Knows compositions and who uses them. A request names drafters that lie beside the model or need no
weights, never a place of files; what it does not name is as the engine has it. Building takes time
and happens on the asking thread, while rounds go on.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from forerun.composition import Composition, DrafterName, ScheduleName, ShapeName, refuse_impossible
from forerun.engine.parts import Parts
from forerun.errors import CapacityError, IncompatibleSpeculation, OptionError, QueueFull
from forerun.options import Speculation

MOST_NODES = 64  # that a request may have drafted in a round: others wait for the pass
MOST_DRAFTERS = 4  # in one composition
MOST_BUILDING = 3  # requests that hold their thread until one is built: others need theirs too
_SOON_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Way:
    """Live parts and how many requests use them."""

    parts: Parts
    num_users: int = 0


class Ways:
    """Parts by composition, at most `most` of them; least recently used ones nobody uses go first.

    `build` makes the parts of a composition beside `own`, on the thread that asks.
    """

    def __init__(self, own: Parts, build: Callable[[Composition], Parts], most: int) -> None:
        self._own = own
        self._build = build
        self._most = most
        self._building = threading.Lock()  # never waited for by rounds
        self._turns = threading.BoundedSemaphore(MOST_BUILDING)
        self._lock = threading.Lock()  # guards all below
        self._ways: OrderedDict[Composition, _Way] = OrderedDict()  # oldest first

    @property
    def num_built(self) -> int:
        """Compositions that are held beside the engine's own."""
        return len(self._ways)

    def take(self, asked: Speculation) -> Parts | None:
        """The parts of what was asked for, to be given back; None where that is the engine's own.

        Raises:
            OptionError: more than a request may ask for.
            IncompatibleSpeculation: it does not fit the model.
            QueueFull: all that are held are in use, or too many wait for one to be built.
        """
        wanted = wanted_of(asked, self._own)
        if wanted is None:
            return None
        return self._use(wanted) or self._waited_for(wanted)

    def give_back(self, parts: Parts | None) -> None:
        """A request that used these has ended."""
        with self._lock:
            for way in self._ways.values():
                if way.parts is parts:
                    way.num_users -= 1

    def close(self) -> None:
        """Close every drafter; nobody may use one any more."""
        with self._building, self._lock:
            for way in self._ways.values():
                way.parts.drafter.close()
            self._ways.clear()

    def _waited_for(self, wanted: Composition) -> Parts:
        """A composition that is not held yet; one is built at a time."""
        if not self._turns.acquire(blocking=False):
            raise QueueFull(
                f"{MOST_BUILDING} requests wait for compositions to be built already: come again"
                " later, or leave speculation out",
                _SOON_S,
            )
        try:
            with self._building:
                parts = self._use(wanted)
                if parts is None:
                    self._make_room()
                    parts = self._built(wanted)
                    with self._lock:
                        self._ways[wanted] = _Way(parts, num_users=1)
                return parts
        finally:
            self._turns.release()

    def _use(self, wanted: Composition) -> Parts | None:
        with self._lock:
            way = self._ways.get(wanted)
            if way is None:
                return None
            if way.num_users or not way.parts.drafter.is_disabled:
                way.num_users += 1
                self._ways.move_to_end(wanted)
                return way.parts
            del self._ways[wanted]  # it failed for others: who comes later gets a new one
        way.parts.drafter.close()
        return None

    def _make_room(self) -> None:
        if not self._most:
            raise OptionError(
                "this server decodes every request in its own way: leave speculation out, or write"
                " auto or off"
            )
        with self._lock:
            idle = next((one for one, way in self._ways.items() if not way.num_users), None)
            is_full = len(self._ways) >= self._most
            victim = self._ways.pop(idle) if is_full and idle is not None else None
        if victim is not None:
            victim.parts.drafter.close()
        elif is_full:
            raise QueueFull(
                f"{self._most} other compositions are in use, the limit: come again later, or leave"
                " speculation out",
                _SOON_S,
            )

    def _built(self, wanted: Composition) -> Parts:
        """Live parts; why they cannot be is for the log, for it may name files."""
        name = wanted.drafter.name
        try:
            return self._build(wanted)
        except CapacityError as error:
            _log.info("%s could not be built: %s", name, error)
            raise IncompatibleSpeculation(
                f"speculation: there is no memory left for drafter {name}: use lookup"
            ) from error
        except Exception as error:
            _log.info("%s could not be built: %s", name, error)
            raise IncompatibleSpeculation(
                f"speculation: drafter {name} does not fit this model, or does not lie beside it:"
                " use lookup, or another"
            ) from error


def wanted_of(asked: Speculation, own: Parts) -> Composition | None:
    """What a request wants built; None if it is the engine's own.

    Raises:
        OptionError: a place of files, or more than a request may ask for.
        IncompatibleSpeculation: parts that cannot be together, or need the engine's own lanes.
    """
    here, wanted = own.composition, asked.composition()
    assert here is not None
    _refuse_places(wanted)
    wanted = Composition(
        here.drafter if asked.drafter == "auto" else _known(wanted.drafter, here.drafter),
        here.shape if asked.shape == "auto" else wanted.shape,
        here.rule if asked.rule == "auto" else wanted.rule,
        here.schedule if asked.schedule == "auto" else wanted.schedule,
    )
    if wanted == here:
        return None
    if asked.schedule not in ("auto", "sequential"):
        raise IncompatibleSpeculation(
            f"speculation: {asked.schedule} works on lanes that this server has given to its own"
            " composition, or not at all: leave the schedule out, or write sequential"
        )
    wanted = replace(wanted, schedule=ScheduleName("sequential"))
    refuse_impossible(wanted)
    return None if wanted == here else wanted


def refuse_unjudged(asked: Speculation | None, own: Parts) -> None:
    """Refuse an expected text beside a rule that cannot judge tokens without a law.

    Raises:
        IncompatibleSpeculation: it is none of match and rejection.
    """
    here = own.composition
    wanted = here if asked is None else wanted_of(asked, own) or here
    assert wanted is not None
    if wanted.rule not in ("match", "rejection"):
        raise IncompatibleSpeculation(
            f"prediction: rule {wanted.rule} needs the law that drafts were sampled from, and an"
            " expected text has none: ask for rule match, or leave prediction out"
        )


def _known(name: DrafterName, own: DrafterName) -> DrafterName:
    """A drafter as it is called here: the engine's own may lie anywhere."""
    if name.parts:
        return replace(name, parts=tuple(_known(part, own) for part in name.parts))
    return own if name == DrafterName(own.name) else name


def _refuse_places(wanted: Composition) -> None:
    leaves, shapes = wanted.drafter.leaves(), [wanted.shape, *_inner_shapes(wanted.drafter)]
    for leaf in leaves:
        if leaf.name == "prediction":
            raise OptionError("speculation: send the expected text in the field prediction")
        if leaf.argument is not None and leaf.name != "exit":
            raise OptionError(
                f"speculation: {leaf.name}:… names a place of files, which requests may not: write"
                f" {leaf.name} for the one beside the model"
            )
    if any(shape.file is not None for shape in shapes):
        raise OptionError("speculation: a tree in a file is for the server's owner: write widths")
    if any(shape.size > MOST_NODES for shape in shapes):
        raise OptionError(f"speculation: at most {MOST_NODES} nodes may be drafted in a round here")
    if len(set(leaves)) < len(leaves):
        raise OptionError("speculation: one drafter is named twice: once is enough")
    if len(leaves) > MOST_DRAFTERS:
        raise OptionError(f"speculation: at most {MOST_DRAFTERS} drafters may be named together")


def _inner_shapes(name: DrafterName) -> list[ShapeName]:
    own = [] if name.shape is None else [name.shape]
    return own + [shape for part in name.parts for shape in _inner_shapes(part)]
