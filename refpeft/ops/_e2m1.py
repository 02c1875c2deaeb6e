"""E2M1, the 4-bit floating point of MXFP4 and NVFP4 (OCP Microscaling Formats specification v1.0): one sign bit, two of
exponent, one of significand, neither infinity nor NaN.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import Format
from refpeft.numerics.primitives import round_to, take
from refpeft.ops._blocks import count_below, in_blocks

E2M1 = Format("float4_e2m1fn", "e2m1", precision=2, emin=0, emax=2)
MAGNITUDES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""By the low three bits of the code."""
LARGEST = float(MAGNITUDES[-1])
CODEBOOK = np.concatenate([MAGNITUDES, -MAGNITUDES])
MIDPOINTS = ((MAGNITUDES[:-1] + MAGNITUDES[1:]) / 2).tolist()


def encode(v):
    """The code of the number nearest to v, ties to even; what is beyond 6 saturates. A zero has code 0."""
    magnitude = round_to(np.minimum(np.absolute(v), LARGEST), E2M1)
    return count_below(magnitude, MIDPOINTS) + np.where(v < 0, 8, 0)


def pack(codes, n):
    """Two of the first n codes a byte, the first one in the low half; an odd one out is joined by what follows it."""
    codes = codes.reshape(-1)[: n + n % 2]
    return codes[0::2] + 16 * codes[1::2]


def decode(packed, scales, n, blocksize):
    """The products of the first n codewords and their blocks' scales."""
    codes = np.stack([np.remainder(packed, 16), np.floor_divide(packed, 16)], axis=-1).reshape(-1)[:n]
    return (take(CODEBOOK, in_blocks(codes, blocksize)) * scales.reshape(-1, 1)).reshape(-1)[:n]


def accepts(got, golden, model, weight, others=()):
    """Which packed codes an implementation may give: the golden ones or those in ``others``, and of a zero either sign.

    So may a subnormal weight be, where those may be flushed to zero.
    """
    size = np.pad(np.abs(weight.astype(np.float64)), (0, weight.shape[0] % 2)).reshape(-1, 2)
    zero = (size == 0) | (model.precision.flush_to_zero & (size < model.precision.storage.tiny))
    halves, expected, *others = (np.stack([c & 15, c >> 4], axis=-1) for c in (got, golden, *others))
    admissible = (halves == expected) | (zero & (halves % 8 == 0))
    for other in others:
        admissible |= halves == other
    return np.all(admissible, axis=-1), np.all(admissible, axis=-1) & np.any(halves % 8 != expected % 8, axis=-1)
