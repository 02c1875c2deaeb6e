"""NF4: 4-bit NormalFloat quantisation in blocks (Dettmers et al. 2023, arXiv:2305.14314, section 3).

Defined by the steps of `refpeft.ops._blocks`, on 16 codewords that are quantiles of the normal distribution.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import round_to
from refpeft.operation import operation
from refpeft.ops import _blocks
from refpeft.ops._blocks import (
    COUNTS,
    DTYPES,
    Blocksize,
    Dtype,
    accepts_pairs,
    between,
    count_below,
    pack,
    scaled,
    unpack,
)
from refpeft.ops._hard_blocks import hard_blocks

Variant = Literal["paper", "bitsandbytes-cpu"]

_BITS = """
    bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000
    3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000
"""
CODEBOOK = np.array([int(word, 16) for word in _BITS.split()], np.uint32).view(np.float32).astype(np.float64)
"""The 16 codewords, from the bits of their float32 numbers: quantiles of the normal distribution, scaled to [-1, 1]."""

MIDPOINTS = between(CODEBOOK).tolist()


@operation(
    "nf4.quantize",
    "weight[n] -> packed: u8[(n+1)//2] absmax: f32[ceil(n/blocksize)]",
    dtypes=DTYPES,
    budgets={"packed": "discrete", "absmax": "exact"},
    sizes={"n": COUNTS},
)
def quantize(weight, *, blocksize: Blocksize = 64, variant: Variant = "paper"):
    """absmax = max |w| over a block, code = the number of midpoints below v = w / absmax (equations 1 and 4).

    With s = max(absmax, f32(1e-38)), v = f32(w f32(1 / s)) in a full block and f32(w / s) in the partial one at the
    end, clipped to [-1, 1]. A v on a midpoint gets the lower code.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.
    blocksize : int
        Consecutive elements that share a maximum.
    variant : str
        ``"bitsandbytes-cpu"`` stores s in place of absmax for the partial block.

    Returns
    -------
    packed : ((n + 1) // 2,) uint8
        Two codes a byte, the first one in the high half; an odd one out is joined by 7, the code of zero.
    absmax : (ceil(n / blocksize),) float32

    Raises
    ------
    DomainError
        If a weight is not finite.
    """
    v, absmax, s = scaled(weight, blocksize)
    if variant == "bitsandbytes-cpu":
        full = weight.shape[0] // blocksize
        absmax = np.concatenate([absmax[:full], s[full:]])
    return pack(count_below(v, MIDPOINTS), weight.shape[0]), absmax.reshape(-1)


@quantize.refuses
def _(weight, **_):
    _blocks.require_finite("nf4.quantize", "weight", weight)


@quantize.accepts("packed")
def _(got, golden, model, weight, *, blocksize, **_):
    """Both halves lie between the codes of the ends of v's interval: by reciprocal or by division, v is within it."""
    return accepts_pairs(got, golden, model, weight, blocksize, lambda v: count_below(v, MIDPOINTS))


hard_blocks(quantize, lambda arrays, attributes: MIDPOINTS)


@operation(
    "nf4.dequantize",
    "packed: u8[(n+1)//2] absmax: f32[ceil(n/blocksize)] -> y[n] where n >= 0",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS},
)
def dequantize(packed, absmax, *, n: int, blocksize: Blocksize = 64, dtype: Dtype = "float32"):
    """y = f32(codebook[code] absmax), rounded once more to ``dtype`` (equation 2).

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
    return round_to(decode(packed, absmax, n, blocksize), dtype)


def decode(packed, absmax, n, blocksize):
    """The n float32 numbers f32(codebook[code] absmax)."""
    return _blocks.decode(CODEBOOK, unpack(packed, n), absmax, blocksize)


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}
