"""Double quantisation: the block maxima of NF4, or of any other format, quantised in their turn to 8 bits (Dettmers et al.
2023, arXiv:2305.14314, section 3): `refpeft.ops.dynamic8` of what is left when their mean is taken off.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops import dynamic8
from refpeft.ops._blocks import COUNTS, f32, require_finite

BLOCKSIZE = 256


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
def double_quantize(absmax, offset, *, variant: dynamic8.Variant = "paper"):
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
    return dynamic8.encode(f32(absmax - offset), BLOCKSIZE, True, variant)


@double_quantize.refuses
def _(absmax, offset, **_):
    require_finite("nf4.double_quantize", "absmax", absmax)
    require_finite("nf4.double_quantize", "offset", offset)


@double_quantize.accepts("codes")
def _(got, golden, model, absmax, offset, *, variant):
    d = f32(absmax.astype(np.float64) - offset.astype(np.float64))
    return dynamic8.accepts_codes(got, golden, model, d, BLOCKSIZE, True, variant)


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
    return f32(dynamic8.decode(codes, absmax2, BLOCKSIZE, True) + offset)


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
    chosen = random.choice(np.array(dynamic8.midpoints(), np.float32), size=shape)
    away = random.choice(np.array([-np.inf, np.inf], np.float32), size=shape)
    return {"absmax": np.where(random.random(shape) < 0.5, chosen, np.nextafter(chosen, away)).astype(np.float64)}


@double_dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax2": np.abs(arrays["absmax2"]), "offset": np.abs(arrays["offset"])}
