"""LayerNorm, and RMSNorm, which is the same of numbers that are not centred: y = w o n + b, n = x / root."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, rows, wide


def layer_norm(x, weight=None, bias=None, *, eps, residuals=True):
    """Centred first; the root is of the variance + eps."""
    flat = rows(x)
    return _norm(flat - _means(flat), x, weight, bias, eps, residuals, centred=True)


def rms_norm(x, weight=None, *, eps, residuals=True):
    """The root is of the mean of x**2 + eps."""
    return _norm(rows(x), x, weight, None, eps, residuals, centred=False)


def _norm(flat, x, weight, bias, eps, residuals, centred):
    inverse = 1 / np.sqrt(_means(flat, flat) + eps)
    normal = flat * inverse
    y = normal if weight is None else normal * wide(weight)
    y = y if bias is None else y + wide(bias)
    return (narrow(y, x.shape, x.dtype),), (x.shape, x.dtype, weight, normal, inverse, centred) if residuals else None


def vjp(residuals, cotangents, wanted):
    """With g = w o dy: dx = (g - n mean(g o n)) / root, centred if x was; dw = the sum of dy o n, db = that of dy."""
    shape, dtype, weight, normal, inverse, centred = residuals
    dy = rows(cotangents[0])

    def dx():
        g = dy if weight is None else dy * wide(weight)
        shift = normal * _means(g, normal)
        if centred:
            shift += _means(g)
        np.subtract(g, shift, out=shift)
        shift *= inverse
        return shift

    gradients = {
        "x": lambda: narrow(dx(), shape, dtype),
        "weight": lambda: narrow(np.einsum("ij,ij->j", dy, normal), shape[-1:], dtype),
        "bias": lambda: narrow(dy.sum(axis=0), shape[-1:], dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def _means(a, b=None):
    """Of each row, or of its products with a row of another; a column."""
    total = a.sum(axis=-1, keepdims=True) if b is None else np.einsum("ij,ij->i", a, b)[:, None]
    return total / a.shape[-1]
