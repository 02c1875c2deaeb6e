"""Casts from and to float64 by kernels: no number is flushed, and none rounded twice."""

import numpy as np
import pytest

from refpeft.numerics.formats import FORMATS, as_format, store
from refpeft_cupy.cast import narrowed, widened


def numbers(format):
    """What lies half way between two of a format, and an ulp of float64 beside; subnormals and overflows too."""
    rng = np.random.default_rng(0)
    exponents = rng.integers(format.emin - format.precision - 1, format.emax + 2, 600)
    steps = rng.integers(-(2**format.precision), 2**format.precision, 600)
    halves = np.ldexp((2 * steps + 1).astype(np.float64), exponents - format.precision)
    ends = [0.0, -0.0, np.inf, -np.inf, np.nan]
    return np.concatenate([halves, np.nextafter(halves, np.inf), np.nextafter(halves, -np.inf), ends])


@pytest.mark.shim
@pytest.mark.parametrize("name", FORMATS)
def test_float64_is_rounded_once(name):
    """As the reference rounds, to the sign of a zero."""
    with np.errstate(over="ignore"):
        x = numbers(as_format(name))
        expected = store(x, as_format(name))
    got = narrowed(x, name)
    assert got.dtype == expected.dtype
    nan = np.isnan(expected.astype(np.float64))
    assert np.isnan(got.astype(np.float64)[nan]).all()
    assert got[~nan].tobytes() == expected[~nan].tobytes()


@pytest.mark.shim
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_widened_comes_back(name):
    """Every number of 16 bits, and as many of the others."""
    dtype = as_format(name).dtype
    bits = (
        np.random.default_rng(0).bytes(2**16 * dtype.itemsize) if dtype.itemsize > 2 else np.arange(2**16, dtype="<u2")
    )
    x = np.frombuffer(bits, dtype)
    with np.errstate(invalid="ignore"):
        x = x[np.isfinite(x.astype(np.float64))]
    wide = widened(x)
    assert wide.tobytes() == x.astype(np.float64).tobytes()
    assert narrowed(wide, name).tobytes() == x.tobytes()
