"""Three formats of GGUF files, Q4_0, Q4_1 and Q8_0: integers in blocks of 32, with a float16 scale, and a float16 minimum in
Q4_1 (ggml's ``ggml-quants.c``, and the ``gguf`` package), as IEEE float32 steps.

In a file a block is its scale, its minimum and its codes, in this order and in bytes; here these are arrays. In a block of 4-bit
codes, byte j holds those of the elements j, in the low half, and j + 16.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.primitives import positions, round_to, take, topk
from refpeft.operation import operation
from refpeft.ops._blocks import DTYPES, Dtype, count_held, f32, largest, require_finite

SIZE = 32
COUNTS = (32, 64, 96, 160, 1024)
LEAST = 2.0**-126
"""A smaller scale has no float32 reciprocal to speak of, and is zero in float16."""

LEVELS = np.arange(-8.0, 8.0)
"""What the codes of Q4_0 stand for."""

KINDS = {"packed": "discrete", "codes": "discrete", "d": "exact", "m": "exact"}


def f16(x):
    """Round to float16."""
    return round_to(x, "float16")


def reciprocal(d):
    """f32(1 / d), and zero where d is."""
    usable = np.absolute(d) >= LEAST
    return np.where(usable, f32(1.0 / np.where(usable, d, 1.0)), 0.0)


def count_up_to(v, bounds):
    """How many of ``bounds`` are at most v: the integer part of v, for bounds 1, 2, 3, ..."""
    return count_held(v >= bound for bound in bounds)


def pack(codes):
    """Blocks of 32 codes as 16 bytes each."""
    return (codes[:, :16] + 16 * codes[:, 16:]).reshape(-1)


def unpack(packed):
    """Blocks of 32 codes."""
    halves = packed.reshape(-1, 16)
    return np.concatenate([np.remainder(halves, 16), np.floor_divide(halves, 16)], axis=1)


def quantiser(name, signature):
    return operation(f"{name}.quantize", signature, dtypes=DTYPES, budgets=KINDS, sizes={"n": COUNTS})


def dequantiser(name, signature):
    return operation(
        f"{name}.dequantize", signature, dtypes=DTYPES, budgets={"y": "exact"}, sizes={"b": (1, 2, 3, 5, 32)}
    )


@quantiser("q4_0", "weight[n] -> packed: u8[n//2] d: f32[n//32] where n = 32*(n//32)")
def quantize_q4_0(weight):
    """d = f32(extreme / -8) over a block, code = floor(f32(f32(w f32(1 / d)) + 8.5)), at most 15.

    The extreme is the element of largest magnitude, the first of several: it has code 0 and decodes to -8 d. d is stored in
    float16.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.

    Returns
    -------
    packed : (n // 2,) uint8
    d : (n // 32,) float32
        Float16 numbers.

    Raises
    ------
    DomainError
        If a weight is not finite, or a scale or minimum beyond float16.
    """
    blocks = weight.reshape(-1, SIZE)
    extreme = take(weight, SIZE * positions(blocks, 0) + topk(np.absolute(blocks), 1)[:, 0])
    d = f32(extreme.reshape(-1, 1) / -8.0)
    return pack(_q4_0_codes(f32(blocks * reciprocal(d)))), f16(d).reshape(-1)


def _q4_0_codes(v):
    return count_up_to(f32(v + 8.5), range(1, 16))


@quantiser("q4_1", "weight[n] -> packed: u8[n//2] d: f32[n//32] m: f32[n//32] where n = 32*(n//32)")
def quantize_q4_1(weight):
    """m = min w, d = f32(f32(max w - m) / 15) over a block, code = floor(f32(f32(f32(w - m) f32(1 / d)) + 0.5)), at most 15.

    d and m are stored in float16.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.

    Returns
    -------
    packed : (n // 2,) uint8
    d, m : (n // 32,) float32
        Float16 numbers.

    Raises
    ------
    DomainError
        If a weight is not finite, or a scale or minimum beyond float16.
    """
    blocks = weight.reshape(-1, SIZE)
    m = np.min(blocks, axis=1, keepdims=True)
    d = f32(f32(np.max(blocks, axis=1, keepdims=True) - m) / 15.0)
    codes = _q4_1_codes(f32(f32(blocks - m) * reciprocal(d)))
    return pack(codes), f16(d).reshape(-1), f16(m).reshape(-1)


def _q4_1_codes(v):
    return count_up_to(f32(v + 0.5), range(1, 16))


@quantiser("q8_0", "weight[n] -> codes: i8[n] d: f32[n//32] where n = 32*(n//32)")
def quantize_q8_0(weight):
    """d = f32(max |w| / 127) over a block, code = f32(w f32(1 / d)) rounded to an integer, halves away from zero.

    d is stored in float16.

    Parameters
    ----------
    weight : (n,)
        The matrix, flattened row by row.

    Returns
    -------
    codes : (n,) int8
        From -127 to 127.
    d : (n // 32,) float32
        Float16 numbers.

    Raises
    ------
    DomainError
        If a weight is not finite, or a scale or minimum beyond float16.
    """
    blocks = weight.reshape(-1, SIZE)
    d = f32(largest(blocks) / 127.0)
    return _q8_0_codes(f32(blocks * reciprocal(d))).reshape(-1), f16(d).reshape(-1)


def _q8_0_codes(v):
    magnitude = count_up_to(np.absolute(v), [k - 0.5 for k in range(1, 128)])
    return np.where(v < 0, -magnitude, magnitude)


@dequantiser("q4_0", "packed: u8[16*b] d: f32[b] -> y[32*b]")
def dequantize_q4_0(packed, d, *, dtype: Dtype = "float32"):
    """y = f32(d (code - 8)), rounded once more to ``dtype``.

    Parameters
    ----------
    packed : (16 b,) uint8
    d : (b,) float32
    dtype : str
        Of the result.

    Returns
    -------
    y : (32 b,)
    """
    return round_to(f32(take(LEVELS, unpack(packed)) * d.reshape(-1, 1)), dtype).reshape(-1)


@dequantiser("q4_1", "packed: u8[16*b] d: f32[b] m: f32[b] -> y[32*b]")
def dequantize_q4_1(packed, d, m, *, dtype: Dtype = "float32"):
    """y = f32(f32(d code) + m), rounded once more to ``dtype``.

    Parameters
    ----------
    packed : (16 b,) uint8
    d, m : (b,) float32
    dtype : str
        Of the result.

    Returns
    -------
    y : (32 b,)
    """
    return round_to(f32(f32(unpack(packed) * d.reshape(-1, 1)) + m.reshape(-1, 1)), dtype).reshape(-1)


@dequantiser("q8_0", "codes: i8[32*b] d: f32[b] -> y[32*b]")
def dequantize_q8_0(codes, d, *, dtype: Dtype = "float32"):
    """y = f32(d code), rounded once more to ``dtype``.

    Parameters
    ----------
    codes : (32 b,) int8
    d : (b,) float32
    dtype : str
        Of the result.

    Returns
    -------
    y : (32 b,)
    """
    return round_to(f32(codes.reshape(-1, SIZE) * d.reshape(-1, 1)), dtype).reshape(-1)


def _range(weight, name):
    """The scale and the offset of every block as real numbers, and the largest magnitude that float16 has to hold."""
    blocks = weight.astype(np.float64).reshape(-1, SIZE)
    low, high = np.min(blocks, axis=1, keepdims=True), np.max(blocks, axis=1, keepdims=True)
    if name == "q4_1":
        return (high - low) / 15, low, np.maximum((high - low) / 15, np.abs(low))
    extreme = np.take_along_axis(blocks, np.argmax(np.abs(blocks), axis=1)[:, None], axis=1)
    d = extreme / -8 if name == "q4_0" else np.abs(extreme) / 127
    return d, np.zeros_like(d), np.abs(d)


def _complete(quantize, code_of, out):
    """What the three quantisers refuse, accept and are tried on."""
    name = quantize.name.partition(".")[0]

    @quantize.refuses
    def _(weight):
        require_finite(quantize.name, "weight", weight)
        *_, size = _range(weight, name)
        beyond = np.flatnonzero(size >= 65520)
        if len(beyond):
            raise DomainError(
                f"{quantize.name}: block {beyond[0]} needs a scale or minimum of {size.flat[beyond[0]]:g}, "
                "but float16 ends at 65504."
            )

    @quantize.accepts(out)
    def _(got, golden, model, weight):
        """The codes of the ends of the interval in which every way to divide by the scale, and to add, lands: five roundings."""
        d, low, _ = _range(weight, name)
        d = np.where(np.abs(f32(d)) >= LEAST, d, np.inf)
        v = (weight.astype(np.float64).reshape(-1, SIZE) - low) / d
        radius = (
            5 * model.precision.accumulation.unit * (np.abs(v) + (8.5 if name == "q4_0" else 0.5) * (name != "q8_0"))
        )
        radius = np.where((v == 0) | (np.frexp(d)[0] == 0.5), 0.0, radius)
        ends = [code_of(v + sign * radius) for sign in (-1, 1)]
        if out == "packed":
            halves = [np.concatenate([c[:, :16, None], c[:, 16:, None]], axis=2).reshape(-1, 2) for c in ends]
            codes = np.stack([got & 15, got >> 4], axis=-1)
            admissible = np.all((halves[0] <= codes) & (codes <= halves[1]), axis=-1)
        else:
            admissible = (ends[0].reshape(-1) <= got) & (got <= ends[1].reshape(-1))
        return admissible | (got == golden), admissible & (got != golden)

    @quantize.makes_valid
    def _(random, arrays, attributes):
        """Scales and minima that float16 holds."""
        return {"weight": np.clip(arrays["weight"], -60000.0, 60000.0)}

    @quantize.problems
    def halves(random, arrays, attributes):
        """Halves of a scale, a power of two that the block attains, and one float32 ulp to either side."""
        blocks = np.zeros((arrays["weight"].size // SIZE, SIZE))
        top = {"q4_0": 8, "q4_1": 15, "q8_0": 127}[name]
        chosen = (random.integers(0 if name == "q4_1" else 1 - top, top, size=blocks.shape) + 0.5).astype(np.float32)
        away = random.choice(np.array([-np.inf, np.inf], np.float32), size=blocks.shape)
        blocks[:] = np.where(random.random(blocks.shape) < 0.5, chosen, np.nextafter(chosen, away))
        blocks[:, 1] = 0.0
        blocks[:, 0] = top * (1 if name != "q4_0" else random.choice([-1.0, 1.0], size=len(blocks)))
        return {"weight": (blocks * 2.0 ** random.integers(-6, 4, size=(len(blocks), 1))).reshape(-1)}

    @quantize.problems
    def zero_blocks(random, arrays, attributes):
        """Half of the blocks zero, or so small that float16 has no scale for them."""
        count = arrays["weight"].size // SIZE
        factor = random.choice([0.0, 1.0, 1.0, 2.0**-30, 2.0**-130], size=(count, 1))
        return {"weight": (arrays["weight"].reshape(count, SIZE) * factor).reshape(-1)}


_complete(quantize_q4_0, _q4_0_codes, "packed")
_complete(quantize_q4_1, _q4_1_codes, "packed")
_complete(quantize_q8_0, _q8_0_codes, "codes")
