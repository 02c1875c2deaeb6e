"""Attention over the keys that a query sees, heads of a group side by side in one product.

Where a query sees no later keys, queries are taken a block at a time, and only the keys that one of them sees: half of all. A
block's P is kept. The sums of its rows come with the product, as those of a column of ones, and likewise on the way back what is
taken from each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from refpeft_cpu.arrays import narrow, wide

BLOCK = 64
"""Queries at a time."""
TAME = 64.0
"""Logits within it have an exponential, and a sum of them, in float32: no maximum is taken off then."""


def attention(q, k, v, mask=None, *, scale, causal=False, offset=0, residuals=True):
    """With E = exp(s Q Kᵀ - m) over what is seen, P = E / rowsum(E) and y = E V / rowsum(E)."""
    queries, keys, values = scale * wide(q), wide(k), _with_ones(wide(v))
    tame = _largest(queries) * _largest(keys) <= TAME
    y, blocks = _tokens_first(queries, (*q.shape[:-1], v.shape[-1])), []
    for rows, stop in _blocks(q, k, causal, offset):
        e = _grouped(queries[..., rows, :], k) @ keys[..., :stop, :].swapaxes(-1, -2)
        _hide(e, q, k, mask, causal, offset, rows, stop)
        if not tame:
            largest = e.max(axis=-1, keepdims=True)
            e -= np.where(np.isneginf(largest), 0, largest)
        np.exp(e, out=e)
        product = e @ values[..., :stop, :]
        total = product[..., -1:]
        inverse = 1 / np.where(total == 0, 1, total)
        y[..., rows, :] = (product[..., :-1] * inverse).reshape(y[..., rows, :].shape)
        if residuals:
            e *= inverse
            blocks.append((rows, stop, e))
    kept = (queries, k, values, y, blocks, scale) if residuals else None
    return (narrow(y, y.shape, q.dtype),), kept


def attention_vjp(residuals, cotangents, wanted):
    """dV = Pᵀ dY, dS = P o (dY Vᵀ - rowsum(dY o y)), dQ = s dS K, dK = s dSᵀ Q."""
    queries, k, values, y, blocks, scale = residuals
    dy, keys = wide(cotangents[0]), wide(k)
    dq = _tokens_first(queries, queries.shape) if "q" in wanted else None
    dk = np.zeros_like(y, shape=k.shape) if "k" in wanted else None
    dv = np.zeros_like(y, shape=(*k.shape[:-1], y.shape[-1])) if "v" in wanted else None
    for rows, stop, p in blocks:
        g = _grouped(dy[..., rows, :], k)
        if dv is not None:
            dv[..., :stop, :] += p.swapaxes(-1, -2) @ g
        if dq is None and dk is None:
            continue
        taken = np.einsum("...ij,...ij->...i", g, _grouped(y[..., rows, :], k))
        ds = np.concatenate([g, -taken[..., None]], axis=-1) @ values[..., :stop, :].swapaxes(-1, -2)
        ds *= p
        if dq is not None:
            dq[..., rows, :] = (scale * (ds @ keys[..., :stop, :])).reshape(dq[..., rows, :].shape)
        if dk is not None:
            dk[..., :stop, :] += ds.swapaxes(-1, -2) @ _grouped(queries[..., rows, :], k)
    found = {"q": dq, "k": dk, "v": dv}
    return tuple(narrow(found[name], found[name].shape, k.dtype) for name in wanted)


def _blocks(q, k, causal, offset) -> Iterator[tuple[slice, int]]:
    """Rows of queries, and how many keys are seen by one of them or more."""
    count, keys = q.shape[-2], k.shape[-2]
    step = BLOCK if causal else max(count, 1)
    for first in range(0, count, step):
        last = min(first + step, count)
        yield slice(first, last), min(keys, last + offset) if causal else keys


def _hide(e, q, k, mask, causal, offset, rows, stop) -> None:
    """Minus infinity where a query of the block does not see a key."""
    by_query = e.reshape(*e.shape[:-2], q.shape[-3] // max(k.shape[-3], 1), rows.stop - rows.start, stop)
    if mask is not None:
        np.copyto(by_query, -np.inf, where=~mask[..., None, None, rows, :stop])
    if causal:
        first = min(rows.start + offset + 1, stop)
        later = np.arange(first, stop) > np.arange(rows.start, rows.stop)[:, None] + offset
        np.copyto(by_query[..., first:], -np.inf, where=later)


def _largest(x) -> float:
    """The length of the longest vector; NaN where one has a NaN."""
    return math.sqrt(np.einsum("...i,...i->...", x, x).max(initial=0))


def _with_ones(v):
    return np.concatenate([v, np.ones_like(v, shape=(*v.shape[:-1], 1))], axis=-1)


def _tokens_first(like, shape):
    """Memory for (*n, h, s, d) that lies as (*n, s, h, d), as the projections have it."""
    *n, h, s, d = shape
    return np.empty_like(like, shape=(*n, s, h, d)).swapaxes(-2, -3)


def _grouped(x, k):
    """(*n, h, s, d) as (*n, g, (h/g) s, d)."""
    g = k.shape[-3]
    return x.reshape(*x.shape[:-3], g, x.shape[-3] // g * x.shape[-2], x.shape[-1])
