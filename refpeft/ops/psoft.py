"""PSOFT: orthogonal finetuning in the principal subspace (Wu, Hu, Min and Wang 2025, arXiv:2505.11235).

Only the part of W that its r largest singular values make is turned. With the singular value decomposition W = U S Vᵀ,

    A = V_rᵀ (r, i)        B = U_r S_r / s (o, r)        delta = s B (R - I) A        R = diag(beta) Q diag(alpha)

Q is a rotation through a skew-symmetric K, held as its strict upper triangle, and the magnitudes alpha and beta relax it. A and B
are frozen, K is zero and the magnitudes one at the start, where delta is zero and training begins at the base model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.errors import AttributeValueError
from refpeft.ops._rotation import identity, rotation, to_skew
from refpeft.ops._update import update
from refpeft.ops.lora_init import finite
from refpeft.ops.oft import quarter_turns

Variant = Literal["paper", "neumann"]
_SIZES = {"o": (3, 2, 5, 4, 8, 13), "i": (3, 2, 5, 4, 8, 13), "r": (2, 3, 1, 4), "terms": (5, 4, 2, 1, 6, 3)}


def _turned(skew, alpha, beta, variant, terms):
    """Q and R - I, (r, r)."""
    k = np.expand_dims(skew, 0)
    q = rotation(k, variant, terms)[0]
    return q, np.expand_dims(beta, 1) * q * alpha - identity(k)[0]


@update("a[r,i] b[o,r] skew[r*(r-1)//2] alpha[r] beta[r]", where="r >= 1, r <= min(o,i), terms >= 1")
def delta(a, b, skew, alpha, beta, *, scaling: float, variant: Variant = "paper", terms: int = 5):
    """delta = s B (R - I) A.

    Parameters
    ----------
    a : (r, i)
        Frozen: the first r right singular vectors of W.
    b : (o, r)
        Frozen: the left ones times the singular values, over s.
    skew : (r (r - 1) / 2,)
        Strict upper triangle of K, row by row.
    alpha, beta : (r,)
        Magnitudes of the columns and of the rows of R.
    scaling : float
        s; alpha / r in libraries.
    variant : "paper" or "neumann"
        Q = (I + K)(I - K)^-1, or peft's series for it.
    terms : int
        Terms of the series; used by ``neumann`` only.
    """
    return scaling * ((b @ _turned(skew, alpha, beta, variant, terms)[1]) @ a)


@delta.vjp
def _(ddelta, a, b, skew, alpha, beta, *, scaling, variant="paper", terms=5):
    """With N = R - I and u = s ddelta: dA = (B N)ᵀ u, dB = u (N A)ᵀ, dR = Bᵀ u Aᵀ; dQ = beta dR alpha, and the magnitudes
    get the sums of dR o Q along the other's axis.
    """
    q, n = _turned(skew, alpha, beta, variant, terms)
    u, rows = scaling * ddelta, np.expand_dims(beta, 1)
    dr = (b.T @ u) @ a.T
    dskew = to_skew(np.expand_dims(rows * dr * alpha, 0), np.expand_dims(skew, 0), variant, terms)[0]
    dalpha, dbeta = np.sum(dr * (rows * q), axis=0), np.sum(dr * (q * alpha), axis=1)
    return (b @ n).T @ u, u @ (n @ a).T, dskew, dalpha, dbeta


linear = delta.linear("psoft.linear", sizes=_SIZES, nonfinite=("x", "weight", "bias"))
merge = delta.merge("psoft.merge", sizes=_SIZES, nonfinite=("weight",))
unmerge = delta.unmerge


@linear.makes_valid
@merge.makes_valid
def _(random, arrays, attributes):
    """Angles up to a quarter turn: elements of K at most 1."""
    return {"skew": arrays["skew"] / max(1.0, float(np.max(np.abs(arrays["skew"]), initial=0.0)))}


@linear.problems
@merge.problems
def early_training(random, arrays, attributes):
    """K just off zero and the magnitudes just off one, as after the first steps."""
    near = {n: 1 + arrays[n] * 2.0**-4 for n in ("alpha", "beta")}
    return near | {"skew": arrays["skew"] * 2.0**-4}


@linear.anchors
@merge.anchors
def _(random, arrays, attributes):
    """Quarter turns in planes that share no axis."""
    return {"skew": quarter_turns(random, len(arrays["alpha"]))}


def init(weight: np.ndarray, *, rank: int, scaling: float) -> dict[str, np.ndarray]:
    """The principal subspace of ``weight``, no rotation, unit magnitudes.

    Returns
    -------
    dict of str to float64 array
        a (rank, i), b (o, rank), skew (rank (rank - 1) / 2,), alpha and beta (rank,); s B A is W's best approximation of
        that rank.

    Raises
    ------
    AttributeValueError
        If the rank is above the smaller side of the weight.
    """
    if not 1 <= rank <= min(weight.shape):
        raise AttributeValueError(f"psoft: rank must be from 1 to {min(weight.shape)}, but {rank!r} came.")
    u, s, vt = np.linalg.svd(finite("psoft", weight), full_matrices=False)
    return {
        "a": vt[:rank],
        "b": u[:, :rank] * (s[:rank] / scaling),
        "skew": np.zeros(rank * (rank - 1) // 2),
        "alpha": np.ones(rank),
        "beta": np.ones(rank),
    }


def count(*, rank: int) -> int:
    """Trainable parameters: r (r - 1) / 2 + 2 r."""
    return rank * (rank - 1) // 2 + 2 * rank
