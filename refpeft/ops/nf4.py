"""NF4: 4-bit NormalFloat quantisation in blocks (Dettmers et al. 2023, arXiv:2305.14314, section 3).

It is defined as IEEE float32 steps (``f32`` below rounds to float32), because the real-number definition "the nearest
codeword" leaves open what happens within a rounding of a midpoint. It is the law that these steps obey up to that.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.primitives import round_to, take
from refpeft.operation import operation

Blocksize = Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]
Variant = Literal["paper", "bitsandbytes-cpu"]
DTYPES = ("float32", "bfloat16", "float16")
COUNTS = (1, 2, 31, 32, 33, 64, 65, 127, 200, 257, 777, 4099)


def f32(x):
    """Round to float32."""
    return round_to(x, "float32")


def between(codebook):
    """The midpoints of neighbouring codewords, as float32 numbers."""
    return f32((codebook[:-1] + codebook[1:]) / 2)


_BITS = """
    bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000
    3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000
"""
CODEBOOK = np.array([int(word, 16) for word in _BITS.split()], np.uint32).view(np.float32).astype(np.float64)
"""The 16 codewords, from the bits of their float32 numbers: quantiles of the normal distribution, scaled to [-1, 1]."""

MIDPOINTS = between(CODEBOOK).tolist()
FLOOR = float(f32(1e-38))
"""Least divisor of a block, so that its reciprocal is a float32 number."""


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
    n = weight.shape[0]
    full = n // blocksize
    blocks = in_blocks(weight, blocksize)
    absmax = np.max(np.absolute(blocks), axis=1, keepdims=True)
    s = np.maximum(absmax, FLOOR)
    v = np.concatenate([f32(blocks[:full] * f32(1.0 / s[:full])), f32(blocks[full:] / s[full:])])
    codes = count_below(clip(v), MIDPOINTS).reshape(-1)[: n + n % 2]
    if variant == "bitsandbytes-cpu":
        absmax = np.concatenate([absmax[:full], s[full:]])
    return 16 * codes[0::2] + codes[1::2], absmax.reshape(-1)


@quantize.refuses
def _(weight, **_):
    require_finite("nf4.quantize", "weight", weight)


@quantize.accepts("packed")
def _(got, golden, model, weight, *, blocksize, **_):
    """Both halves lie between the codes of the ends of v's interval: by reciprocal or by division, v is within it."""
    n = weight.shape[0]
    blocks = in_blocks(weight.astype(np.float64), blocksize)
    s = np.maximum(np.max(np.absolute(blocks), axis=1, keepdims=True), FLOOR)
    lowest, highest = (
        count_below(end, MIDPOINTS).reshape(-1)[: n + n % 2].reshape(-1, 2) for end in interval(blocks, s, model)
    )
    halves = np.stack([got // 16, got % 16], axis=-1)
    admissible = np.all((lowest <= halves) & (halves <= highest), axis=-1)
    return admissible, admissible & (got != golden)


@operation(
    "nf4.dequantize",
    "packed: u8[(n+1)//2] absmax: f32[ceil(n/blocksize)] -> y[n] where n >= 0",
    dtypes=DTYPES,
    budgets={"y": "exact"},
    sizes={"n": COUNTS},
)
def dequantize(
    packed, absmax, *, n: int, blocksize: Blocksize = 64, dtype: Literal["float32", "bfloat16", "float16"] = "float32"
):
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
    codes = np.stack([np.floor_divide(packed, 16), np.remainder(packed, 16)], axis=-1).reshape(-1)[:n]
    return f32(take(CODEBOOK, in_blocks(codes, blocksize)) * absmax.reshape(-1, 1)).reshape(-1)[:n]


def in_blocks(x, size):
    """``x`` in rows of ``size``, the last one filled up with zeros."""
    count = -(-x.shape[0] // size)
    return np.pad(x, (0, count * size - x.shape[0])).reshape(count, size)


def clip(v):
    """``v`` within [-1, 1]."""
    return np.maximum(np.minimum(v, 1.0), -1.0)


def count_below(v, midpoints):
    """How many of ``midpoints`` lie strictly below each element."""
    return sum(np.where(v > m, 1, 0) for m in midpoints)


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


def require_finite(operation, name, array):
    """Refuse an array with a NaN or an infinity, by its index."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise DomainError(
            f"{operation}: {name}{list(at)} is {float(array[at])}, but only finite numbers are quantised."
        )


@quantize.problems
def midpoints(random, arrays, attributes):
    """Elements on midpoints times a power of two that their block attains, and one float32 ulp to either side."""

    def weight(blocks):
        chosen = random.choice(np.array(MIDPOINTS, np.float32), size=blocks.shape)
        away = random.choice(np.array([-np.inf, np.inf], np.float32), size=blocks.shape)
        beside = np.where(random.random(blocks.shape) < 0.5, chosen, np.nextafter(chosen, away)).astype(np.float64)
        beside[:, :1] = random.choice([-1.0, 1.0], size=(len(blocks), 1))
        return beside * 2.0 ** random.integers(-8, 9, size=(len(blocks), 1))

    return _by_block(weight, arrays, attributes)


@quantize.problems
def near_midpoints(random, arrays, attributes):
    """Elements within two float32 ulps of a midpoint times the block's maximum, which is any number."""

    def weight(blocks):
        near = random.choice(MIDPOINTS, size=blocks.shape) * (1 + 2.0**-23 * random.integers(-2, 3, size=blocks.shape))
        return np.concatenate([np.ones((len(blocks), 1)), near[:, 1:]], axis=1) * f32(random.random((len(blocks), 1)))

    return _by_block(weight, arrays, attributes)


@quantize.problems
def zero_blocks(random, arrays, attributes):
    """Half of the blocks zero, of either sign."""
    return _by_block(
        lambda blocks: blocks * random.choice([0.0, -0.0, 1.0, 1.0], size=(len(blocks), 1)), arrays, attributes
    )


@quantize.problems
def outliers(random, arrays, attributes):
    """One element of a block 2**12 times the others, which leaves these near zero."""

    def weight(blocks):
        at = np.arange(blocks.shape[1]) == random.integers(0, blocks.shape[1], size=(len(blocks), 1))
        return np.where(at, 2.0**12, 1.0) * blocks

    return _by_block(weight, arrays, attributes)


@quantize.problems
def tiny_blocks(random, arrays, attributes):
    """Block maxima on both sides of 1e-38, where the divisor stops following them."""
    return _by_block(
        lambda blocks: blocks * 2.0 ** random.integers(-140, -120, size=(len(blocks), 1)), arrays, attributes
    )


def _by_block(weight, arrays, attributes):
    drawn = arrays["weight"]
    return {"weight": weight(in_blocks(drawn, attributes["blocksize"])).reshape(-1)[: drawn.size]}


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}
