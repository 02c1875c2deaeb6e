"""DoRA's layer: one wide product of x, scaled by rows, and the norms of W + s B A as they are."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import dropped, narrow, rows, wide


def linear(x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached", residuals=True):
    """y = g (x Wᵀ + h Bᵀ) + bias, h = s x Aᵀ, g = m / ||W + s B A||; with dropout, y = x Wᵀ + (g - 1) (z Wᵀ) + g u + bias."""
    inverse = _reciprocal(_directed(weight, a, b, scaling))
    g = wide(magnitude) * inverse
    h = rows(dropped(x, mask, keep)) @ wide(a).T
    h *= scaling
    moved = h @ wide(b).T
    if mask is None:
        moved += rows(x) @ wide(weight).T
        y = g * moved
    else:
        base = rows(dropped(x, mask, keep)) @ wide(weight).T
        y = rows(x) @ wide(weight).T
        y += (g - 1) * base
        y += g * moved
        moved += base
    if bias is not None:
        y += wide(bias)
    kept = (x, weight, a, b, mask, h, moved, g, inverse, scaling, keep, norm) if residuals else None
    return (narrow(y, (*x.shape[:-1], len(weight)), x.dtype),), kept


def vjp(residuals, cotangents, wanted):
    """With dq = (g - 1) dy, du = g dy and dh = s du B: dx = dy W + drop(dq W + dh A), dW = dyᵀ x + dqᵀ z, dA = dhᵀ z,
    dB = duᵀ h, dg the sum of dy (z Wᵀ + h Bᵀ), dm = dg / ||V||. The full norm adds dV = -dg m V / ||V||**3.
    """
    x, weight, a, b, mask, h, moved, g, inverse, scaling, keep, norm = residuals
    dy, z = rows(cotangents[0]), rows(dropped(x, mask, keep))
    scaled = g * dy
    dh = scaling * (scaled @ wide(b)) if {"x", "a"} & set(wanted) else None
    full = norm == "full" and {"weight", "a", "b"} & set(wanted)
    dg = np.einsum("ij,ij->j", dy, moved) if full or "magnitude" in wanted else None
    dv = (-(dg * (g * inverse)) * inverse)[:, None] * _directed(weight, a, b, scaling) if full else None

    def dx():
        if mask is None:
            return scaled @ wide(weight) + dh @ wide(a)
        adapted = (scaled - dy) @ wide(weight) + dh @ wide(a)
        return dy @ wide(weight) + rows(dropped(adapted.reshape(x.shape), mask, keep))

    def dweight():
        plain = scaled.T @ z if mask is None else dy.T @ rows(x) + (scaled - dy).T @ z
        return plain if dv is None else plain + dv

    def da():
        return dh.T @ z if dv is None else dh.T @ z + wide(b).T @ (scaling * dv)

    def db():
        return scaled.T @ h if dv is None else scaled.T @ h + (scaling * dv) @ wide(a).T

    gradients = {
        "x": lambda: (dx(), x.shape),
        "weight": lambda: (dweight(), weight.shape),
        "a": lambda: (da(), a.shape),
        "b": lambda: (db(), b.shape),
        "magnitude": lambda: (dg * inverse, len(weight)),
        "bias": lambda: (dy.sum(axis=0), len(weight)),
    }
    return tuple(narrow(*gradients[name](), x.dtype) for name in wanted)


def _directed(weight, a, b, scaling):
    """V = W + s B A."""
    v = (scaling * wide(b)) @ wide(a)
    v += wide(weight)
    return v


def _reciprocal(v):
    """1 / ||V|| of each row, zero for a zero row."""
    length = np.sqrt(np.einsum("ij,ij->i", v, v))
    return np.divide(1, length, out=np.zeros_like(length), where=length > 0)
