"""Blocks of consecutive elements that share a scale, and codes that count midpoints: what the quantisers are made of.

A block has absmax = max |w|, an element v = w / absmax, and the code of v in an ascending codebook is the number of midpoints
between neighbouring codewords that lie below v. So it is the nearest codeword's, and a v on a midpoint gets the lower code.

These are IEEE float32 steps (``f32`` rounds to float32), because the real-number definition "the nearest codeword" leaves open
what happens within a rounding of a midpoint. It is the law that the steps obey up to that.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.primitives import round_to, take

DTYPES = ("float32", "bfloat16", "float16")
Dtype = Literal["float32", "bfloat16", "float16"]
Blocksize = Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]
COUNTS = (1, 2, 31, 32, 33, 64, 65, 127, 200, 257, 777, 4099)


def f32(x):
    """Round to float32."""
    return round_to(x, "float32")


FLOOR = float(f32(1e-38))
"""Least divisor of a block, so that its reciprocal is a float32 number."""


def between(codebook):
    """The midpoints of neighbouring codewords, as float32 numbers."""
    return f32((codebook[:-1] + codebook[1:]) / 2)


def in_blocks(x, size):
    """``x`` in rows of ``size``, the last one filled up with zeros."""
    count = -(-x.shape[0] // size)
    return np.pad(x, (0, count * size - x.shape[0])).reshape(count, size)


def largest(blocks):
    """absmax of every block, as a column."""
    return np.max(np.absolute(blocks), axis=1, keepdims=True)


def clip(v):
    """``v`` within [-1, 1]."""
    return np.maximum(np.minimum(v, 1.0), -1.0)


def count_below(v, midpoints):
    """How many of ``midpoints``, which ascend, lie strictly below each element."""
    return count_held(v > m for m in midpoints)


def count_held(conditions):
    """How many of the conditions hold, each of which holds only where those before it do."""
    count: Any = 0
    for number, holds in enumerate(conditions, 1):
        count = np.where(holds, number, count)
    return count


def scaled(weight, blocksize):
    """Blocks over their s = max(absmax, f32(1e-38)): the reciprocal's multiples in full ones, quotients in the partial one.

    Returns
    -------
    v : (blocks, blocksize)
        Within [-1, 1].
    absmax, s : (blocks, 1)
    """
    full, blocks = weight.shape[0] // blocksize, in_blocks(weight, blocksize)
    absmax = largest(blocks)
    s = np.maximum(absmax, FLOOR)
    v = np.concatenate([f32(blocks[:full] * f32(1.0 / s[:full])), f32(blocks[full:] / s[full:])])
    return clip(v), absmax, s


def decode(codebook, codes, absmax, blocksize):
    """f32(codebook[code] absmax), for flat codes."""
    n = codes.shape[0]
    return f32(take(codebook, in_blocks(codes, blocksize)) * absmax.reshape(-1, 1)).reshape(-1)[:n]


def pack(codes, n):
    """Two of the first n codes a byte, the first one in the high half; an odd one out is joined by what follows it."""
    codes = codes.reshape(-1)[: n + n % 2]
    return 16 * codes[0::2] + codes[1::2]


def unpack(packed, n):
    """The first n codes."""
    return np.stack([np.floor_divide(packed, 16), np.remainder(packed, 16)], axis=-1).reshape(-1)[:n]


def interval(x, s, model):
    """Ends of the interval that contains every computed x / s, by reciprocal or by division.

    fl(x fl(1 / s)) = x (1/s (1 + d1) + h1) (1 + d2) + h2 is within (2u + u²) |x / s| + |x| h + h of x / s, where h is
    the accumulation format's underflow; the last u² below pays for float64's own roundings. By a power of two all is
    exact but for h, which is far from any midpoint. Where subnormals may be flushed to zero, so may x; and s too, which
    leaves nothing of x / s but its being zero where x is.
    """
    u, h = model.precision.accumulation.unit, model.sum_floor
    v, size = x / s, np.absolute(x)
    radius = 2 * u * (1 + u) * np.absolute(v) + size * h + h
    radius = np.where((x == 0) | (np.frexp(s)[0] == 0.5), 0.0, radius)
    if model.precision.flush_to_zero:
        tiny = model.precision.storage.tiny
        radius = np.where((x != 0) & (size < tiny), np.where(s < tiny, 2.0, np.absolute(v)), radius)
    return v - radius, v + radius


def accepts_pairs(got, golden, model, weight, blocksize, rank, rank_of_code=None):
    """Which packed codes an implementation may give: both halves rank between the ends of v's interval.

    Parameters
    ----------
    got, golden : uint8 arrays
    model : RoundingModel
    weight : (n,) array
    blocksize : int
    rank : callable
        From v to the place of its codeword in ascending order.
    rank_of_code : (16,) array, optional
        That of a code, where it is not the code itself.
    """
    n = weight.shape[0]
    blocks = in_blocks(weight.astype(np.float64), blocksize)
    ends = interval(blocks, np.maximum(largest(blocks), FLOOR), model)
    lowest, highest = (rank(end).reshape(-1)[: n + n % 2].reshape(-1, 2) for end in ends)
    halves = np.stack([got // 16, got % 16], axis=-1)
    ranks = halves if rank_of_code is None else rank_of_code[halves]
    admissible = np.all((lowest <= ranks) & (ranks <= highest), axis=-1)
    return admissible, admissible & (got != golden)


def require_finite(operation, name, array):
    """Refuse an array with a NaN or an infinity, by its index."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise DomainError(
            f"{operation}: {name}{list(at)} is {float(array[at])}, but only finite numbers are quantised."
        )
