"""The parts of a decoder: as few passes over memory as NumPy allows, results written where their operands lie."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import kept, narrow, rows, wide


def rope(x, cos, sin, *, layout, residuals=True):
    """Each pair turned by its angle."""
    y = _turned(wide(x), wide(cos), wide(sin), layout)
    return (narrow(y, x.shape, x.dtype),), (kept(x, residuals, "cos", "sin"), cos, sin, layout) if residuals else None


def rope_vjp(residuals, cotangents, wanted):
    """dy turned back; the tables' gradients, summed over the batch."""
    x, cos, sin, layout = residuals
    dy = wide(cotangents[0])
    (first, second), (dfirst, dsecond) = _pairs(wide(x), layout), _pairs(dy, layout)
    batch = tuple(range(x.ndim - 2))
    gradients = {
        "x": lambda: _turned(dy, wide(cos), -wide(sin), layout),
        "cos": lambda: (dfirst * first + dsecond * second).sum(axis=batch),
        "sin": lambda: (dsecond * first - dfirst * second).sum(axis=batch),
    }
    shapes = {"x": x.shape, "cos": cos.shape, "sin": sin.shape}
    return tuple(narrow(gradients[name](), shapes[name], x.dtype) for name in wanted)


def _turned(x, cos, sin, layout):
    """x o [cos, cos] + swapped(x) o [-sin, sin], all heads of a token in one go."""
    tokens = x.swapaxes(-2, -3) if x.ndim > 2 else x[:, None]
    straight, crossed = np.empty_like(x, order="C", shape=(2, *tokens.shape[-3:]))
    for table, first, second in ((straight, cos, cos), (crossed, -sin, sin)):
        left, right = _pairs(table, layout)
        left[...], right[...] = first[:, None], second[:, None]
    turned = np.empty_like(x, order="C", shape=tokens.shape)
    (first, second), (left, right) = _pairs(tokens, layout), _pairs(turned, layout)
    left[...], right[...] = second, first
    wide_tokens = (*tokens.shape[:-2], tokens.shape[-2] * tokens.shape[-1])
    y = turned.reshape(wide_tokens)
    y *= crossed.reshape(wide_tokens[-2:])
    y += tokens.reshape(wide_tokens) * straight.reshape(wide_tokens[-2:])
    return turned.swapaxes(-2, -3) if x.ndim > 2 else turned[:, 0]


def _pairs(x, layout):
    """Views of the first and the second of every pair."""
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if layout == "halves" else (x[..., 0::2], x[..., 1::2])


def embedding(ids, weight, *, residuals=True):
    """Rows of the table."""
    return (weight[ids],), (ids, weight) if residuals else None


def embedding_vjp(residuals, cotangents, wanted):
    """Rows added up by token: sorted, so that those of one token are neighbours."""
    ids, weight = residuals
    total = np.zeros(weight.shape, wide(weight).dtype)
    if ids.size and "weight" in wanted:
        order = np.argsort(ids.reshape(-1), kind="stable")
        token, first = np.unique(ids.reshape(-1)[order], return_index=True)
        total[token] = np.add.reduceat(rows(cotangents[0])[order], first, axis=0)
    return tuple(narrow(total, weight.shape, weight.dtype) for _ in wanted)


def cross_entropy(logits, target, mask=None, *, residuals=True):
    """The mean of log-sum-exp less the target's logit."""
    flat, target = rows(logits), target.reshape(-1)
    counts = np.ones(len(flat), bool) if mask is None else mask.reshape(-1)
    number = max(int(np.count_nonzero(counts)), 1)
    largest = flat.max(axis=-1, keepdims=True)
    p = flat - largest
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)
    losses = (largest + np.log(total))[:, 0] - flat[np.arange(len(flat)), target]
    loss = losses.sum(where=counts) / number
    kept = (logits, p, total, target, counts, number) if residuals else None
    return (narrow(loss, (), logits.dtype),), kept


def cross_entropy_vjp(residuals, cotangents, wanted):
    """dl = dloss / N (p - onehot), written over the exponentials that the forward left."""
    logits, p, total, target, counts, number = residuals
    p /= total
    p[np.arange(len(p)), target] -= 1
    p *= np.where(counts, wide(cotangents[0]) / number, 0)[:, None].astype(p.dtype)
    return tuple(narrow(p, logits.shape, logits.dtype) for _ in wanted)
