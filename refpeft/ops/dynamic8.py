"""Dynamic 8-bit quantisation in blocks: the numbers of 8-bit optimizers, and of double quantisation (Dettmers et al. 2022,
arXiv:2110.02861, section 2.1), as IEEE float32 steps.

Its codewords lie in seven decades, close together near 1 and far apart, in proportion, near 1e-7. With a sign they are for
weights and first moments, without one for second moments, which are not negative.
"""

from __future__ import annotations

import functools
from typing import Literal

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
    count_held,
    f32,
    in_blocks,
    interval,
    largest,
    require_finite,
)
from refpeft.ops._hard_blocks import hard_blocks

Variant = Literal["paper", "bitsandbytes-cpu"]


@functools.cache
def dynamic_map(signed: bool = True) -> np.ndarray:
    """The 256 codewords, ascending.

    In decade 10**e, e from -6 to 0, the midpoints of 2**(6 + e) equal parts of [0.1, 1] times 10**e, with both signs; or of
    2**(7 + e) parts, without sign; and 0 and 1. Each step is rounded to float32; the parts' ends are counted from the nearer
    end of the interval.
    """
    low, decades = float(f32(0.1)), []
    for exponent in range(-6, 1):
        parts = 2 ** ((6 if signed else 7) + exponent)
        step, k = f32(f32(1 - low) / parts), np.arange(parts + 1)
        ends = f32(np.where(k < (parts + 1) // 2, low + step * k, 1 - step * (parts - k)))
        decades.append(f32(f32(10.0**exponent) * between(ends)))
    positive = np.concatenate(decades)
    return np.sort(np.concatenate([-positive if signed else [], [0.0], positive, [1.0]]))


@functools.cache
def midpoints(signed: bool = True) -> tuple[float, ...]:
    """Between neighbouring codewords."""
    return tuple(between(dynamic_map(signed)).tolist())


@functools.cache
def bins(signed: bool = True) -> tuple[int, ...]:
    """First of the bins f32(f32(2 j / 65535) - 1) above each midpoint: bitsandbytes looks codes up by bin."""
    grid = f32(f32(2.0 * np.arange(65536) / 65535) - 1)
    return tuple(np.searchsorted(grid, midpoints(signed), side="right").tolist())


@operation(
    "dynamic8.quantize",
    "weight[n] -> codes: u8[n] absmax: f32[ceil(n/blocksize)]",
    dtypes=DTYPES,
    budgets={"codes": "discrete", "absmax": "exact"},
    sizes={"n": COUNTS},
)
def quantize(weight, *, blocksize: Blocksize = 256, signed: bool = True, variant: Variant = "paper"):
    """absmax = max |w| over a block, code = the number of midpoints below v = w / absmax (section 2.1).

    v = f32(w f32(1 / max(absmax, f32(1e-38)))) in every block, clipped to [-1, 1]. A v on a midpoint gets the lower code.

    Parameters
    ----------
    weight : (n,)
        Or an optimizer's state.
    blocksize : int
        Consecutive elements that share a maximum.
    signed : bool
        Which map.
    variant : str
        ``"bitsandbytes-cpu"`` rounds v to one of 65536 bins first, so that zero gets code 131, not 127 (7, not 0, without
        sign); a block of zeros gets codes 0.

    Returns
    -------
    codes : (n,) uint8
    absmax : (ceil(n / blocksize),) float32

    Raises
    ------
    DomainError
        If an element is not finite, or negative where the map has no sign.
    """
    return encode(weight, blocksize, signed, variant)


def encode(x, blocksize, signed, variant):
    """Codes and absmax of a flat array."""
    blocks = in_blocks(x, blocksize)
    absmax = largest(blocks)
    if variant == "paper":
        codes = code_of(f32(blocks * f32(1.0 / np.maximum(absmax, FLOOR))), signed, variant)
    else:
        s = np.where(absmax > 0, absmax, 1.0)
        codes = np.where(absmax > 0, code_of(f32(blocks * f32(1.0 / s)), signed, variant), 0)
    return codes.reshape(-1)[: x.shape[0]], absmax.reshape(-1)


def code_of(v, signed, variant):
    """How many midpoints lie below v, or below the bin that v is rounded to."""
    if variant == "paper":
        return count_below(clip(v), midpoints(signed))
    exactly = round_to(f32(f32(clip(v) + 1.0) * 0.5) * 65535.0, "float64")
    bin = f32(exactly + 0.5)
    return count_held(bin >= first for first in bins(signed))


@quantize.refuses
def _(weight, *, signed, **_):
    require_finite("dynamic8.quantize", "weight", weight)
    negative = np.argwhere(weight < 0)
    if not signed and len(negative):
        at = int(negative[0, 0])
        raise DomainError(
            f"dynamic8.quantize: weight[{at}] is {float(weight[at])}, but the map without sign is for numbers from 0 on."
        )


@quantize.accepts("codes")
def _(got, golden, model, weight, *, blocksize, signed, variant):
    return accepts_codes(got, golden, model, weight.astype(np.float64), blocksize, signed, variant)


def accepts_codes(got, golden, model, x, blocksize, signed, variant):
    """The code lies between those of the ends of v's interval; where v is not 0, a bin adds three roundings."""
    blocks = in_blocks(x, blocksize)
    slack = np.where((blocks != 0) & (variant != "paper"), 6 * model.precision.accumulation.unit, 0.0)
    low, high = interval(blocks, np.maximum(largest(blocks), FLOOR), model)
    ends = (low - slack, high + slack)
    lowest, highest = (code_of(end, signed, variant).reshape(-1)[: x.shape[0]] for end in ends)
    admissible = ((lowest <= got) & (got <= highest)) | (got == golden)
    return admissible, admissible & (got != golden)


@operation(
    "dynamic8.dequantize",
    "codes: u8[n] absmax: f32[ceil(n/blocksize)] -> y[n]",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS},
)
def dequantize(codes, absmax, *, blocksize: Blocksize = 256, signed: bool = True, dtype: Dtype = "float32"):
    """y = f32(map[code] absmax), rounded once more to ``dtype``.

    Parameters
    ----------
    codes : (n,) uint8
    absmax : (ceil(n / blocksize),) float32
    blocksize : int
    signed : bool
    dtype : str
        Of the result.

    Returns
    -------
    y : (n,)
    """
    return round_to(decode(codes, absmax, blocksize, signed), dtype)


def decode(codes, absmax, blocksize, signed):
    """The float32 numbers f32(map[code] absmax)."""
    return _blocks.decode(dynamic_map(signed), codes, absmax, blocksize)


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}


@quantize.makes_valid
def _(random, arrays, attributes):
    return {} if attributes["signed"] else {"weight": np.abs(arrays["weight"])}


hard_blocks(quantize, lambda arrays, attributes: midpoints(attributes["signed"]))
