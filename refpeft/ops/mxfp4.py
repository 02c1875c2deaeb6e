"""MXFP4: E2M1 elements in blocks of 32 with a power of two as their scale (OCP Microscaling Formats specification v1.0)."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import round_to, take
from refpeft.operation import operation
from refpeft.ops import _e2m1
from refpeft.ops._blocks import COUNTS, DTYPES, Dtype, count_held, f32, in_blocks, largest, require_finite
from refpeft.ops._hard_blocks import hard_blocks

BLOCKSIZE = 32
E8M0 = np.append(2.0 ** np.arange(-127, 128), np.nan)
"""The scales by code: powers of two, and NaN."""

POWERS = tuple(2.0**e for e in range(-124, 128))
"""Block maxima at which the scale doubles: 4 times a scale, from the second one on."""


@operation(
    "mxfp4.quantize",
    "weight[n] -> packed: u8[(n+1)//2] scales: u8[ceil(n/32)]",
    dtypes=DTYPES,
    budgets={"packed": "discrete", "scales": "exact"},
    sizes={"n": COUNTS},
)
def quantize(weight):
    """X = 2**(floor(log2 max |w|) - 2) over a block, each element the E2M1 number nearest to w / X (section 6.3).

    2 is the exponent of the largest E2M1 number, 6. X is at least 2**-127. Ties go to even; a quotient beyond 6, which is
    below 8, saturates. Both are exact up to the last rounding, so that there is one right answer.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.

    Returns
    -------
    packed : ((n + 1) // 2,) uint8
        Two codes a byte, the first one in the low half; an odd one out is joined by 0.
    scales : (ceil(n / 32),) uint8
        127 plus the exponent of X; 0 for a block of zeros.

    Raises
    ------
    DomainError
        If a weight is not finite.
    """
    blocks = in_blocks(weight, BLOCKSIZE)
    absmax = largest(blocks)
    scales = count_held(absmax >= power for power in POWERS)
    return _e2m1.pack(_e2m1.encode(blocks / take(E8M0, scales)), weight.shape[0]), scales.reshape(-1)


@quantize.refuses
def _(weight):
    require_finite("mxfp4.quantize", "weight", weight)


@quantize.accepts("packed")
def _(got, golden, model, weight):
    return _e2m1.accepts(got, golden, model, weight)


hard_blocks(quantize, lambda arrays, attributes: [m / 4 for m in _e2m1.MIDPOINTS], BLOCKSIZE)


@operation(
    "mxfp4.dequantize",
    "packed: u8[(n+1)//2] scales: u8[ceil(n/32)] -> y[n] where n >= 0",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS},
)
def dequantize(packed, scales, *, n: int, dtype: Dtype = "float32"):
    """y = f32(X P), rounded once more to ``dtype``; NaN throughout a block whose scale is.

    Parameters
    ----------
    packed : ((n + 1) // 2,) uint8
    scales : (ceil(n / 32),) uint8
    n : int
        How many elements: ``packed`` alone does not tell whether its last half is one.
    dtype : str
        Of the result.

    Returns
    -------
    y : (n,)
    """
    return round_to(f32(_e2m1.decode(packed, take(E8M0, scales), n, BLOCKSIZE)), dtype)


@dequantize.makes_valid
def _(random, arrays, attributes):
    """Most scales are near one, so that values are normal numbers; the others are any."""
    near = random.integers(117, 138, size=arrays["scales"].shape)
    return {"scales": np.where(random.random(near.shape) < 0.75, near, arrays["scales"])}
