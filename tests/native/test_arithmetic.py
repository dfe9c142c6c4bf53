"""The canonical arithmetic against its definition, written here a second time in numpy.

The head product is the one product whose inputs and outputs both come out of a backend: taps of
the last layer in, logits out. `native/arith.h` says in words what happens between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from builders import (
    EVERY_PATH,
    FLOAT32,
    PATHS,
    Floats,
    MemoryCheckpoint,
    Row,
    Text,
    batch_of,
    bf16_bits,
    chain,
    opened,
    random_checkpoint,
    require_same_bits,
    same_bits,
    tiny_spec,
)
from numpy.typing import NDArray

from forerun import _native
from forerun.backends.native import NativeBackend

Doubles = NDArray[np.float64]
TINY = 2.0**-126  # the smallest normal float32


# --- the definition ------------------------------------------------------------------------------


def flushed(values: Floats) -> Floats:
    """Denormals as zeros of their sign."""
    return np.where(np.abs(values) < np.float32(TINY), np.copysign(np.float32(0), values), values)


def add_to_odd(a: Doubles, b: Doubles) -> Doubles:
    """The sum, an inexact one rounded to the neighbour with an odd last bit: what is rounded once
    more to 24 bits then is as if it had been rounded once."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)
    bits = total.view(np.int64)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + towards, bits)
    return odd.view(np.float64)


def round_to_float32(exact: Doubles) -> Floats:
    """Nearest even; results that stay below the normal numbers become zero."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float32)
    magnitude = np.abs(exact)
    just_normal = (magnitude >= TINY - 2.0**-151) & (magnitude < TINY)
    lifted = np.where(just_normal, np.copysign(np.float32(TINY), rounded), rounded)
    return np.where(magnitude < TINY - 2.0**-151, np.copysign(np.float32(0), exact), lifted).astype(
        np.float32
    )


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c rounded once; the product of two float32 is exact in float64."""
    return round_to_float32(
        add_to_odd(
            a.astype(np.float64) * b.astype(np.float64),
            c.astype(np.float64) + np.zeros_like(a, np.float64),
        )
    )


def add(a: Floats, b: Floats) -> Floats:
    return round_to_float32(a.astype(np.float64) + b.astype(np.float64))


def as_bf16(values: Floats) -> Floats:
    """Round to bf16 and widen again; denormals are zero."""
    bits = bf16_bits(flushed(values))
    return flushed((bits.astype(np.uint32) << 16).view(np.float32))


def product(rows: Floats, columns: Floats) -> Floats:
    """`[n V]` of `rows [n K]` and `columns [V K]`: blocks of 32, an even and an odd chain."""
    missing = -rows.shape[1] % 32
    a = np.pad(flushed(rows), ((0, 0), (0, missing)))[:, None]
    b = np.pad(flushed(columns), ((0, 0), (0, missing)))[None]
    total = np.zeros((len(rows), len(columns)), np.float32)
    for block in range(0, a.shape[2], 32):
        even, odd = np.zeros_like(total), np.zeros_like(total)
        for at in range(block, block + 32, 2):
            even = fma(*np.broadcast_arrays(a[..., at], b[..., at]), even)
            odd = fma(*np.broadcast_arrays(a[..., at + 1], b[..., at + 1]), odd)
        total = add(total, add(even, odd))
    return total


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """`[n K]` normalised rows: 16 lanes in order, folded 8, 4, 2, 1; float32 throughout."""
    width = x.shape[1]
    squares = flushed(flushed(x) * flushed(x))
    lanes = np.zeros((len(x), 16), np.float32)
    for first in range(0, width, 16):
        part = squares[:, first : first + 16]
        lanes[:, : part.shape[1]] = flushed(lanes[:, : part.shape[1]] + part)
    for half in (8, 4, 2, 1):
        lanes[:, :half] = flushed(lanes[:, :half] + lanes[:, half : 2 * half])
    mean = flushed(lanes[:, :1] / np.float32(width))
    inverse = np.float32(1) / np.sqrt(flushed(mean + np.float32(epsilon)))
    return flushed(flushed(flushed(x) * inverse) * flushed(weight))


# --- what a backend did --------------------------------------------------------------------------


def head_of(backend: NativeBackend, tokens: list[int]) -> tuple[Floats, Floats]:
    """`[n K]` outputs of the last layer and `[n V]` logits of one pass."""
    last = backend.spec.num_layers - 1
    batch = batch_of([Row(tokens, chain(len(tokens)), 0, [0, 1])], tap_layers=(last,))
    output = backend.forward(batch)
    assert output.taps is not None
    return np.array(output.taps), np.array(output.logits)


def expected_logits(checkpoint: MemoryCheckpoint, taps: Floats, isa: str) -> Floats:
    spec = checkpoint.spec
    head = "model.embed_tokens.weight" if spec.tied else "lm_head.weight"
    with np.errstate(over="ignore", under="ignore"):
        normed = rms_norm(taps, checkpoint.tensor("model.norm.weight").float32(), spec.norm_eps)
    operands = normed if isa == FLOAT32 else as_bf16(normed)
    return product(operands, checkpoint.tensor(head).float32())


def wide_range_checkpoint(hidden: int, seed: int) -> MemoryCheckpoint:
    """Final norm and head from far below the normal numbers to where sums nearly overflow, with
    zeros of both signs."""
    spec = tiny_spec(hidden=hidden, num_layers=1, vocab=75, tied=False)
    rng = np.random.default_rng(seed)
    norm = np.exp2(rng.uniform(-135, 60, hidden)).astype(np.float32)
    head = np.exp2(rng.uniform(-133, 55, (75, hidden))) * rng.choice([-1.0, 1.0], (75, hidden))
    head[rng.random(head.shape) < 0.1] = -0.0
    head[0] = -0.0
    head[1::3] = np.exp2(rng.uniform(-133, -120, (25, hidden)))  # these sums stay tiny
    norm[: hidden // 2] = np.exp2(rng.uniform(-20, -8, hidden // 2))
    return random_checkpoint(spec, seed).changed(
        model__norm__weight=norm, lm_head__weight=head.astype(np.float32)
    )


# --- tests ---------------------------------------------------------------------------------------


def test_no_path_of_this_cpu_is_missing() -> None:
    # A path whose start-up check fails is left out in silence; here it must not be.
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    needs = {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"},
        "avx512-bf16": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma", "avx512_bf16"},
        "portable": set(),
        "amx-emulated": set(),
    }
    if _native.amx_errno() == 0:  # else the system refused its use
        needs["amx"] = {"amx_tile", "amx_bf16", *needs["avx512"]}
    assert set(PATHS) == {path for path, needed in needs.items() if needed <= flags}


def exact_float32(value: Fraction) -> np.float32:
    """Nearest even of a rational, by comparing its neighbours; normal results only."""
    guess = np.float32(float(value))
    best = min(
        (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))),
        key=lambda near: (abs(Fraction(float(near)) - value), int(near.view(np.uint32)) & 1),
    )
    return np.float32(best)


def test_the_reference_fma_rounds_once() -> None:
    # given operands whose sum in float64, rounded twice, would often be wrong
    rng = np.random.default_rng(0)
    a = as_bf16(np.exp2(rng.uniform(-40, 4, 4000)).astype(np.float32))
    b = as_bf16(rng.normal(0, 1, 4000).astype(np.float32))
    c = rng.choice([1.0, -1.0], 4000).astype(np.float32) * (
        np.float32(1) + rng.integers(0, 2**23, 4000).astype(np.float32) * np.float32(2**-23)
    )
    # ... among them exact ties of 24 bits, disturbed only far below float64's last bit
    a[:500], b[:500] = np.float32(2**-24), np.float32(1) + np.float32(2**-7)
    a[500:1000], b[500:1000] = np.float32(2**-80), np.float32(1)
    found = fma(a, b, c)
    for x, y, z, result in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert result == exact_float32(exact)


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize(
    ("hidden", "vocab", "tied"),
    [(64, 97, True), (40, 37, False), (100, 50, True), (200, 33, False)],
)
def test_logits_are_the_canonical_product(isa: str, hidden: int, vocab: int, tied: bool) -> None:
    spec = tiny_spec(hidden=hidden, num_layers=1, vocab=vocab, tied=tied, norm_eps=1e-5)
    checkpoint = random_checkpoint(spec, hidden)
    tokens = np.random.default_rng(0).integers(0, vocab, 33).tolist()
    with opened(checkpoint, isa=isa) as backend:
        for n in (1, 2, 5, 16, 17, 33):
            taps, logits = head_of(backend, tokens[:n])
            require_same_bits(logits, expected_logits(checkpoint, taps, isa), f"{isa}, {n} rows")


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize("seed", range(6))
def test_products_and_sums_below_the_normal_numbers_are_zero(isa: str, seed: int) -> None:
    # given weights over the whole range of floats
    checkpoint = wide_range_checkpoint([40, 64, 96][seed % 3], seed)
    tokens = np.random.default_rng(seed).integers(0, 75, 20).tolist()
    with opened(checkpoint, isa=isa, threads=1 + seed % 2) as backend:
        taps, logits = head_of(backend, tokens)
    # then the bits are those of the definition, and no denormal is among them
    require_same_bits(logits, expected_logits(checkpoint, taps, isa), isa)
    assert not np.any((logits != 0) & (np.abs(logits) < TINY))
    assert np.any(logits == 0)


def test_the_reference_can_tell_one_chain_from_two() -> None:
    # given the same product with one running sum, as some manuals have it
    rng = np.random.default_rng(3)
    rows, columns = (as_bf16(rng.normal(0, 1, (n, 64)).astype(np.float32)) for n in (8, 50))
    one = np.zeros((8, 50), np.float32)
    for at in range(64):
        one = fma(*np.broadcast_arrays(rows[:, None, at], columns[None, :, at]), one)
    # then most of its bits are others
    assert not same_bits(one, product(rows, columns))


class FloatingEnvironment:
    """glibc's fenv: the calling thread's rounding mode and its control word (MXCSR)."""

    UPWARD = 0x800
    FLUSH = 0x8040  # FTZ and DAZ
    _CONTROL = 28  # offset in fenv_t on x86-64

    def __init__(self) -> None:
        self._libm = ctypes.CDLL("libm.so.6")

    @contextmanager
    def upward(self) -> Iterator[None]:
        assert self._libm.fesetround(self.UPWARD) == 0
        try:
            yield
        finally:
            self._libm.fesetround(0)

    def rounds_upward(self) -> bool:
        return int(self._libm.fegetround()) == self.UPWARD

    def control(self) -> int:
        environment = ctypes.create_string_buffer(32)
        assert self._libm.fegetenv(environment) == 0
        return int.from_bytes(environment.raw[self._CONTROL :], "little")

    def set_control(self, value: int) -> None:
        environment = ctypes.create_string_buffer(32)
        assert self._libm.fegetenv(environment) == 0
        environment[self._CONTROL : 32] = value.to_bytes(4, "little")
        assert self._libm.fesetenv(environment) == 0


@pytest.fixture
def environment() -> FloatingEnvironment:
    try:
        return FloatingEnvironment()
    except OSError:
        pytest.skip("no glibc: the rounding mode cannot be set from here")


@pytest.mark.parametrize("isa", EVERY_PATH)
def test_the_callers_rounding_mode_does_not_matter(
    isa: str, environment: FloatingEnvironment
) -> None:
    checkpoint = random_checkpoint(tiny_spec(num_layers=1, qk_norm=True), 1)
    one, tenth = 1.0, 10.0
    with opened(checkpoint, isa=isa, threads=2) as backend:
        expected = head_of(backend, [1, 2, 3])
        nearest = one / tenth
        # given a caller that rounds up
        with environment.upward():
            rounded_up = one / tenth
            found = head_of(backend, [1, 2, 3])
            kept = environment.rounds_upward()
    # then the bits are the same, and the caller still rounds up
    assert rounded_up >= nearest
    assert kept
    require_same_bits(found[0], expected[0], "taps")
    require_same_bits(found[1], expected[1], "logits")


def test_a_caller_that_rounds_up_does_not_bend_the_rotation_tables(
    environment: FloatingEnvironment,
) -> None:
    # given tables that are made, and extended past a step, while the caller rounds up
    spec = replace(tiny_spec(num_layers=1), max_position=4096)
    checkpoint, tokens = random_checkpoint(spec, 1), [token % 97 for token in range(1100)]
    with opened(checkpoint, num_blocks=40) as backend:
        expected = Text(backend, range(40)).read(tokens)
    with opened(checkpoint, num_blocks=40) as backend, environment.upward():
        found = Text(backend, range(40)).read(tokens)
    # then positions are turned by the same angles
    require_same_bits(found, expected, "1100 positions")


@pytest.mark.parametrize("flush", [True, False])
def test_the_callers_denormals_are_left_as_they_were(
    flush: bool, environment: FloatingEnvironment
) -> None:
    checkpoint = wide_range_checkpoint(64, 1)
    before = environment.control()
    with opened(checkpoint) as backend:
        expected = head_of(backend, [1, 2, 3])
        mask = environment.FLUSH
        wanted = before | mask if flush else before & ~mask
        environment.set_control(wanted)
        try:
            found = head_of(backend, [1, 2, 3])
            after = environment.control()
        finally:
            environment.set_control(before)
    assert (after & mask) == (wanted & mask)
    require_same_bits(found[1], expected[1], "logits")
