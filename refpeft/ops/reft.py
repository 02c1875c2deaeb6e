"""ReFT: representation finetuning (Wu et al. 2024, arXiv:2404.03592). Hidden states are edited, no weight is.

In a subspace of r directions, the rows of R, a state gets the values that a linear map of it has learned:

    LoReFT, NoReFT    y = x + (W x + b - R x) R        W, R (r, d), b (r)
    DiReFT            y = x + (W x + b) R

The rows of R are orthonormal in LoReFT, so that R y = W x + b. NoReFT and DiReFT leave R free. Which tokens are edited, the first
few of a sequence say, is the caller's choice; others are left as they are.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation(
    "reft.edit", "x[*n,d] source[r,d] projection[r,d] bias?[r] -> y[*n,d] where r <= d", sizes={"d": (3, 2, 1, 4, 7)}
)
def edit(x, source, projection, bias=None, *, subtract: bool = True):
    """y = x + (x Wᵀ + b - x Rᵀ) R, or without what is subtracted.

    Parameters
    ----------
    x : (*n, d)
        Hidden states of the tokens that are edited.
    source : (r, d)
        W.
    projection : (r, d)
        R.
    bias : (r,), optional
        b.
    subtract : bool
        Whether R x, what the state has in the subspace, is taken out first.

    Returns
    -------
    y : (*n, d)
    """
    return x + _values(x, source, projection, bias, subtract) @ projection


@edit.vjp
def _(dy, x, source, projection, bias=None, *, subtract=True):
    """With u = x Wᵀ + b - x Rᵀ and du = dy Rᵀ: dW = duᵀ x, db = sum of du, dR = uᵀ dy, and dx = dy + du W; what is subtracted
    takes duᵀ x off dR and du R off dx.
    """
    u, du = _values(x, source, projection, bias, subtract), dy @ projection.T
    dx, dsource, dprojection = dy + du @ source, rows(du).T @ rows(x), rows(u).T @ rows(dy)
    if subtract:
        dx, dprojection = dx - du @ projection, dprojection - dsource
    return dx, dsource, dprojection, rows(du).sum(axis=0)


def _values(x, source, projection, bias, subtract):
    """What is written into the subspace."""
    values = plus(x @ source.T, bias)
    return values - x @ projection.T if subtract else values


def init(random: np.random.Generator, d: int, *, rank: int, orthonormal: bool = True) -> dict[str, np.ndarray]:
    """W, b and R uniform within 1 / sqrt(d), as a linear layer begins; orthonormal rows of R by a QR decomposition.

    Returns
    -------
    dict of str to float64 array
        source (rank, d), projection (rank, d), bias (rank,).
    """
    within = 1 / math.sqrt(d)
    if orthonormal:
        projection = np.linalg.qr(random.normal(size=(d, rank)))[0].T
    else:
        projection = random.uniform(-within, within, (rank, d))
    return {
        "source": random.uniform(-within, within, (rank, d)),
        "projection": projection,
        "bias": random.uniform(-within, within, rank),
    }


def count(d: int, *, rank: int) -> int:
    """Trainable parameters of one edit: W, R and b."""
    return rank * (2 * d + 1)
