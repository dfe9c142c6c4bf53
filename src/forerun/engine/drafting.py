"""From a drafter's name to a live drafter, grown as its shape and rule want it.

The one table of drafters. What does not fit the target is refused here, before anything runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from forerun.backends.slots import Slots
from forerun.composition import FEATURE_DRAFTERS, DrafterName, ScheduleName
from forerun.control.prices import Prices, measured
from forerun.control.shared_prices import SharedPrices
from forerun.control.trial import growths, proposals
from forerun.draft import Draw
from forerun.drafters.corpus_files import open_corpus, tokenizer_fingerprint
from forerun.drafters.exit import Exit
from forerun.drafters.features import Featured
from forerun.drafters.intersect import Intersected
from forerun.drafters.intersect_tokens import intersect
from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.nested import InnerDecoder, Nested
from forerun.drafters.plain import Plain
from forerun.drafters.prediction import Prediction
from forerun.drafters.router import Router
from forerun.drafters.translate import Translated
from forerun.drafters.translate_reading import Readings
from forerun.engine.shaping import (
    RULES,
    WIDTH,
    damped_of,
    growth_of,
    live_shape,
    num_levels,
    settled,
)
from forerun.errors import IncompatibleSpeculation, ModelError, OptionError
from forerun.models.drafter_files import open_drafter
from forerun.models.drafter_match import recorded_mode
from forerun.models.drafter_notes import read_notes
from forerun.models.drafter_spec import BlockSpec, DrafterSpec
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.protocols import Backend, Drafter, FeatureBackend, Growth, Shape
from forerun.shapes.chain import Chain
from forerun.stats import Span

_log = logging.getLogger(__name__)

INFLATION_FILE = "inflation.json"  # beside a model that benchmarks enlarged


@dataclass(frozen=True, slots=True)
class Openers:
    """How what drafts is opened: `model(directory)`, and `features(directory, target)` where it
    reads the features of a target. `has_lane`: whether on cores that the target leaves alone."""

    model: Callable[[Path], Backend]
    features: Callable[[Path, Backend], FeatureBackend]
    has_lane: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What drafters are built from: the target, its K/V blocks and where its own drafters lie, its
    tokenizer, how models are opened, the span of a drafter's backend calls, the shape, rule and
    schedule they serve, and the prices of its nodes where their number is ours to choose."""

    target: Backend
    slots: Slots
    directory: Path
    tokenizer: Tokenizer
    opens: Openers
    span: Span
    shape: Shape
    rule: str
    siblings: str = ""
    prices: Prices | SharedPrices | None = None
    schedule: ScheduleName = field(default_factory=ScheduleName)

    @property
    def damped(self) -> tuple[int, float] | None:
        """What draws of a small model are damped by (`Growth.damped`); others ignore it."""
        return damped_of(self.schedule, self.shape)


def build_drafter(name: DrafterName, around: Surroundings) -> Drafter:
    """A live drafter.

    Raises:
        IncompatibleSpeculation: it does not fit the target. ModelError: it cannot be loaded.
    """
    return _BUILDERS[name.name](name, around)


def _plain(name: DrafterName, around: Surroundings) -> Drafter:
    del name, around
    return Plain()


def _lookup(name: DrafterName, around: Surroundings) -> Drafter:
    width = 1 if isinstance(around.shape, Chain) else WIDTH
    if name.argument is None:
        return Lookup(width=width)
    fingerprint = tokenizer_fingerprint(around.directory)

    def encode(text: str) -> list[int]:
        return around.tokenizer.encode(text, add_special_tokens=False)

    return Lookup(open_corpus(Path(name.argument), encode, fingerprint), width)


def _prediction(name: DrafterName, around: Surroundings) -> Drafter:
    path = Path(name.argument or "")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the prediction {path} cannot be read as UTF-8 text: {error}") from error
    return Prediction(around.tokenizer.encode(text, add_special_tokens=False))


def _exit(name: DrafterName, around: Surroundings) -> Drafter:
    """The target's own lower layers; on an inflated model the upper ones compute nothing."""
    num_layers, there = int(name.argument or 0), around.target.spec.num_layers
    if num_layers >= there:
        raise OptionError(
            f"exit:{num_layers} leaves no layer to verify with: the model has {there}, exit earlier"
        )
    if (around.directory / INFLATION_FILE).is_file():
        raise IncompatibleSpeculation(
            f"{around.directory} is an inflated model ({INFLATION_FILE}): its upper layers are"
            " identities, so an early exit would measure nothing; use lm or lookup"
        )
    growth = growth_of(around.shape, around.rule, around.siblings) or Growth(
        Draw.COUPLED, tuple(range(around.shape.max_drafted))
    )
    return Exit(around.target, around.slots, num_layers, growth, around.span)


def _router(name: DrafterName, around: Surroundings) -> Drafter:
    built: list[Drafter] = []
    try:
        built.extend(build_drafter(part, around) for part in name.parts)  # as far as it comes
    except BaseException:
        for drafter in built:
            drafter.close()
        raise
    # A sampled rule's tokens depend on the draft, so a choice by the clock would not repeat.
    names = [part.name for part in name.parts]
    return Router(built, names, is_timed=around.rule == "match")


def _nested(name: DrafterName, around: Surroundings) -> Drafter:
    """The model's small model as a speculative decoder: its own drafter is named inside."""
    path = drafter_directory(DrafterName("lm"), around.directory)
    refuse_other_vocabulary(around, path)
    middle = _opened(path, around)
    assert name.shape is not None
    shape = live_shape(name.shape, name.parts[0].name)
    inner = replace(around, target=middle, directory=path, shape=shape, rule=name.rule)
    try:
        drafter = build_drafter(name.parts[0], inner)
    except BaseException:
        middle.close()
        raise
    decoder = InnerDecoder(middle, drafter, shape, RULES[name.rule])
    return Nested(decoder, num_levels(around.shape), around.span)


def _small_model(name: DrafterName, around: Surroundings) -> Drafter:
    path = drafter_directory(name, around.directory)
    spec = read_spec(path)
    if not _speaks_alike(around, path):
        return _translated(path, spec, around)
    refuse_other_vocabulary(around, path)
    growth = growth_of(around.shape, around.rule, around.siblings, around.damped)
    backend = _opened(path, around)
    if isinstance(around.prices, Prices):
        around.prices.settle(measured(around.target, proposals(backend)))
    return LM(backend, num_levels(around.shape), around.span, growth, around.prices)


def _opened(path: Path, around: Surroundings) -> Backend:
    """A small model; the mode that it was trained in is logged, as of drafters on features."""
    for finding in recorded_mode(read_notes(path)):
        _log.warning("drafter %s: %s", path, finding.sentence)
    return around.opens.model(path)


def _featured(name: DrafterName, around: Surroundings) -> Drafter:
    """A drafter that reads the target's features, in whatever published layout."""
    path = drafter_directory(name, around.directory)
    spec = spec_of_kind(name.name, path, around)
    growth = growth_of(around.shape, around.rule, around.siblings, around.damped) or Growth(
        Draw.COUPLED, tuple(range(around.shape.max_drafted))
    )
    backend = around.opens.features(path, around.target)
    if isinstance(around.prices, Prices):
        draft_of = None if isinstance(spec, BlockSpec) else growths(backend)
        around.prices.settle(measured(around.target, draft_of))
    return Featured(backend, num_levels(around.shape), around.span, growth, around.prices)


def spec_of_kind(name: str, path: Path, around: Surroundings) -> DrafterSpec:
    """What a directory's drafter is, if it is of the kind that its name says."""
    spec = open_drafter(path, around.target.spec).spec
    is_block = isinstance(spec, BlockSpec)
    if is_block == (name == "eagle3"):
        right = "dflash or dspark" if is_block else "eagle3"
        kind = "a block drafter" if is_block else "an EAGLE-3 head"
        raise IncompatibleSpeculation(
            f"{path} holds {kind}, not what {name} runs: write {right}:{path}"
        )
    return spec


def _translated(path: Path, spec: ModelSpec, around: Surroundings) -> Drafter:
    """A small model of another vocabulary: by shared tokens, and by text where that will do."""
    own = load_tokenizer(path, spec)
    sizes = (own, spec.vocab, around.tokenizer, around.target.spec.vocab)
    longest = around.shape.max_drafted
    if around.rule != "match":
        # Shared tokens are always drawn: for the likeliest there is no pass that lays them out.
        siblings = around.siblings if around.siblings == "top" else ""
        growth = growth_of(around.shape, around.rule, siblings, around.damped)
        assert growth is not None
        shared = intersect(*sizes)
        readings = Readings(_opened(path, around), own, around.tokenizer, around.span)
        return Intersected(readings, shared, growth, longest)
    coupled = None
    with suppress(IncompatibleSpeculation):
        shared = intersect(*sizes)
        parents = settled(around.shape)
        coupled = (shared, Growth(Draw.COUPLED, parents), longest)
    readings = Readings(_opened(path, around), own, around.tokenizer, around.span)
    return Translated(readings, longest, coupled and Intersected(readings, *coupled))


def _speaks_alike(around: Surroundings, path: Path) -> bool:
    """Whether a drafter's tokens are the target's: one without a tokenizer is taken at its word."""
    own, target = path / "tokenizer.json", around.directory / "tokenizer.json"
    if not own.is_file() or (target.is_file() and own.read_bytes() == target.read_bytes()):
        return True
    vocabularies = [
        one.fast.get_vocab(with_added_tokens=True)
        for one in (load_tokenizer(path, read_spec(path)), around.tokenizer)
    ]
    return vocabularies[0] == vocabularies[1]


_BUILDERS: dict[str, Callable[[DrafterName, Surroundings], Drafter]] = {
    "none": _plain,
    "lookup": _lookup,
    "prediction": _prediction,
    "router": _router,
    "nested": _nested,
    "exit": _exit,
    "lm": _small_model,
    "dflash": _featured,
    "dspark": _featured,
    "eagle3": _featured,
}


def drafter_directory(name: DrafterName, directory: Path) -> Path:
    """A bare name means the model's own drafter, else the embedded model's if it fits."""
    if name.argument is not None:
        return resolve_model(name.argument)
    own = directory / "drafters" / name.name
    if own.is_dir():
        return own
    with suppress(ModelError, OSError):
        family = resolve_model(EMBEDDED_NAME)
        tokenizer = "tokenizer.json"
        lent = family / "drafters" / name.name
        is_same = (family / tokenizer).read_bytes() == (directory / tokenizer).read_bytes()
        if is_same and lent.is_dir():
            return lent
    raise ModelError(
        f"the model has no drafter of its own at {own}{_what_lies(own.parent)}: write"
        f" {name.name}:DIR, or use lookup"
    )


def _what_lies(drafters: Path) -> str:
    """What is there instead, for a sentence."""
    known = [one for one in ("lm", *FEATURE_DRAFTERS) if (drafters / one).is_dir()]
    if not known:
        return ""
    return f" ({', '.join(known)} {'is' if len(known) == 1 else 'are'} there)"


def refuse_other_vocabulary(around: Surroundings, path: Path) -> None:
    vocab = read_spec(path).vocab
    if vocab != around.target.spec.vocab:
        raise IncompatibleSpeculation(
            f"the drafter {path} has {vocab} tokens, the target {around.target.spec.vocab}: an lm"
            " drafter of the same tokenizer needs as many; use one made for this model, or lookup"
        )
