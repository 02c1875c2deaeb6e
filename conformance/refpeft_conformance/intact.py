"""What a backend must leave as it found it: the floating-point unit that the harness computes with, in the same thread.

A library that is compiled for fast mathematics may set it to flush subnormal numbers when it is loaded. Golden values would
then be computed with the backend's own mistake.
"""

from __future__ import annotations

import numpy as np

_TINY, _FACTORS = np.array([2.0**-1074, 2.0**-1022]), np.array([1.0, 0.5])
_ONES, _STEPS = np.array([1.0, -1.0, 1.0]), np.array([2.0**-53, -(2.0**-53), 3 * 2.0**-54])
_NEAREST = np.array([1.0, -1.0, 1.0 + 2.0**-52])


def disturbance() -> str:
    """What is wrong with this thread's arithmetic, in words; empty if it is the default of IEEE 754."""
    if not (_TINY * _FACTORS).all():
        return "subnormal numbers are taken as zero"
    if (_ONES + _STEPS != _NEAREST).any():
        return "results are not rounded to nearest"
    return ""
