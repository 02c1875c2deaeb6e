"""Attention over the keys that a query sees, heads of a group side by side in one product.

A few rows of the batch are taken at a time, and where a query sees no later keys a block of queries, with only the keys that one
of those sees, half of all: what is made of a block stays near in the caches. A block's P is kept. The sums of its rows come with
the product, as those of a column of ones, and likewise on the way back what is taken from each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from refpeft_cpu.arrays import longest, narrow, wide

BLOCK = 64
"""Queries at a time."""
LOGITS = 2**18
"""At a time, of as many rows of the batch as they are enough for."""
TAME = 64.0
"""Logits within it have an exponential, and a sum of them, in float32: no maximum is taken off then."""


def attention(q, k, v, mask=None, *, scale, causal=False, offset=0, residuals=True):
    """With E = exp(s Q Kᵀ - m) over what is seen, P = E / rowsum(E) and y = E V / rowsum(E)."""
    queries, keys, values = scale * wide(_flat(q)), wide(_flat(k)), _with_ones(wide(_flat(v)))
    mask = None if mask is None else mask.reshape(-1, *mask.shape[-2:])
    tame = longest(queries) * longest(keys) <= TAME
    y, kept = _tokens_first(queries, (*queries.shape[:-1], values.shape[-1] - 1)), []
    for n, seen, stop in _blocks(queries, keys, causal, offset):
        e = _grouped(queries[n, :, seen], keys) @ keys[n, :, :stop].swapaxes(-1, -2)
        _hide(e, queries, None if mask is None else mask[n, seen, :stop], causal, offset, seen)
        if not tame:
            largest = e.max(axis=-1, keepdims=True)
            e -= np.where(np.isneginf(largest), 0, largest)
        np.exp(e, out=e)
        product = e @ values[n, :, :stop]
        total = product[..., -1:]
        inverse = 1 / np.where(total == 0, 1, total)
        y[n, :, seen] = (product[..., :-1] * inverse).reshape(y[n, :, seen].shape)
        if residuals:
            e *= inverse
            kept.append((n, seen, stop, e))
    output = narrow(y, (*q.shape[:-1], v.shape[-1]), q.dtype)
    return (output,), (queries, k, values, y, kept, scale) if residuals else None


def attention_vjp(residuals, cotangents, wanted):
    """dV = Pᵀ dY, dS = P o (dY Vᵀ - rowsum(dY o y)), dQ = s dS K, dK = s dSᵀ Q."""
    queries, k, values, y, blocks, scale = residuals
    dy, keys = wide(_flat(cotangents[0])), wide(_flat(k))
    dq = _tokens_first(queries, queries.shape) if "q" in wanted else None
    dk = np.zeros_like(y, shape=keys.shape) if "k" in wanted else None
    dv = np.zeros_like(y, shape=(*keys.shape[:-1], y.shape[-1])) if "v" in wanted else None
    for n, seen, stop, p in blocks:
        g = _grouped(dy[n, :, seen], keys)
        if dv is not None:
            dv[n, :, :stop] += p.swapaxes(-1, -2) @ g
        if dq is None and dk is None:
            continue
        taken = np.einsum("...ij,...ij->...i", g, _grouped(y[n, :, seen], keys))
        ds = np.concatenate([g, -taken[..., None]], axis=-1) @ values[n, :, :stop].swapaxes(-1, -2)
        ds *= p
        if dq is not None:
            dq[n, :, seen] = (scale * (ds @ keys[n, :, :stop])).reshape(dq[n, :, seen].shape)
        if dk is not None:
            dk[n, :, :stop] += ds.swapaxes(-1, -2) @ _grouped(queries[n, :, seen], keys)
    found = {"q": dq, "k": dk, "v": dv}
    return tuple(narrow(found[name], (*k.shape[:-3], *found[name].shape[1:]), k.dtype) for name in wanted)


def _blocks(q, k, causal, offset) -> Iterator[tuple[slice, slice, int]]:
    """Rows of the batch, queries, and how many keys are seen by one of them or more."""
    (n, h, s, _), keys = q.shape, k.shape[-2]
    step = BLOCK if causal else max(s, 1)
    rows = max(1, LOGITS // max(1, h * step * keys))
    for row in range(0, n, rows):
        for first in range(0, s, step):
            last = min(first + step, s)
            yield slice(row, row + rows), slice(first, last), min(keys, last + offset) if causal else keys


def _hide(e, q, mask, causal, offset, seen) -> None:
    """Minus infinity where a query of the block does not see a key."""
    stop = e.shape[-1]
    by_query = e.reshape(len(e), q.shape[1], seen.stop - seen.start, stop)
    if mask is not None:
        np.copyto(by_query, -np.inf, where=~mask[:, None])
    if causal:
        first = min(seen.start + offset + 1, stop)
        later = np.arange(first, stop) > np.arange(seen.start, seen.stop)[:, None] + offset
        np.copyto(by_query[..., first:], -np.inf, where=later)


def _with_ones(v):
    return np.concatenate([v, np.ones_like(v, shape=(*v.shape[:-1], 1))], axis=-1)


def _flat(x):
    """(*n, h, s, d) with one axis for the batch."""
    return x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


def _tokens_first(like, shape):
    """Memory for (n, h, s, d) that lies as (n, s, h, d), as the projections have it."""
    n, h, s, d = shape
    return np.empty_like(like, order="C", shape=(n, s, h, d)).swapaxes(1, 2)


def _grouped(x, k):
    """(n, h, s, d) as (n, g, (h/g) s, d)."""
    n, h, s, d = x.shape
    g = k.shape[1]
    return x.reshape(n, g, h // g * s, d)
