"""Bounds in float64, rounded upwards: the analysis never loses more than it adds."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.doubledouble import DoubleDouble


def up(bound, operations: int = 8) -> np.ndarray:
    """``bound`` enlarged by more than ``operations`` float64 roundings can have taken from it."""
    return np.asarray(bound) * (1 + (operations + 8) * 2.0**-52)


def magnitude(value) -> np.ndarray:
    """|value| as float64, rounded up."""
    return up(np.abs(value.hi) + np.abs(value.lo), 2) if isinstance(value, DoubleDouble) else np.abs(value)


def leading(value) -> np.ndarray:
    """The value as float64, to nearest."""
    return value.hi if isinstance(value, DoubleDouble) else value
