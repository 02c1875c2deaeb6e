"""Attention over the keys that a query sees, heads of a group side by side in one product."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, wide


def attention(q, k, v, mask=None, *, scale, causal=False, offset=0, residuals=True):
    """P = softmax(s Q Kᵀ) over what is seen, y = P V."""
    queries, keys, values = _grouped(wide(q), k), wide(k), wide(v)
    p = (scale * queries) @ keys.swapaxes(-1, -2)
    by_query = p.reshape(*p.shape[:-2], q.shape[-3] // max(k.shape[-3], 1), q.shape[-2], k.shape[-2])
    seen = _seen(q, k, mask, causal, offset)
    if seen is not None:
        np.copyto(by_query, -np.inf, where=~seen)
    largest = p.max(axis=-1, keepdims=True)
    p -= np.where(np.isneginf(largest), 0, largest)
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)
    p /= np.where(total == 0, 1, total)
    y = p @ values
    kept = (q, k, v, p, queries, scale) if residuals else None
    return (narrow(y, (*q.shape[:-1], v.shape[-1]), q.dtype),), kept


def attention_vjp(residuals, cotangents, wanted):
    """dV = Pᵀ dY, dP = dY Vᵀ, dS = P o (dP - rowsum(P o dP)), dQ = s dS K, dK = s dSᵀ Q."""
    q, k, v, p, queries, scale = residuals
    dy = _grouped(wide(cotangents[0]), k)
    ds = None
    if {"q", "k"} & set(wanted):
        ds = dy @ wide(v).swapaxes(-1, -2)
        ds -= np.einsum("...ij,...ij->...i", p, ds)[..., None]
        ds *= p
        ds *= scale
    gradients = {
        "q": lambda: narrow(ds @ wide(k), q.shape, q.dtype),
        "k": lambda: narrow(ds.swapaxes(-1, -2) @ queries, k.shape, q.dtype),
        "v": lambda: narrow(p.swapaxes(-1, -2) @ dy, v.shape, q.dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def _seen(q, k, mask, causal, offset):
    """Which keys each query sees, to be broadcast to (*n, g, h/g, s, t); None where all are."""
    seen = None if mask is None else mask[..., None, None, :, :]
    if not causal:
        return seen
    past = np.arange(k.shape[-2]) <= np.arange(q.shape[-2])[:, None] + offset
    return past if seen is None else seen & past


def _grouped(x, k):
    """(*n, h, s, d) as (*n, g, (h/g) s, d)."""
    g = k.shape[-3]
    return x.reshape(*x.shape[:-3], g, x.shape[-3] // g * x.shape[-2], x.shape[-1])
