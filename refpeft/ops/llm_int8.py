"""LLM.int8's vector-wise quantisation: 8-bit integers with a scale for each row, or each column (Dettmers et al. 2022,
arXiv:2208.07339), as IEEE float32 steps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.formats import Format
from refpeft.numerics.primitives import round_to
from refpeft.operation import operation
from refpeft.ops._blocks import DTYPES, Dtype, f32, require_finite

Axis = Literal["rows", "columns"]
INTEGERS = Format("integers", "int", precision=8, emin=7, emax=7)
"""Integers below 256, as the subnormal numbers of a format."""

LEAST = 2.0**-119
"""Least divisor, so that 127 times its reciprocal is a float32 number."""


@operation(
    "llm_int8.quantize",
    "weight[m,k] -> codes: i8[m,k] absmax: f32[m*is(axis,rows)+k*is(axis,columns)] where m >= 1, k >= 1",
    dtypes=DTYPES,
    budgets={"codes": "discrete", "absmax": "exact"},
)
def quantize(weight, *, axis: Axis = "rows"):
    """absmax = max |w| over a row or a column, code = f32(w f32(127 f32(1 / absmax))) rounded to an integer, halves to even.

    Parameters
    ----------
    weight : (m, k)
        Or a layer's inputs, a row for each token.
    axis : str
        Whether rows or columns share a scale.

    Returns
    -------
    codes : (m, k) int8
        From -127 to 127.
    absmax : (m,) or (k,) float32

    Raises
    ------
    DomainError
        If a weight is not finite.
    """
    absmax = np.max(np.absolute(weight), axis=1 if axis == "rows" else 0, keepdims=True)
    return _codes(weight, absmax), absmax.reshape(-1)


def by_rows(x, counted):
    """Codes of x by the maxima of the rows of ``counted``, and these as a column."""
    absmax = np.max(np.absolute(counted), axis=1, keepdims=True)
    return _codes(x, absmax), absmax


def _codes(x, absmax):
    return _nearest(f32(x * f32(127.0 * f32(1.0 / np.maximum(absmax, LEAST)))))


def _nearest(v):
    return round_to(v, INTEGERS)


@quantize.refuses
def _(weight, **_):
    require_finite("llm_int8.quantize", "weight", weight)


@quantize.accepts("codes")
def _(got, golden, model, weight, *, axis):
    """Those of the ends of the interval in which every order of product and quotient lands; by a power of two all is exact."""
    w = weight.astype(np.float64)
    absmax = np.maximum(np.max(np.abs(w), axis=1 if axis == "rows" else 0, keepdims=True), LEAST)
    v, u = w * 127 / absmax, 3 * model.precision.accumulation.unit
    radius = np.where(np.frexp(absmax / 127)[0] == 0.5, 0.0, u * np.abs(v))
    admissible = (_nearest(v - radius) <= got) & (got <= _nearest(v + radius))
    return admissible, admissible & (got != golden)


@quantize.problems
def halves(random, arrays, attributes):
    """Halves of a scale, which is a power of two: ties, but for one float32 ulp in half of the elements."""
    shape = arrays["weight"].shape
    chosen = (random.integers(-127, 127, size=shape) + 0.5).astype(np.float32)
    away = random.choice(np.array([-np.inf, np.inf], np.float32), size=shape)
    weight = np.where(random.random(shape) < 0.5, chosen, np.nextafter(chosen, away)).astype(np.float64)
    weight[:, :1] = weight[:1] = 127.0
    return {"weight": weight * 2.0 ** random.integers(-9, 9)}


@quantize.problems
def outliers(random, arrays, attributes):
    """A column 2**7 times the others, as in the inputs of large models; and a row of zeros."""
    weight = arrays["weight"] * np.where(np.arange(arrays["weight"].shape[1]) == 0, 2.0**7, 1.0)
    return {"weight": np.where(np.arange(len(weight))[:, None] == 1, 0.0, weight)}


@operation(
    "llm_int8.dequantize",
    "codes: i8[m,k] absmax: f32[m*is(axis,rows)+k*is(axis,columns)] -> y[m,k] where m >= 1, k >= 1",
    dtypes=DTYPES,
    budgets={"y": "exact"},
)
def dequantize(codes, absmax, *, axis: Axis = "rows", dtype: Dtype = "float32"):
    """y = f32(f32(code absmax) f32(1 / 127)), rounded once more to ``dtype``.

    Parameters
    ----------
    codes : (m, k) int8
    absmax : (m,) or (k,) float32
    axis : str
        Whether rows or columns share a scale.
    dtype : str
        Of the result.

    Returns
    -------
    y : (m, k)
    """
    scale = absmax.reshape(-1, 1) if axis == "rows" else absmax.reshape(1, -1)
    return round_to(f32(f32(codes * scale) * float(f32(1 / 127))), dtype)


@dequantize.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}
