"""Quantisation in blocks with any codebook, of which NF4, FP4 and the dynamic maps are cases, as IEEE float32 steps.

The codebook is an input: learned, or made of quantiles by `refpeft.ops.quantile`.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.primitives import round_to
from refpeft.operation import operation
from refpeft.ops import _blocks
from refpeft.ops._blocks import (
    COUNTS,
    DTYPES,
    FLOOR,
    Blocksize,
    Dtype,
    between,
    clip,
    count_below,
    f32,
    in_blocks,
    interval,
    largest,
    require_finite,
)
from refpeft.ops._hard_blocks import hard_blocks

SIZES = (16, 2, 3, 8, 256)


@operation(
    "codebook.quantize",
    "weight[n] codebook: f32[k] -> codes: u8[n] absmax: f32[ceil(n/blocksize)] where k >= 2, k <= 256",
    dtypes=DTYPES,
    budgets={"codes": "discrete", "absmax": "exact"},
    sizes={"n": COUNTS, "k": SIZES},
)
def quantize(weight, codebook, *, blocksize: Blocksize = 64):
    """absmax = max |w| over a block, code = the number of midpoints below v = f32(w f32(1 / max(absmax, f32(1e-38)))).

    v is clipped to [-1, 1]. A v on a midpoint gets the lower code.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.
    codebook : (k,) float32
        Ascending.
    blocksize : int
        Consecutive elements that share a maximum.

    Returns
    -------
    codes : (n,) uint8
    absmax : (ceil(n / blocksize),) float32

    Raises
    ------
    DomainError
        If a number is not finite, or a codeword smaller than the one before it.
    """
    blocks = in_blocks(weight, blocksize)
    absmax = largest(blocks)
    v = f32(blocks * f32(1.0 / np.maximum(absmax, FLOOR)))
    return _codes(clip(v), codebook).reshape(-1)[: weight.shape[0]], absmax.reshape(-1)


def _codes(v, codebook):
    midpoints = between(codebook)
    return count_below(v, [midpoints[j] for j in range(codebook.shape[0] - 1)])


@quantize.refuses
def _(weight, codebook, **_):
    require_finite("codebook.quantize", "weight", weight)
    require_finite("codebook.quantize", "codebook", codebook)
    falls = np.flatnonzero(np.diff(codebook) < 0)
    if len(falls):
        at = int(falls[0]) + 1
        raise DomainError(
            f"codebook.quantize: codebook[{at}] is {codebook[at]:g}, but the codeword before it is {codebook[at - 1]:g}: "
            "they must ascend."
        )


@quantize.accepts("codes")
def _(got, golden, model, weight, codebook, *, blocksize):
    """The code lies between those of the ends of v's interval."""
    blocks, codebook = in_blocks(weight.astype(np.float64), blocksize), codebook.astype(np.float64)
    ends = interval(blocks, np.maximum(largest(blocks), FLOOR), model)
    lowest, highest = (_codes(clip(end), codebook).reshape(-1)[: weight.shape[0]] for end in ends)
    admissible = (lowest <= got) & (got <= highest)
    return admissible, admissible & (got != golden)


@quantize.makes_valid
def _(random, arrays, attributes):
    """Ascending, and 1 is attained."""
    codebook = np.sort(arrays["codebook"])
    return {"codebook": codebook / (np.max(np.abs(codebook), initial=0.0) or 1.0)}


hard_blocks(quantize, lambda arrays, attributes: between(np.sort(f32(arrays["codebook"]))).tolist())


@operation(
    "codebook.dequantize",
    "codes: u8[n] absmax: f32[ceil(n/blocksize)] codebook: f32[k] -> y[n] where k >= 2, k <= 256",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS, "k": SIZES},
)
def dequantize(codes, absmax, codebook, *, blocksize: Blocksize = 64, dtype: Dtype = "float32"):
    """y = f32(codebook[code] absmax), rounded once more to ``dtype``.

    Parameters
    ----------
    codes : (n,) uint8
        Below k.
    absmax : (ceil(n / blocksize),) float32
    codebook : (k,) float32
    blocksize : int
    dtype : str
        Of the result.

    Returns
    -------
    y : (n,)

    Raises
    ------
    DomainError
        If a code has no codeword.
    """
    return round_to(_blocks.decode(codebook, codes, absmax, blocksize), dtype)


@dequantize.refuses
def _(codes, absmax, codebook, **_):
    if np.any(codes >= len(codebook)):
        at = int(np.argmax(codes >= len(codebook)))
        raise DomainError(f"codebook.dequantize: codes[{at}] is {codes[at]}, but there are {len(codebook)} codewords.")


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"]), "codes": arrays["codes"] % len(arrays["codebook"])}
