"""QLoRA's layer, which decodes the frozen weight in groups of rows and never holds it whole."""

from __future__ import annotations

from refpeft_cpu.arrays import kept, narrow, rows, wide
from refpeft_cpu.nf4 import decoded

GROUP = 2**22
"""Weights decoded at a time: enough for every thread, and 16 MB."""


def linear(x, packed, absmax, a, b, bias=None, *, scaling, blocksize, dtype, residuals=True):
    """y = x Wᵀ + h Bᵀ + bias with h = s x Aᵀ, in float32 where the numbers have 16 bits."""
    o, flat = len(b), rows(x)
    h = flat @ wide(a).T
    h *= scaling
    y = h @ wide(b).T
    for first, last, weight in _groups(packed, absmax, o, x.shape[-1], blocksize, dtype):
        y[:, first:last] += flat @ weight.T
    if bias is not None:
        y += wide(bias)
    y = narrow(y, (*x.shape[:-1], o), x.dtype)
    return (y,), (kept(x, residuals, "a"), packed, absmax, a, b, h, scaling, blocksize, dtype) if residuals else None


def vjp(residuals, cotangents, wanted):
    """With dh = s dy B: dx = dy W + dh A, dA = dhᵀ x, dB = dyᵀ h."""
    x, packed, absmax, a, b, h, scaling, blocksize, dtype = residuals
    dy = rows(cotangents[0])
    dh = scaling * (dy @ wide(b)) if {"x", "a"} & set(wanted) else None

    def dx():
        total = dh @ wide(a)
        for first, last, weight in _groups(packed, absmax, len(b), x.shape[-1], blocksize, dtype):
            total += dy[:, first:last] @ weight
        return total

    gradients = {
        "x": lambda: (dx(), x.shape),
        "a": lambda: (dh.T @ rows(x), a.shape),
        "b": lambda: (dy.T @ h, b.shape),
        "bias": lambda: (dy.sum(axis=0), len(b)),
    }
    return tuple(narrow(*gradients[name](), x.dtype) for name in wanted)


def _groups(packed, absmax, o, i, blocksize, dtype):
    """Groups of W's rows as (first, last, rows): decoded from the start of the block in which they start."""
    step = max(1, GROUP // max(i, 1))
    for first in range(0, o, step):
        last = min(first + step, o)
        start, stop = first * i // blocksize, -(-last * i // blocksize)
        n = min(stop * blocksize, o * i) - start * blocksize
        values = decoded(packed[start * blocksize // 2 :], absmax[start:stop], n, blocksize, dtype)
        weights = values[first * i - start * blocksize :][: (last - first) * i].reshape(-1, i)
        yield first, last, wide(weights)
