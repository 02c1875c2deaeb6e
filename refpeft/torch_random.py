"""What ``torch.randperm`` of a seed begins with, without torch.

A library that keeps the seed of its places, and not the places, is read by drawing as it drew. torch's generator on a CPU is the
Mersenne Twister MT19937, seeded with the low 32 bits of the seed, as NumPy's ``RandomState`` is. Of n numbers, below `MANY`, the
permutation p is a shuffle from the front, with r of 32 bits,

    p = 0, 1, ..., n - 1        for i = 0, 1, ...    swap p[i] and p[i + r_i mod (n - i)]

of which the first k numbers are final after k steps. From `MANY` on it is a shuffle from inside out, with r of 64 bits,

    for i = 0, 1, ..., n - 1    p[i] = p[z], p[z] = i        z = r_i mod (i + 1)

which changes the first k numbers only where z < k.
"""

from __future__ import annotations

import numpy as np

MANY = (2**32 - 1) // 20
_AT_ONCE = 2**20


def randperm(n: int, k: int, seed: int) -> np.ndarray:
    """``torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k]``."""
    random = np.random.RandomState(seed % 2**32)
    return (from_front if n < MANY else inside_out)(random, n, min(k, n))


def from_front(random: np.random.RandomState, n: int, k: int) -> np.ndarray:
    """The first k after k swaps; of what lies behind them, only what was moved is kept."""
    first = np.zeros(k, np.int64)
    moved: dict[int, int] = {}
    for i, r in enumerate(_words(random, k).tolist()):
        z = i + r % (n - i)
        first[i] = moved.get(z, z)
        moved[z] = moved.get(i, i)
    return first


def inside_out(random: np.random.RandomState, n: int, k: int) -> np.ndarray:
    """The first k after all n steps, most of which pass them by."""
    first = np.zeros(k, np.int64)
    for start in range(0, n, _AT_ONCE):
        i = np.arange(start, min(start + _AT_ONCE, n), dtype=np.uint64)
        high, low = _words(random, 2 * i.size).astype(np.uint64).reshape(-1, 2).T
        z = (high << np.uint64(32) | low) % (i + np.uint64(1))
        for step, place in np.stack([i, z])[:, z < k].T.tolist():
            if step < k:
                first[step] = first[place]
            first[place] = step
    return first


def _words(random: np.random.RandomState, count: int) -> np.ndarray:
    """The generator's next numbers of 32 bits, as they are."""
    return random.randint(0, 2**32, count, np.uint32)
