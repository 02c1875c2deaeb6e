"""The hyperbolic tangent."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, wide


def tanh(x, *, residuals=True):
    """y = tanh x, of which alone the gradient is made."""
    y = np.tanh(wide(x))
    return (narrow(y, x.shape, x.dtype),), (x, y) if residuals else None


def vjp(residuals, cotangents, wanted):
    """dx = dy (1 - y²)."""
    x, y = residuals
    return tuple(narrow(wide(cotangents[0]) * (1 - y * y), x.shape, x.dtype) for _ in wanted)
