"""Formats: rounding is that of exact rationals, in every format and at every edge."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refpeft.errors import DtypeError
from refpeft.numerics import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FORMATS, TF32, as_format, store, ulp
from refpeft.numerics.formats import round_to_format

EVERY = [*FORMATS.values(), TF32]


def nearest_even(value: float, format) -> float:
    """The definition: the nearest multiple of the quantum, ties to the even multiple; infinity from max + ulp/2 on."""
    if value == 0 or not math.isfinite(value):
        return value
    exact = abs(Fraction(value))
    exponent = math.frexp(value)[1] - 1
    quantum = Fraction(2) ** (max(exponent, format.emin) - format.precision + 1)
    rounded = round(exact / quantum) * quantum
    return math.copysign(float(rounded) if rounded <= Fraction(format.max) else math.inf, value)


def edges(format) -> list[float]:
    """Ties, their neighbours, the ends of the range, and values that a rounding by way of float32 would get wrong."""
    one, half = 1.0, 2.0**-format.precision
    values = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        one,
        one + half,
        one + 3 * half,
        format.max,
        format.tiny,
        format.subnormal,
    ]
    values += [format.subnormal / 2, 1.5 * format.subnormal, 2.5 * format.subnormal, format.tiny - format.subnormal / 2]
    values += [format.max * (1 + half / 2), min(format.max, 1e300) * 1.5, 5e-324]
    if format.precision < 53:
        values += [one + half + 2.0**-52, one + half - 2.0**-53, one + 3 * half - 2.0**-52]
        values += [format.max + ulp(format.max, format) / 2, np.nextafter(format.max + ulp(format.max, format) / 2, 0)]
    near = [math.nextafter(v, d) for v in values for d in (-math.inf, math.inf)]
    return [float(s * v) for v in values + near for s in (1, -1)]


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_rounding_at_the_edges_is_that_of_rationals(format):
    """Ties, subnormals, overflow and double-rounding traps round as exact rationals do; the sign of zero is kept."""
    values = edges(format)
    got = round_to_format(values, format)
    expected = np.array([nearest_even(v, format) for v in values])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(values))
    assert np.isnan(round_to_format(math.nan, format))


@pytest.mark.parametrize("format", EVERY, ids=str)
@given(value=st.floats(allow_nan=False), scale=st.integers(-160, 140))
@example(value=1.00390625 + 2.0**-40, scale=0)
@settings(max_examples=150, deadline=None)
def test_rounding_is_that_of_rationals(format, value, scale):
    """The nearest number of the format, ties to even, for any float64."""
    for x in (value, math.ldexp(math.frexp(value)[0], scale) if math.isfinite(value) else value):
        assert float(round_to_format(x, format)) == nearest_even(x, format)


def test_bfloat16_is_not_rounded_twice():
    """From float64 straight to bfloat16: by way of float32, this value above a tie becomes the tie and goes down."""
    above_tie = 1 + 2.0**-8 + 2.0**-40
    assert float(store(above_tie, BFLOAT16)) == 1 + 2.0**-7
    assert float(np.float32(above_tie).astype(BFLOAT16.dtype)) == 1.0


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_all_that_a_format_holds_stays_as_it_is(format):
    """Storing is idempotent, and the transport dtype's own numbers come through unchanged."""
    bits = np.random.default_rng(0).integers(0, 2**16, 4000).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        values = bits.view(format.dtype if format.dtype.itemsize == 2 else np.float16).astype(np.float64)
    np.testing.assert_array_equal(store(values, format).astype(np.float64), values)


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_an_ulp_is_the_gap_to_the_next_number(format):
    """Within a binade the gap above; below the normal numbers, zero included, the smallest number."""
    assert ulp(1.0, format) == 2.0 ** (1 - format.precision) == 2 * format.unit
    assert ulp(-1.5, format) == ulp(1.0, format)
    assert ulp(0.0, format) == ulp(format.subnormal, format) == ulp(format.tiny, format) == format.subnormal
    assert float(round_to_format(format.max - ulp(format.max, format), format)) < format.max
    if format in (FLOAT64, FLOAT32, FLOAT16):
        info = np.finfo(format.dtype)
        assert (info.max, info.tiny, info.smallest_subnormal) == (format.max, format.tiny, format.subnormal)


def test_a_format_goes_by_three_names():
    """Full name, short name and NumPy dtype; anything else is a DtypeError that lists what there is."""
    for format in FORMATS.values():
        assert (
            as_format(format.name) is as_format(format.short) is as_format(format.dtype) is as_format(format) is format
        )
    with pytest.raises(DtypeError) as refused:
        as_format("int64")
    assert str(refused.value) == (
        "dtype 'int64' is not a floating-point format of refpeft: "
        "expected one of ['bfloat16', 'float16', 'float32', 'float64']."
    )
