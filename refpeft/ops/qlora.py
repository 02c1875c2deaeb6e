"""QLoRA: a low-rank update beside a frozen base weight in NF4 (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import round_to
from refpeft.operation import operation
from refpeft.ops import nf4
from refpeft.ops._arrays import plus, rows


@operation(
    "qlora.linear",
    "x[*n,i] packed: u8[(o*i+1)//2] absmax: f32[ceil(o*i/blocksize)] a[r,i] b[o,r] bias?[o] -> y[*n,o]",
    sizes={"i": (1, 2, 3, 5, 7, 4, 8, 11, 13, 16, 17, 40, 96)},
)
def linear(
    x,
    packed,
    absmax,
    a,
    b,
    bias=None,
    *,
    scaling: float,
    blocksize: nf4.Blocksize = 64,
    dtype: Literal["float64", "float32", "bfloat16", "float16"],
):
    """y = x Wᵀ + bias + s x Aᵀ Bᵀ with W = dequantize(packed, absmax) (equation 5).

    W is a constant of the definition, not of its rounding errors: f32(codebook[code] absmax), rounded to ``dtype``.

    Parameters
    ----------
    x : (*n, i)
    packed : ((o i + 1) // 2,) uint8
        Codes of the frozen W (o, i), row by row; see `nf4.quantize`.
    absmax : (ceil(o i / blocksize),) float32
        Its block maxima. Where they are quantised too, `nf4.double_dequantize` gives them (equation 6).
    a : (r, i)
    b : (o, r)
    bias : (o,), optional
        The base layer's; not scaled.
    scaling : float
        s; alpha / r.
    blocksize : int
    dtype : str
        That of x, a and b: what the paper calls the computation data type.

    Returns
    -------
    y : (*n, o)
    """
    y = x @ _weight(packed, absmax, a, b, blocksize, dtype).T + (scaling * (x @ a.T)) @ b.T
    return plus(y, bias)


@linear.vjp
def _(dy, x, packed, absmax, a, b, bias=None, *, scaling, blocksize=64, dtype):
    """With h = x Aᵀ, du = s dy and dh = du B: dx = dy W + dh A, dA = dhᵀ x, dB = duᵀ h; W is frozen and gets none."""
    h, du = x @ a.T, scaling * dy
    dh = du @ b
    dx = dy @ _weight(packed, absmax, a, b, blocksize, dtype) + dh @ a
    return dx, rows(dh).T @ rows(x), rows(du).T @ rows(h), rows(dy).sum(axis=0)


def _weight(packed, absmax, a, b, blocksize, dtype):
    o, i = b.shape[0], a.shape[1]
    return round_to(nf4.decode(packed, absmax, o * i, blocksize), dtype).reshape(o, i)


@linear.makes_valid
def _(random, arrays, attributes):
    """Maxima are not negative; where they are integers, so is W, as the exact lane needs: codewords -1, 0 and 1."""
    absmax, packed = np.abs(arrays["absmax"]), arrays["packed"]
    if np.array_equal(absmax, np.rint(absmax)):
        high, low = random.choice(np.array([0, 7, 15], np.uint8), size=(2, *packed.shape))
        packed = 16 * high + low
    return {"absmax": absmax, "packed": packed}


@linear.problems
def early_training(random, arrays, attributes):
    """B just off zero, as after the first steps."""
    return {"b": arrays["b"] * 2.0**-10}
