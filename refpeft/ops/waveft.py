"""WaveFT: a weight's update from a few of its wavelet coefficients (Bilican et al. 2025, arXiv:2505.12532).

k coefficients c at fixed places of a matrix of wavelet coefficients are trained and the others are zero; the update is one step
of its inverse two-dimensional wavelet transform. Each coefficient contributes an outer product of two filters, moved to where it
belongs:

    delta = s sum over j of  c_j  f(row_j) g(column_j)ᵀ        f(row_j)[m] = filter[m + L - 2 - 2 h_j]

with L the filters' length and h_j the coefficient's row within its half of the matrix; g alike by columns. As in peft, the filter
along the rows is the low-pass one for coefficients in the left half of the columns, the high-pass one in the right half, and the
filter along the columns goes by the half of the rows. Where L > 2, the matrix of coefficients is larger than the weight, so
that the transform comes out at its size, and the places are counted in its middle.

Coefficients are zero at the start. The filters are in `refpeft.wavelets`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.numerics.primitives import positions, take
from refpeft.ops._places import distinct, drawn
from refpeft.ops._update import update
from refpeft.torch_random import randperm
from refpeft.wavelets import LOW, high

Wavelet = Literal[
    "db1", "db2", "db3", "db4", "db5", "db6", "db7", "db8", "db9", "db10", "sym2", "sym3", "sym4", "sym5", "sym6",
    "sym7", "sym8", "sym9", "sym10", "coif1", "coif2", "coif3", "coif4", "coif5",
]  # fmt: skip
SIZES = {"k": (3, 1, 2, 5, 8), "o": (4, 1, 2, 3, 8, 5), "i": (2, 4, 1, 3, 8, 7)}


@update("values[k] places: index(o*i)[k]", where="k <= o*i")
def delta(weight, values, places, *, scaling: float, wavelet: Wavelet = "db1"):
    """delta = s sum of c_j f(row_j) g(column_j)ᵀ over the coefficients.

    Parameters
    ----------
    values : (k,)
        The trained coefficients c.
    places : (k,) int64
        Row times i plus column, no two alike.
    scaling : float
        s.
    wavelet : str
        ``db1`` (Haar) to ``db10``, ``sym2`` to ``sym10``, ``coif1`` to ``coif5``.
    """
    rows, columns = _filters(weight, places, wavelet)
    return scaling * ((rows * values) @ columns.T)


@delta.vjp
def _(ddelta, weight, values, places, *, scaling, wavelet="db1"):
    """dc_j = f(row_j)ᵀ (s ddelta) g(column_j)."""
    rows, columns = _filters(weight, places, wavelet)
    return None, np.sum(rows * ((scaling * ddelta) @ columns), axis=0)


def _filters(weight, places, wavelet: str):
    """f (o, k) and g (i, k): what each coefficient's two filters are worth at each row and each column of the weight."""
    length = len(LOW[wavelet])
    row, column = np.floor_divide(places, weight.shape[1]), np.remainder(places, weight.shape[1])
    (h, lower), (w, right) = _within_half(row, weight.shape[0], length), _within_half(column, weight.shape[1], length)
    return _moved(positions(weight, 0), h, right, wavelet), _moved(positions(weight, 1), w, lower, wavelet)


def _within_half(index, n: int, length: int):
    """Where a coefficient lies in its half of the padded matrix, and whether that is the second half."""
    padded = (n + length - 1) // 2 * 2
    index = index + (padded - n) // 2
    return np.remainder(index, padded // 2), index >= padded // 2


def _moved(place, shift, second, wavelet: str):
    """filter[place + L - 2 - 2 shift], the high-pass one where ``second``, zero outside of it: (n, k)."""
    low = LOW[wavelet]
    tap = np.expand_dims(place, 1) + (len(low) - 2) - 2 * shift
    inside = np.logical_and(tap >= 0, tap < len(low))
    table = np.array([*low, *high(low), 0.0])
    return take(table, np.where(inside, np.where(second, tap + len(low), tap), 2 * len(low)))


linear = delta.linear("waveft.linear", sizes=SIZES, nonfinite=("x", "weight", "bias"))
merge = delta.merge("waveft.merge", sizes=SIZES, nonfinite=("weight",))


def unmerge(merged, values, places, *, scaling: float, wavelet: Wavelet = "db1") -> np.ndarray:
    """The weight that ``merged`` came from, up to the merge's rounding."""
    wide = delta(merged, values.astype(np.float64), places, scaling=scaling, wavelet=wavelet)
    return store(merged.astype(np.float64) - wide, as_format(merged.dtype.name))


@linear.refuses
def _(x, weight, values, places, bias=None, *, scaling, wavelet):
    distinct("waveft.linear", places)


@merge.refuses
def _(weight, values, places, *, scaling, wavelet):
    distinct("waveft.merge", places)


def _without_update(random, arrays, attributes):
    """No coefficients and no gradient to them: filters are irrational, so that nothing else is exact."""
    still = {"values": arrays["values"] * 0}
    if "dmerged" in arrays:
        still["dmerged"] = arrays["dmerged"] * 0
    if "dy" in arrays:
        still["x"] = arrays["x"] * 0
    return still


for _operation in (linear, merge):
    _operation.makes_valid(drawn)
    _operation.anchors(_without_update)


def init(random: np.random.Generator, o: int, i: int, *, k: int, seed: int = 777) -> dict[str, np.ndarray]:
    """k places, at most o i, drawn from a seed as peft draws them, and coefficients of zero."""
    return {"values": np.zeros(k), "places": randperm(o * i, k, seed)}


def count(*, k: int) -> int:
    """Trainable parameters: k."""
    return k
