"""LLM.int8's layer: integers are multiplied as float32 numbers, for which BLAS is fast; the weight is decoded in groups of rows
and never there whole.
"""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, rows, wide
from refpeft_cpu.llm_int8 import ONE_127TH, steps

GROUP = 2**22
"""Weights at a time, 16 MB."""


def linear(x, codes, absmax, bias=None, *, threshold, variant, dtype, residuals=True):
    """y = (s_x s_w / 127²) C_x C_wᵀ + x_O W_Oᵀ + bias."""
    flat = rows(x)
    large = np.abs(flat) >= threshold
    outliers = np.flatnonzero(large.any(axis=0))
    inside = flat.copy()
    inside[:, outliers] = 0
    counted = np.where(large, 0, flat) if variant == "bitsandbytes" else inside
    scales = np.max(np.abs(counted), axis=1, keepdims=True)
    inside *= steps(scales)
    np.rint(inside, out=inside)
    y = np.empty((len(flat), len(codes)), np.float32)
    for part in _groups(codes):
        np.matmul(inside, codes[part].astype(np.float32).T, out=y[:, part])
    for factor in (scales, ONE_127TH, absmax, ONE_127TH):  # one after the other: a product of two might be subnormal
        y *= factor
    if outliers.size:
        y += flat[:, outliers] @ _decoded(codes[:, outliers], absmax, x.dtype).T
    if bias is not None:
        y += wide(bias)
    return (narrow(y, (*x.shape[:-1], len(codes)), x.dtype),), (x, codes, absmax) if residuals else None


def vjp(residuals, cotangents, wanted):
    """dx = dy W."""
    x, codes, absmax = residuals
    dy = rows(cotangents[0])

    def dx():
        total = np.zeros((len(dy), codes.shape[1]), np.float32)
        for part in _groups(codes):
            total += dy[:, part] @ _decoded(codes[part], absmax[part], x.dtype)
        return total

    gradients = {
        "x": lambda: narrow(dx(), x.shape, x.dtype),
        "bias": lambda: narrow(dy.sum(axis=0), len(codes), x.dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def _groups(codes):
    """Slices of its rows."""
    step = max(1, GROUP // codes.shape[1])
    return (slice(first, min(first + step, len(codes))) for first in range(0, len(codes), step))


def _decoded(codes, absmax, dtype):
    """Rows of W, rounded to the dtype of computation."""
    weight = codes * absmax[:, None]
    weight *= ONE_127TH
    return wide(narrow(weight, codes.shape, dtype))
