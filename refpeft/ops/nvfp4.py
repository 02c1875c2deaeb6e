"""NVFP4: E2M1 elements in blocks of 16, each with an E4M3 scale, and a float32 scale for all (NVIDIA 2025, arXiv:2509.25149),
as IEEE float32 steps.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.formats import Format
from refpeft.numerics.primitives import round_to, take
from refpeft.operation import operation
from refpeft.ops import _e2m1
from refpeft.ops._blocks import COUNTS, DTYPES, Dtype, count_below, f32, in_blocks, largest, require_finite
from refpeft.ops._hard_blocks import hard_blocks

BLOCKSIZE = 16
E4M3 = Format("float8_e4m3fn", "e4m3", precision=4, emin=-6, emax=8)
LARGEST = 448.0
_POSITIVE = np.array([m * 2.0**-9 if e == 0 else (8 + m) * 2.0 ** (e - 10) for e in range(16) for m in range(8)])
_POSITIVE[127] = np.nan
E4M3_NUMBERS = np.concatenate([_POSITIVE, -_POSITIVE])
"""The scales by code: sign, four bits of exponent, three of significand; the last of each sign is NaN."""

SCALE_MIDPOINTS = ((_POSITIVE[:126] + _POSITIVE[1:127]) / 2).tolist()
LEAST_SCALE = 2.0**-126


@operation(
    "nvfp4.scale",
    "weight[n] -> scale: f32[] where n >= 1",
    dtypes=DTYPES,
    budgets={"scale": "exact"},
    sizes={"n": COUNTS},
)
def scale(weight):
    """The scale for all: f32(max |w| / (6 · 448)), so that the largest block's scale is the largest E4M3 number, 448.

    At least 2**-126, also for zeros.

    Parameters
    ----------
    weight : (n,)

    Returns
    -------
    scale : () float32

    Raises
    ------
    DomainError
        If a weight is not finite.
    """
    return np.maximum(f32(np.max(np.absolute(weight)) / (_e2m1.LARGEST * LARGEST)), LEAST_SCALE)


@scale.refuses
def _(weight):
    require_finite("nvfp4.scale", "weight", weight)


@operation(
    "nvfp4.quantize",
    "weight[n] scale: f32[] -> packed: u8[(n+1)//2] scales: u8[ceil(n/16)]",
    dtypes=DTYPES,
    budgets={"packed": "discrete", "scales": "discrete"},
    sizes={"n": COUNTS},
)
def quantize(weight, scale):
    """S the E4M3 number nearest to max |w| / (6 scale) over a block, each element the E2M1 number nearest to w / (S scale).

    Both with ties to even, and saturating at 448 and 6. In a block whose S is zero the elements are.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.
    scale : () float32
        See `scale`; an input, as a training run may keep one.

    Returns
    -------
    packed : ((n + 1) // 2,) uint8
        Two codes a byte, the first one in the low half; an odd one out is joined by 0.
    scales : (ceil(n / 16),) uint8
        Codes of S.

    Raises
    ------
    DomainError
        If a weight is not finite, or the scale no finite number of at least 2**-126.
    """
    blocks = in_blocks(weight, BLOCKSIZE)
    scales = _nearest_scale(f32(largest(blocks) / f32(_e2m1.LARGEST * scale)))
    return _e2m1.pack(_elements(blocks, scales, scale), weight.shape[0]), scales.reshape(-1)


def _nearest_scale(s):
    return count_below(round_to(np.minimum(s, LARGEST), E4M3), SCALE_MIDPOINTS)


def _elements(blocks, scales, scale):
    s = f32(take(E4M3_NUMBERS, scales) * scale)
    return _e2m1.encode(np.where(s > 0, f32(blocks / np.where(s > 0, s, 1.0)), 0.0))


@quantize.refuses
def _(weight, scale):
    require_finite("nvfp4.quantize", "weight", weight)
    if not LEAST_SCALE <= scale < np.inf:
        raise DomainError(f"nvfp4.quantize: scale is {float(scale)}, but it must be finite and at least 2**-126.")


@quantize.accepts("scales")
def _(got, golden, model, weight, scale):
    """Those of the ends of the interval in which every way to divide by 6 and by the scale lands, three roundings wide."""
    lowest, highest = (end.reshape(-1) for end in _scales(model, weight, scale))
    admissible = (lowest <= got) & (got <= highest)
    return admissible, admissible & (got != golden)


@quantize.accepts("packed")
def _(got, golden, model, weight, scale):
    """Those of the ends of the interval in which every way to divide by an admissible scale lands; a power of two is exact."""
    blocks, scale, others = in_blocks(weight.astype(np.float64), BLOCKSIZE), float(scale), []
    for scales in _scales(model, weight, scale):
        exact = np.frexp(E4M3_NUMBERS[scales] * scale)[0] == 0.5
        radius = np.where(exact, 0.0, 3 * model.precision.accumulation.unit)
        for moved in (blocks * (1 - radius), blocks, blocks * (1 + radius)):
            others.append(_e2m1.pack(_elements(moved, scales, scale), weight.shape[0]).astype(np.uint8))
    return _e2m1.accepts(got, golden, model, weight, others)


def _scales(model, weight, scale):
    """Codes of the least and the largest admissible scale of each block."""
    s = largest(in_blocks(weight.astype(np.float64), BLOCKSIZE)) / _e2m1.LARGEST / float(scale)
    radius = 3 * model.precision.accumulation.unit
    return [_nearest_scale(s * (1 + sign * radius)) for sign in (-1, 1)]


@quantize.makes_valid
def _(random, arrays, attributes):
    """The scale that is meant; or a larger one, a power of two."""
    meant = np.max(np.abs(arrays["weight"]), initial=0.0) / (_e2m1.LARGEST * LARGEST)
    larger = 2.0 ** np.ceil(np.log2(max(meant, LEAST_SCALE)))
    return {"scale": np.maximum(f32(random.choice([meant, larger])), LEAST_SCALE)}


hard_blocks(quantize, lambda arrays, attributes: [m / 6 for m in _e2m1.MIDPOINTS], BLOCKSIZE)


@quantize.problems
def ties(random, arrays, attributes):
    """Elements on midpoints times a scale that their block attains: it is a power of two, if the scale for all is."""
    blocks = in_blocks(arrays["weight"], BLOCKSIZE)
    elements = random.choice([-1.0, 1.0], size=blocks.shape) * random.choice(_e2m1.MIDPOINTS, size=blocks.shape)
    elements[:, 0] = _e2m1.LARGEST
    return {
        "weight": (elements * 2.0 ** random.integers(-5, 3, size=(len(blocks), 1))).reshape(-1)[: arrays["weight"].size]
    }


@operation(
    "nvfp4.dequantize",
    "packed: u8[(n+1)//2] scales: u8[ceil(n/16)] scale: f32[] -> y[n] where n >= 0",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS},
)
def dequantize(packed, scales, scale, *, n: int, dtype: Dtype = "float32"):
    """y = f32(f32(S scale) P), rounded once more to ``dtype``; NaN throughout a block whose scale is.

    Parameters
    ----------
    packed : ((n + 1) // 2,) uint8
    scales : (ceil(n / 16),) uint8
    scale : () float32
    n : int
        How many elements: ``packed`` alone does not tell whether its last half is one.
    dtype : str
        Of the result.

    Returns
    -------
    y : (n,)
    """
    return round_to(f32(_e2m1.decode(packed, f32(take(E4M3_NUMBERS, scales) * scale), n, BLOCKSIZE)), dtype)


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"scale": np.abs(arrays["scale"])}
