"""GELU, exact or by tanh: few arrays, each written over as soon as it is not needed any more."""

from __future__ import annotations

import math

import numpy as np

from refpeft_cpu.arrays import narrow, wide

_SLOPE, _CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x, *, approximate, residuals=True):
    """y = x share, share = Phi(x) or (1 + t) / 2."""
    z = wide(x)
    share = _tanh(z) if approximate == "tanh" else _erf(z * math.sqrt(0.5))
    share += 1
    share *= 0.5
    return (narrow(z * share, x.shape, x.dtype),), (x, share, approximate) if residuals else None


def gelu_vjp(residuals, cotangents, wanted):
    """dx = dy (share + x share'): share' = phi(x), or with t = 2 share - 1 half of (1 - t**2) u'."""
    x, share, approximate = residuals
    z = wide(x)
    slope = z * z
    if approximate == "tanh":
        slope *= 3 * _CUBE * _SLOPE
        slope += _SLOPE
        twice = 2 * share
        twice *= 1 - share
        slope *= twice
    else:
        slope *= -0.5
        np.exp(slope, out=slope)
        slope /= math.sqrt(2 * math.pi)
    slope *= z
    slope += share
    slope *= wide(cotangents[0])
    return tuple(narrow(slope, x.shape, x.dtype) for _ in wanted)


def _erf(z):
    from scipy.special import erf  # a fifth of a second, which the approximation should not pay

    return erf(z, out=z)


def _tanh(z):
    """tanh(sqrt(2/pi) (z + 0.044715 z**3))."""
    u = z * z
    u *= _CUBE
    u += 1
    u *= z
    u *= _SLOPE
    return np.tanh(u, out=u)
