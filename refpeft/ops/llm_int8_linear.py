"""LLM.int8's layer (Dettmers et al. 2022, arXiv:2208.07339, section 3): a product of 8-bit integers, but for the few columns of
the inputs that hold outliers, which stay in the dtype of computation.

    O = the columns j in which some |x_tj| reaches the threshold        W = codes absmax / 127, a row of it for each output

    y = (s_x s_w / 127²) C_x C_wᵀ + x_O W_Oᵀ + bias
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import round_to, straight_through
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._blocks import DTYPES, Dtype, require_finite
from refpeft.ops.llm_int8 import by_rows

Variant = Literal["paper", "bitsandbytes"]


@operation(
    "llm_int8.linear",
    "x[*n,k] codes: i8[m,k] absmax: f32[m] bias?[m] -> y[*n,m] where k >= 1, threshold > 0",
    dtypes=DTYPES,
    sizes={"threshold": (6.0, 1.0, 2.5, 0.5)},
    nonfinite=("bias",),
)
def linear(x, codes, absmax, bias=None, *, threshold: float = 6.0, variant: Variant = "paper", dtype: Dtype):
    """y = (s_x s_w / 127²) C_x C_wᵀ + x_O W_Oᵀ + bias, where `llm_int8.quantize` gives C_x and s_x, row by row, of x without O.

    C_x is a step of the definition, not of its rounding errors; W is rounded to ``dtype``.

    Parameters
    ----------
    x : (*n, k)
        Inputs, a row for each token.
    codes : (m, k) int8
        C_w, of the frozen weight; see `llm_int8.quantize`.
    absmax : (m,) float32
        s_w, a scale for each row of it.
    bias : (m,), optional
    threshold : float
        From which magnitude on an element makes its column an outlier's; 6 in the paper.
    variant : str
        ``"bitsandbytes"`` leaves only the outliers themselves out of the maxima s_x, not all of their columns.
    dtype : str
        That of x.

    Returns
    -------
    y : (*n, m)

    Raises
    ------
    DomainError
        If an element of x or a maximum is not finite.
    """
    flat, decoded = rows(x), _decoded(codes, absmax)
    weight = round_to(decoded, dtype)
    large = np.absolute(flat) >= threshold
    outliers = np.sum(np.where(large, 1.0, 0.0), axis=0) > 0
    inside = np.where(outliers, 0.0, flat)
    integers, scales = by_rows(inside, np.where(large, 0.0, flat) if variant == "bitsandbytes" else inside)
    product = (integers @ decoded.T) * scales / 127.0
    y = straight_through(product, inside @ weight.T) + np.where(outliers, flat, 0.0) @ weight.T
    return plus(y.reshape(*x.shape[:-1], codes.shape[0]), bias)


@linear.vjp
def _(dy, x, codes, absmax, bias=None, *, threshold=6.0, variant="paper", dtype):
    """dx = dy W, as if nothing had been rounded; the weight is frozen and gets none."""
    return dy @ round_to(_decoded(codes, absmax), dtype), rows(dy).sum(axis=0)


def _decoded(codes, absmax):
    """W."""
    return 1.0 * codes * absmax.reshape(-1, 1) / 127.0


@linear.refuses
def _(x, codes, absmax, bias=None, **_):
    require_finite("llm_int8.linear", "x", x)
    require_finite("llm_int8.linear", "absmax", absmax)


@linear.makes_valid
def _(random, arrays, attributes):
    return {"absmax": np.abs(arrays["absmax"])}


@linear.anchors
def _(random, arrays, attributes):
    """Each token is 0 and plus or minus a power of two below the threshold, whose codes are 0 and 127, and 8 in columns of
    outliers. Maxima of the weight are 127 times powers of two, and its codes few: a result has the bits of a short sum.
    """
    x, codes = arrays["x"], arrays["codes"]
    size = 2.0 ** random.integers(-3, -1, size=(*x.shape[:-1], 1))
    signs, columns = random.integers(-1, 2, size=x.shape), random.random(x.shape[-1]) < 0.1
    return {
        "x": np.where(columns, 8.0, size) * signs,
        "codes": random.integers(-1, 2, size=codes.shape),
        "absmax": 127 * 2.0 ** random.integers(0, 2, size=arrays["absmax"].shape),
    }


@linear.problems
def outliers(random, arrays, attributes):
    """Some columns many times the others, a token of zeros, and elements on the threshold and one float32 ulp below it."""
    x, threshold = arrays["x"], attributes["threshold"]
    x = np.where(random.random(x.shape[-1]) < 0.3, 2.0**5 * x, x / 4)
    on = random.choice([threshold, np.nextafter(np.float32(threshold), np.float32(0))], size=x.shape)
    x = np.where(random.random(x.shape) < 0.05, on, x)
    return {"x": np.where(random.random((*x.shape[:-1], 1)) < 0.1, 0.0, x)}
