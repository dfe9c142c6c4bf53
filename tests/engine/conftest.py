"""Engines over tiny models: one target, a small model that often agrees with it, two backends."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest

from engine.feature_drafters import write_feature_drafters
from engine.lattice import completions, opened, outcomes, requests, write_places
from forerun import Engine, Speculation
from forerun.drafters import overlapped

HAS_NATIVE = importlib.util.find_spec("forerun._native") is not None
BACKENDS = [
    "torch",
    pytest.param(
        "native", marks=pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
    ),
]
KV_POSITIONS = 4096
ANY_MACHINE_S = 120.0
OpenEngine = Callable[..., Engine]


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing end that a drafter does because the machine is busy: whether it comes in time is
    no test's outcome, but where a test owns the time."""
    for name in ("_PATIENT_S", "_CLOSING_S"):
        monkeypatch.setattr(overlapped, name, ANY_MACHINE_S)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "torch":
        pytest.importorskip("torch").set_num_threads(1)
    return str(request.param)


@pytest.fixture(scope="session")
def target_dir(tiny_checkpoint_dir):
    return tiny_checkpoint_dir("qwen3", 0)


@pytest.fixture(scope="session")
def lm_name(tiny_checkpoint_dir, target_dir) -> str:
    """The lm drafter: the target's weights with a little noise, so it is right about half the
    time."""
    return f"lm:{tiny_checkpoint_dir('qwen3', 1, near=(target_dir, 0.04))}"


@pytest.fixture
def open_engine(backend: str, target_dir) -> Iterator[OpenEngine]:
    """Opens engines on one backend and closes them all."""
    engines: list[Engine] = []

    def opened(drafter="none", shape="chain:6", model=target_dir, rule="auto", **options) -> Engine:
        options.setdefault("kv_positions", KV_POSITIONS)
        speculation = Speculation(drafter, shape, rule)
        engine = Engine(model, speculate=speculation, backend=backend, **options)
        engines.append(engine)
        return engine

    yield opened
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module", name="drafters")
def written_drafters(tmp_path_factory, target_dir, lm_name) -> dict[str, str]:
    """What `{lm}`, `{dspark}` and the like stand for in a composition."""
    written = write_feature_drafters(tmp_path_factory.mktemp("drafters"), target_dir)
    return {"lm": lm_name, **{name: str(path) for name, path in written.items()}}


@pytest.fixture(name="opened")
def opened_natively(target_dir, drafters) -> Iterator[OpenEngine]:
    """Opens native engines of a composition, and closes them."""
    engines: list[Engine] = []

    def open_engine(words=("none",), **options) -> Engine:
        speculation = Speculation(*(word.format(**drafters) for word in words))
        options = {"kv_positions": KV_POSITIONS, "threads": 1, "backend": "native"} | options
        engines.append(Engine(target_dir, speculate=speculation, **options))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.fixture(params=["lookup", "lm"], name="engine")
def drafting_engine(request, target_dir, lm_name) -> Iterator[Engine]:
    """A native engine with a short chain of either drafter."""
    drafter = lm_name if request.param == "lm" else "lookup"
    with Engine(
        target_dir, speculate=Speculation(drafter, "chain:4"), kv_positions=KV_POSITIONS,
        threads=1, backend="native",
    ) as engine:  # fmt: skip
        yield engine


@pytest.fixture(scope="session")
def places(tmp_path_factory, tiny_checkpoint_dir):
    """The models and files of the product of compositions."""
    return write_places(tmp_path_factory.mktemp("lattice"), tiny_checkpoint_dir)


@pytest.fixture(scope="session")
def plain(places):
    """Each request alone, one token a round; by backend, computed when asked for."""
    known = {}

    def of(backend="native"):
        if backend not in known:
            with opened(places, ("none", "auto", "match"), backend) as engine:
                known[backend] = [outcomes(completions(engine, [one]))[0] for one in requests()]
        return known[backend]

    return of
