"""A bottleneck adapter, for each of its activation functions."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, rows, wide
from refpeft_cpu.gelu import gelu, gelu_vjp
from refpeft_cpu.swiglu import sigmoid


def bottleneck(
    x,
    down,
    up,
    residual=None,
    down_bias=None,
    up_bias=None,
    gain=None,
    *,
    activation="relu",
    scaling=1.0,
    per="layer",
    residuals=True,
):
    """y = residual + s g o (f(x Dᵀ + d) Uᵀ + u)."""
    inner = rows(x) @ wide(down).T
    if down_bias is not None:
        inner += wide(down_bias)
    h, slope = ACTIVATIONS[activation](inner)
    v = h @ wide(up).T
    if up_bias is not None:
        v += wide(up_bias)
    y = scaling * v if gain is None else scaling * (wide(gain) * v)
    if residual is not None:
        y += rows(residual)
    kept = (x, down, up, gain, h, slope, v, scaling, per) if residuals else None
    return (narrow(y, (*x.shape[:-1], len(up)), x.dtype),), kept


def vjp(residuals, cotangents, wanted):
    """With dv = s g o dy, dh = dv U and da = f'(a) o dh: dx = da D, dD = daᵀ x, dU = dvᵀ h, dg the sum of s dy o v."""
    x, down, up, gain, h, slope, v, scaling, per = residuals
    dy = rows(cotangents[0])
    du = scaling * dy
    dv = du if gain is None else wide(gain) * du
    da = slope(dv @ wide(up)) if {"x", "down", "down_bias"} & set(wanted) else None
    gradients = {
        "x": lambda: (da @ wide(down), x.shape),
        "down": lambda: (da.T @ rows(x), down.shape),
        "up": lambda: (dv.T @ h, up.shape),
        "residual": lambda: (dy, cotangents[0].shape),
        "down_bias": lambda: (da.sum(axis=0), len(down)),
        "up_bias": lambda: (dv.sum(axis=0), len(up)),
        "gain": lambda: (np.einsum("ij,ij->j" if per == "channel" else "ij,ij->", du, v), gain.shape),
    }
    return tuple(narrow(*gradients[name](), x.dtype) for name in wanted)


def _relu(a):
    return np.maximum(a, 0), lambda dh: np.where(a > 0, dh, 0)


def _tanh(a):
    h = np.tanh(a)
    return h, lambda dh: dh * (1 - h * h)


def _silu(a):
    share = np.empty_like(a)
    sigmoid(a, out=share)
    return a * share, lambda dh: dh * (share * (1 + a * (1 - share)))


def _gelu(approximate):
    def function(a):
        (h,), kept = gelu(a, approximate=approximate)
        return h, lambda dh: gelu_vjp(kept, (dh,), ("x",))[0]

    return function


ACTIVATIONS = {"relu": _relu, "gelu": _gelu("none"), "gelu_tanh": _gelu("tanh"), "silu": _silu, "tanh": _tanh}
"""Each gives f(a), and what takes dh to da."""
