"""Head and loss of a language model, a part of the vocabulary at a time: of the logits, tokens times vocabulary, only a chunk is
ever there.

What is kept of each token is its log-sum-exp, found with a running maximum, and the mean of W's rows under softmax, summed up on
the way: dx is that mean without the target's row, and costs no third product. For dW the logits are computed again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refpeft_cpu.arrays import narrow, rows, wide

CHUNK = 2**21
"""Logits at a time: 8 MB."""


def lm_loss(x, weight, target, mask=None, *, residuals=True):
    """The mean of log-sum-exp less the target's logit."""
    flat, head, target = rows(x), wide(weight), target.reshape(-1)
    counts = np.ones(len(flat), bool) if mask is None else mask.reshape(-1)
    number = max(int(np.count_nonzero(counts)), 1)
    largest = np.full_like(flat, -np.inf, shape=len(flat))
    total, chosen = np.zeros_like(largest), np.zeros_like(largest)
    mean = np.zeros_like(flat) if residuals else None
    for part, there in _parts(target, len(head)):
        logits = flat @ head[part].T
        chosen[there] = logits[there, target[there] - part.start]
        before, largest = largest, np.maximum(largest, logits.max(axis=-1))
        logits -= largest[:, None]
        np.exp(logits, out=logits)
        faded = np.exp(before - largest)
        total = total * faded + logits.sum(axis=-1)
        if mean is not None:
            mean *= faded[:, None]
            mean += logits @ head[part]
    lse = largest + np.log(total)
    loss = (lse - chosen).sum(where=counts) / number
    kept = (x, weight, target, counts, number, lse, mean / total[:, None]) if residuals else None
    return (narrow(loss, (), x.dtype),), kept


def vjp(residuals, cotangents, wanted):
    """With p = softmax(x Wᵀ): dx = dloss / N (p W - W[target]), dW = dloss / N (p - onehot)ᵀ x."""
    x, weight, target, counts, number, lse, mean = residuals
    flat, head = rows(x), wide(weight)
    each = np.where(counts, wide(cotangents[0]) / number, 0).astype(flat.dtype)[:, None]

    def dweight():
        found = np.empty_like(head)
        for part, there in _parts(target, len(head)):
            dl = np.exp(flat @ head[part].T - lse[:, None])
            dl[there, target[there] - part.start] -= 1
            np.matmul((dl * each).T, flat, out=found[part])
        return found

    gradients = {
        "x": lambda: narrow(each * (mean - head[target]), x.shape, x.dtype),
        "weight": lambda: narrow(dweight(), weight.shape, x.dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def _parts(target, vocabulary: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of the vocabulary, and which tokens have their target in each."""
    step = max(1, CHUNK // max(len(target), 1))
    for start in range(0, vocabulary, step):
        yield slice(start, start + step), np.flatnonzero((target >= start) & (target < start + step))
