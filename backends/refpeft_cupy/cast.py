"""Casts from and to float64 that keep subnormal numbers, which CuPy's own flush to zero."""

from __future__ import annotations

from refpeft.numerics.formats import as_format
from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own._arrays import blocks, contiguous, empty

THREADS = 256


def widened(x):
    """An array of any format in float64, exactly."""
    return x if x.dtype.name == "float64" else _cast("to_float64", x, x.dtype.name, "float64")


def narrowed(x, format):
    """An array of float64 in a format, rounded once, to nearest even."""
    name = as_format(format).name
    return x if name == "float64" else _cast("from_float64", x, name, name)


def _cast(name, x, storage, dtype):
    x, y = contiguous(x), empty(x, x.shape, dtype)
    launch(kernel(name, storage), (blocks(x.size, THREADS),), (THREADS,), (x, y, x.size))
    return y
