"""Double quantisation: the block maxima of NF4, quantised in their turn to 8 bits (Dettmers et al. 2023,
arXiv:2305.14314, section 3), as IEEE float32 steps.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import take
from refpeft.operation import operation
from refpeft.ops.nf4 import COUNTS, FLOOR, Variant, between, clip, count_below, f32, in_blocks, interval, require_finite


def _dynamic_map():
    """The signed dynamic map of 8 bits (Dettmers et al. 2022, arXiv:2110.02861, section 2.1): 256 codewords, ascending.

    In decade 10**e, e from -6 to 0, the midpoints of 2**(6 + e) equal parts of [0.1, 1] times 10**e, with both signs;
    and 0 and 1. Each step is rounded to float32; the parts' ends are counted from the nearer end of the interval.
    """
    low, decades = float(f32(0.1)), []
    for exponent in range(-6, 1):
        parts = 2 ** (6 + exponent)
        step, k = f32(f32(1 - low) / parts), np.arange(parts + 1)
        ends = f32(np.where(k < (parts + 1) // 2, low + step * k, 1 - step * (parts - k)))
        decades.append(f32(f32(10.0**exponent) * between(ends)))
    positive = np.concatenate(decades)
    return np.sort(np.concatenate([-positive, [0.0], positive, [1.0]]))


DYNAMIC_MAP = _dynamic_map()
DYNAMIC_MIDPOINTS = between(DYNAMIC_MAP).tolist()
DYNAMIC_BINS = [int(np.floor((m + 1) / 2 * 65535)) + 1 for m in DYNAMIC_MIDPOINTS]
"""First of the bins -1 + 2 j / 65535 above each midpoint: bitsandbytes looks codes up by bin."""


@operation(
    "nf4.offset",
    "absmax: f32[m] -> offset: f32[] where m >= 1",
    dtypes=("float32",),
    sizes={"m": COUNTS},
)
def offset(absmax):
    """The mean of the block maxima, which double quantisation takes off them first (section 3).

    Parameters
    ----------
    absmax : (m,) float32

    Returns
    -------
    offset : () float32
    """
    return np.sum(absmax) / absmax.shape[0]


@operation(
    "nf4.double_quantize",
    "absmax: f32[m] offset: f32[] -> codes: u8[m] absmax2: f32[ceil(m/256)]",
    dtypes=("float32",),
    budgets={"codes": "discrete", "absmax2": "exact"},
    sizes={"m": COUNTS},
)
def double_quantize(absmax, offset, *, variant: Variant = "paper"):
    """8-bit codes of d = f32(absmax - offset) in blocks of 256 (section 3).

    absmax2 = max |d|, v = f32(d f32(1 / max(absmax2, f32(1e-38)))) clipped to [-1, 1], and code = the number of
    midpoints of the signed dynamic map below v, so that a v on a midpoint gets the lower code.

    Parameters
    ----------
    absmax : (m,) float32
    offset : () float32
        Their mean, see `offset`; an input, because its last bits depend on the order of a sum.
    variant : str
        ``"bitsandbytes-cpu"`` rounds v to one of 65536 bins first, so that zero gets code 131, not 127; a block of
        zeros gets codes 0.

    Returns
    -------
    codes : (m,) uint8
    absmax2 : (ceil(m / 256),) float32

    Raises
    ------
    DomainError
        If an input is not finite.
    """
    m = absmax.shape[0]
    d = in_blocks(f32(absmax - offset), 256)
    absmax2 = np.max(np.absolute(d), axis=1, keepdims=True)
    if variant == "paper":
        codes = _nested_codes(f32(d * f32(1.0 / np.maximum(absmax2, FLOOR))), variant)
    else:
        s = np.where(absmax2 > 0, absmax2, 1.0)
        codes = np.where(absmax2 > 0, _nested_codes(f32(d * f32(1.0 / s)), variant), 0)
    return codes.reshape(-1)[:m], absmax2.reshape(-1)


def _nested_codes(v, variant):
    if variant == "paper":
        return count_below(clip(v), DYNAMIC_MIDPOINTS)
    bin = f32(f32(f32(clip(v) + 1.0) * 0.5) * 65535.0 + 0.5)
    return sum(np.where(bin >= first, 1, 0) for first in DYNAMIC_BINS)


@double_quantize.refuses
def _(absmax, offset, **_):
    require_finite("nf4.double_quantize", "absmax", absmax)
    require_finite("nf4.double_quantize", "offset", offset)


@double_quantize.accepts("codes")
def _(got, golden, model, absmax, offset, *, variant):
    """The code lies between those of the ends of v's interval; where v is not 0, a bin adds three roundings."""
    m = absmax.shape[0]
    d = in_blocks(f32(absmax.astype(np.float64) - offset.astype(np.float64)), 256)
    s = np.maximum(np.max(np.absolute(d), axis=1, keepdims=True), FLOOR)
    slack = np.where((d != 0) & (variant != "paper"), 6 * model.precision.accumulation.unit, 0.0)
    low, high = interval(d, s, model)
    lowest, highest = (_nested_codes(end, variant).reshape(-1)[:m] for end in (low - slack, high + slack))
    admissible = ((lowest <= got) & (got <= highest)) | (got == golden)
    return admissible, admissible & (got != golden)


@operation(
    "nf4.double_dequantize",
    "codes: u8[m] absmax2: f32[ceil(m/256)] offset: f32[] -> absmax: f32[m]",
    dtypes=("float32",),
    budgets={"absmax": "exact"},
    sizes={"m": COUNTS},
)
def double_dequantize(codes, absmax2, offset):
    """absmax = f32(f32(map[code] absmax2) + offset) (equation 6's inner dequant).

    Parameters
    ----------
    codes : (m,) uint8
    absmax2 : (ceil(m / 256),) float32
    offset : () float32

    Returns
    -------
    absmax : (m,) float32
    """
    d = f32(take(DYNAMIC_MAP, in_blocks(codes, 256)) * absmax2.reshape(-1, 1))
    return f32(d + offset).reshape(-1)[: codes.shape[0]]


@offset.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}


@double_quantize.makes_valid
def _(random, arrays, attributes):
    """Maxima are not negative, and the offset is near their mean."""
    absmax = np.abs(arrays["absmax"])
    return {"absmax": absmax, "offset": np.mean(absmax) if absmax.size else arrays["offset"]}


@double_quantize.problems
def equal_maxima(random, arrays, attributes):
    """Blocks whose maxima all equal the offset, so that only zeros are left, but for one problem in two an outlier."""
    absmax = np.full(arrays["absmax"].shape, 0.5)
    absmax[: random.integers(0, 2)] = 0.75
    return {"absmax": absmax}


@double_quantize.problems
def dynamic_midpoints(random, arrays, attributes):
    """Differences on midpoints of the dynamic map, and one float32 ulp to either side."""
    shape = arrays["absmax"].shape
    chosen = random.choice(np.array(DYNAMIC_MIDPOINTS, np.float32), size=shape)
    away = random.choice(np.array([-np.inf, np.inf], np.float32), size=shape)
    return {"absmax": np.where(random.random(shape) < 0.5, chosen, np.nextafter(chosen, away)).astype(np.float64)}


@double_dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax2": np.abs(arrays["absmax2"]), "offset": np.abs(arrays["offset"])}
