"""FourierFT: a weight's update from a few of its Fourier coefficients (Gao et al. 2024, arXiv:2405.03003).

k coefficients c at fixed places of an (o, i) spectrum are trained and the others are zero; the update is the real part of its
inverse discrete Fourier transform:

    F[p_j] = c_j, zero elsewhere        delta = s Re(ifft2(F))
    delta[m, n] = s / (o i)  sum over j of  c_j cos(2 pi (row_j m / o + column_j n / i))

The transform's real part is its own adjoint, so that the gradient is a transform too. Coefficients are real; training does not
begin at the base model, as they are drawn from the standard normal distribution.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.numerics.primitives import real_ifft2, scatter_add, take
from refpeft.ops._places import distinct, drawn
from refpeft.ops._update import update
from refpeft.torch_random import randperm

SIZES = {"k": (3, 1, 2, 5, 8), "o": (4, 1, 2, 3, 8, 5), "i": (2, 4, 1, 3, 8, 7)}


@update("values[k] places: index(o*i)[k]", where="k <= o*i")
def delta(weight, values, places, *, scaling: float):
    """delta = s Re(ifft2(F)), F with the values at the given places and zero elsewhere.

    Parameters
    ----------
    values : (k,)
        The trained coefficients c.
    places : (k,) int64
        Row times i plus column, no two alike.
    scaling : float
        s.
    """
    o, i = weight.shape
    spectrum = scatter_add(values, places, o * i).reshape(o, i)
    return scaling * real_ifft2(spectrum)


@delta.vjp
def _(ddelta, weight, values, places, *, scaling):
    """dF = s Re(ifft2(ddelta)), as the real part of the transform is its own adjoint; dc_j = dF[p_j]."""
    o, i = weight.shape
    dspectrum = scaling * real_ifft2(ddelta)
    return None, take(dspectrum.reshape(o * i), places)


linear = delta.linear("fourierft.linear", sizes=SIZES, nonfinite=("x", "weight", "bias"))
merge = delta.merge("fourierft.merge", sizes=SIZES, nonfinite=("weight",))


def unmerge(merged: np.ndarray, values: np.ndarray, places: np.ndarray, *, scaling: float) -> np.ndarray:
    """The weight that ``merged`` came from, up to the merge's rounding."""
    wide = delta(merged, values.astype(np.float64), places, scaling=scaling)
    return store(merged.astype(np.float64) - wide, as_format(merged.dtype.name))


@linear.refuses
def _(x, weight, values, places, bias=None, *, scaling):
    distinct("fourierft.linear", places)


@merge.refuses
def _(weight, values, places, *, scaling):
    distinct("fourierft.merge", places)


def _quarters(random, arrays, attributes):
    """Coefficients, inputs and cotangents at quarters of the sides only, which are exact, if these are powers of two."""
    kept = [_quarter(n) for n in arrays["weight"].shape]
    grid = np.logical_and.outer(*kept)
    anchored = {"values": arrays["values"] * grid.reshape(-1)[arrays["places"]]}
    if "dmerged" in arrays:
        anchored["dmerged"] = arrays["dmerged"] * grid
    if "dy" in arrays:
        anchored |= {"dy": arrays["dy"] * kept[0], "x": arrays["x"] * kept[1]}
    return anchored


def _quarter(n: int) -> np.ndarray:
    """Which of 0 .. n - 1 are quarters of n, a power of two."""
    return (4 * np.arange(n) % n == 0) & (n & (n - 1) == 0)


for _operation in (linear, merge):
    _operation.makes_valid(drawn)
    _operation.anchors(_quarters)


def init(
    random: np.random.Generator, o: int, i: int, *, k: int, seed: int = 777, start: str = "normal"
) -> dict[str, np.ndarray]:
    """k places, drawn from a seed as peft draws them, and their coefficients.

    Parameters
    ----------
    random : numpy.random.Generator
    o, i : int
    k : int
        At most o i.
    seed : int
        Of the places, see `refpeft.torch_random`.
    start : "normal" or "zero"
        Coefficients from the standard normal distribution, as in the paper, or zero, where training begins at the base model.
    """
    values = random.normal(size=k) if start == "normal" else np.zeros(k)
    return {"values": values, "places": randperm(o * i, k, seed)}


def count(*, k: int) -> int:
    """Trainable parameters: k."""
    return k
