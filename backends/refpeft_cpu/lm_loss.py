"""Head and loss of a language model, a part of the vocabulary at a time: of the logits, tokens times vocabulary, only a chunk is
ever there.

What is kept of each token is its log-sum-exp, and the mean of W's rows under softmax, summed up on the way: dx is that mean
without the target's row, and costs no third product. For dW the logits are computed again. Where logits may be large, a running
maximum is taken off, and what was summed before it grew fades; where none can be, it stays zero.
"""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import longest, narrow, rows, wide

CHUNK = 2**18
"""Logits at a time: 1 MB, which stays near in the caches."""
WORDS = 256
"""At a time at least, since all tokens are gone through for each part."""
TAME = 32.0
"""Logits within it have an exponential in float32, and so have sums of them over all words, times W."""


def lm_loss(x, weight, target, mask=None, *, residuals=True):
    """The mean of log-sum-exp less the target's logit."""
    flat, head, target = rows(x), wide(weight), target.reshape(-1)
    counts = np.ones(len(flat), bool) if mask is None else mask.reshape(-1)
    number = max(int(np.count_nonzero(counts)), 1)
    tame = longest(flat) * longest(head) <= TAME
    largest = np.full_like(flat, 0 if tame else -np.inf, shape=(len(flat), 1))
    total, mean = np.zeros_like(largest), np.zeros_like(flat) if residuals else None
    parts = _parts(target, len(head))
    room, ones = np.empty_like(flat, shape=(len(flat), parts[0].stop)), np.ones_like(head, shape=(parts[0].stop, 1))
    for part in parts:
        words = head[part]
        logits = np.matmul(flat, words.T, out=room[:, : len(words)])
        if not tame:
            before, largest = largest, np.maximum(largest, logits.max(axis=-1, keepdims=True))
            logits -= largest
            faded = np.exp(before - largest)
            total *= faded
            if mean is not None:
                mean *= faded
        np.exp(logits, out=logits)
        total += logits @ ones[: len(words)]
        if mean is not None:
            mean += logits @ words
    lse = largest + np.log(total)
    loss = (lse[:, 0] - np.einsum("ij,ij->i", flat, head[target])).sum(where=counts) / number
    kept = (x, weight, target, counts, number, lse, mean / total) if residuals else None
    return (narrow(loss, (), x.dtype),), kept


def vjp(residuals, cotangents, wanted):
    """With p = softmax(x Wᵀ): dx = dloss / N (p W - W[target]), dW = dloss / N (p - onehot)ᵀ x."""
    x, weight, target, counts, number, lse, mean = residuals
    flat, head = rows(x), wide(weight)
    each = np.where(counts, wide(cotangents[0]) / number, 0).astype(flat.dtype)[:, None]

    def dweight():
        found = np.empty_like(head)
        for part in _parts(target, len(head)):
            dl = np.exp(flat @ head[part].T - lse)
            there = np.flatnonzero((target >= part.start) & (target < part.stop))
            dl[there, target[there] - part.start] -= 1
            np.matmul((dl * each).T, flat, out=found[part])
        return found

    gradients = {
        "x": lambda: narrow(each * (mean - head[target]), x.shape, x.dtype),
        "weight": lambda: narrow(dweight(), weight.shape, x.dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def _parts(target, vocabulary: int) -> list[slice]:
    """Parts of the vocabulary, the first of which is the largest."""
    step = max(WORDS, CHUNK // max(len(target), 1))
    return [slice(start, min(start + step, vocabulary)) for start in range(0, vocabulary, step)]
