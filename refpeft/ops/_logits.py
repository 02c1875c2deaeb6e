"""Problems of attention whose weights can be judged: logits of moderate size, and such that give them without rounding."""

from __future__ import annotations

import numpy as np

LARGEST = 16.0
"""Budgets say little of larger logits: an error e of a logit is a factor exp(e) of a weight."""


def tamed(q, k, scale: float):
    """q over the power of two that brings s |q| |k| below `LARGEST`.

    Where q and k are one-hot powers of two, they stay: their logits are exact, however large.

    Parameters
    ----------
    q : (*n, h, s, d)
    k : (*n, g, t, d)
    scale : float
    """
    return q if one_hot(q) and one_hot(k) else q * lowering(np.abs(q), np.abs(k), scale)


def lowering(q, k, scale: float) -> float:
    """The power of two, 1 at most, that brings s q k below `LARGEST`, where neither q nor k is negative."""
    largest = scale * float(np.max(_logits(q, k), initial=0.0))
    return 1.0 if largest <= LARGEST else 2.0 ** -np.ceil(np.log2(largest / LARGEST))


def keys(random: np.random.Generator, shape) -> np.ndarray:
    """Keys (..., t, d) with 64 in one element each, another for each key as far as there are any, and zeros."""
    order = np.argsort(random.random(shape[:-1]), axis=-1)
    return hot(64.0, order, shape[-1])


def queries(random: np.random.Generator, shape, k, seen, most: int) -> np.ndarray:
    """Queries (*n, h, s, d) with 128 in one element each, so that weights are 2**-j on 2**j keys and vanish elsewhere.

    Logits of 8192 s and 0 are so far apart that exp of their distance is zero in every format. Where each query chooses a
    single key, the log-sum-exp is the maximum itself, and gradients are exact too. Where no element serves a query, it
    gets any.

    Parameters
    ----------
    random : numpy.random.Generator
    shape : tuple of int
    k : (*n, g, t, d)
    seen : bool array or True
        To be broadcast to (*n, g, h/g, s, t).
    most : int
        Keys that a query may choose at most.
    """
    seen = np.squeeze(seen, axis=-3) if np.ndim(seen) > 2 else seen
    best, chosen = np.full(shape[:-1], -1.0), np.zeros(shape[:-1], int)
    for element in range(shape[-1] + 1):
        logits = _logits(hot(128.0, np.full(shape[:-1], element), shape[-1]), k)
        top = np.max(np.where(seen, logits, -1.0), axis=-1, keepdims=True)
        count = np.count_nonzero(seen & (logits == top), axis=-1)
        score = random.random(count.shape) * ((count & (count - 1) == 0) & (count <= most))
        best, chosen = np.maximum(best, score), np.where(score > best, element, chosen)
    return hot(128.0, chosen, shape[-1])


def selection(random: np.random.Generator, q, k, seen, **values) -> dict:
    """Queries of keys ``k``, half of the time of a single key each; then, half of the time, with values of all their bits.

    Such a value comes out unrounded: all lie between 1 and 2, so that no sum with zero times another needs more bits.
    """
    single, full = random.random(2) < 0.5
    chosen = queries(random, q.shape, k, seen, 1 if single else k.shape[-2])
    return {"q": chosen} | {n: random.uniform(1, 2, v.shape) for n, v in values.items() if single and full}


def hot(value: float, element, size: int) -> np.ndarray:
    """Rows of ``size`` with ``value`` in one element, and of zeros where that element is none of theirs."""
    return value * (np.arange(size) == np.asarray(element)[..., None])


def _logits(q, k):
    """Q Kᵀ, (*n, h, s, t)."""
    return q @ np.swapaxes(np.repeat(k, q.shape[-3] // k.shape[-3], axis=-3), -1, -2)


def one_hot(x) -> bool:
    """Whether no row has more than one element, and each is a power of two."""
    powers = (x == 0) | (np.frexp(np.abs(x))[0] == 0.5)
    return bool(np.all(powers) and np.all(np.count_nonzero(x, axis=-1) <= 1))
