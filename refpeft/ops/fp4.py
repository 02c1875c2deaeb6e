"""FP4 of bitsandbytes: 4-bit floating-point codewords in blocks, a sign bit beside a magnitude of 3 bits.

Defined by the steps of `refpeft.ops._blocks`. Dettmers et al. 2023 (arXiv:2305.14314) compare NF4 with it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import round_to, take
from refpeft.operation import operation
from refpeft.ops import _blocks
from refpeft.ops._blocks import COUNTS, DTYPES, Blocksize, Dtype, between, count_below, f32, pack, scaled, unpack
from refpeft.ops._hard_blocks import hard_blocks

Variant = Literal["sign-magnitude", "bitsandbytes-cpu"]

MAGNITUDES = f32(np.array([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12)
CODEBOOK = np.concatenate([MAGNITUDES, -MAGNITUDES])
"""The codewords by code: not ascending, and with two zeros, codes 0 and 8."""

UPWARD = np.array([0, 1, 6, 7, 4, 5, 2, 3])
"""Codes of the magnitudes, smallest first."""
ASCENDING = {
    "sign-magnitude": np.concatenate([8 + UPWARD[::-1], UPWARD]),
    "bitsandbytes-cpu": np.concatenate([8 + UPWARD[:0:-1], [0, 8], UPWARD[1:]]),
}
"""Codes of the codewords, smallest first: the two zeros are -0 and 0 in one variant, 0 and "-0" in the other."""

STEPS = between(MAGNITUDES[UPWARD]).tolist()
MIDPOINTS = between(CODEBOOK[ASCENDING["bitsandbytes-cpu"]]).tolist()


@operation(
    "fp4.quantize",
    "weight[n] -> packed: u8[(n+1)//2] absmax: f32[ceil(n/blocksize)]",
    dtypes=DTYPES,
    budgets={"packed": "discrete", "absmax": "exact"},
    sizes={"n": COUNTS},
)
def quantize(weight, *, blocksize: Blocksize = 64, variant: Variant = "sign-magnitude"):
    """absmax = max |w| over a block; the code of v = w / absmax is that of |v|, plus 8 where v < 0.

    v is that of `nf4.quantize`. A |v| on a midpoint gets the smaller magnitude.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.
    blocksize : int
        Consecutive elements that share a maximum.
    variant : str
        ``"bitsandbytes-cpu"``: a v on a midpoint gets the smaller codeword, also below zero; a v that rounds to zero gets
        code 8 if it is positive, else 0; and for the partial block max(absmax, f32(1e-38)) is stored.

    Returns
    -------
    packed : ((n + 1) // 2,) uint8
        Two codes a byte, the first one in the high half; an odd one out is joined by 0.
    absmax : (ceil(n / blocksize),) float32

    Raises
    ------
    DomainError
        If a weight is not finite.
    """
    n, full = weight.shape[0], weight.shape[0] // blocksize
    v, absmax, s = scaled(weight, blocksize)
    if variant == "bitsandbytes-cpu":
        absmax = np.concatenate([absmax[:full], s[full:]])
    return pack(take(ASCENDING[variant], _rank(v, variant)), n), absmax.reshape(-1)


def _rank(v, variant):
    """The place of v's codeword among the ascending ones, from 0 to 15."""
    if variant == "bitsandbytes-cpu":
        return count_below(v, MIDPOINTS)
    magnitude = count_below(np.absolute(v), STEPS)
    return np.where(v < 0, 7 - magnitude, 8 + magnitude)


@quantize.refuses
def _(weight, **_):
    _blocks.require_finite("fp4.quantize", "weight", weight)


@quantize.accepts("packed")
def _(got, golden, model, weight, *, blocksize, variant):
    """As for NF4, by the places of the codewords."""
    places = np.argsort(ASCENDING[variant])
    return _blocks.accepts_pairs(got, golden, model, weight, blocksize, lambda v: _rank(v, variant), places)


hard_blocks(quantize, lambda arrays, attributes: MIDPOINTS)


@operation(
    "fp4.dequantize",
    "packed: u8[(n+1)//2] absmax: f32[ceil(n/blocksize)] -> y[n] where n >= 0",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS},
)
def dequantize(packed, absmax, *, n: int, blocksize: Blocksize = 64, dtype: Dtype = "float32"):
    """y = f32(codebook[code] absmax), rounded once more to ``dtype``.

    Parameters
    ----------
    packed : ((n + 1) // 2,) uint8
    absmax : (ceil(n / blocksize),) float32
    n : int
        How many elements: ``packed`` alone does not tell whether its last half is one.
    blocksize : int
    dtype : str
        Of the result.

    Returns
    -------
    y : (n,)
    """
    return round_to(_blocks.decode(CODEBOOK, unpack(packed, n), absmax, blocksize), dtype)


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}
