"""Layer normalisation: centred first, the variance from what is left."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, rows, wide


def layer_norm(x, weight=None, bias=None, *, eps, residuals=True):
    """y = w o n + b, n = (x - mean) / sqrt(variance + eps)."""
    flat = rows(x)
    normal = flat - _means(flat)
    inverse = 1 / np.sqrt(_means(normal, normal) + eps)
    normal *= inverse
    y = normal.copy() if weight is None else normal * wide(weight)
    if bias is not None:
        y += wide(bias)
    return (narrow(y, x.shape, x.dtype),), (x, weight, normal, inverse) if residuals else None


def layer_norm_vjp(residuals, cotangents, wanted):
    """With g = w o dy: dx = (g - mean(g) - n mean(g o n)) / root, dw = the sum of dy o n, db = that of dy."""
    x, weight, normal, inverse = residuals
    dy = rows(cotangents[0])

    def dx():
        g = dy if weight is None else dy * wide(weight)
        shift = normal * _means(g, normal)
        shift += _means(g)
        np.subtract(g, shift, out=shift)
        shift *= inverse
        return shift

    gradients = {
        "x": lambda: narrow(dx(), x.shape, x.dtype),
        "weight": lambda: narrow(np.einsum("ij,ij->j", dy, normal), x.shape[-1:], x.dtype),
        "bias": lambda: narrow(dy.sum(axis=0), x.shape[-1:], x.dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def _means(a, b=None):
    """Of each row, or of its products with a row of another; a column."""
    total = a.sum(axis=-1, keepdims=True) if b is None else np.einsum("ij,ij->i", a, b)[:, None]
    return total / a.shape[-1]
