"""RandLoRA: a full-rank update from frozen random bases and trained diagonals (Albert et al. 2025, arXiv:2502.00987).

With s the shorter side of the weight, l the longer one, n bases B_j (l, r), and one A (r, s) for all of them,

    U = c sum_j B_j L_j A G_j      L_j = diag(lambda[:, j]),  G_j = diag(gamma[j, :])      delta = U, or Uᵀ where o < i.

A and B are random and frozen, shared by all layers and cut to size; only the diagonals are trained, and n = ceil(s / r)
of them reach full rank. lambda is zero at the start.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from refpeft.ops._factors import factors

SIZES = {"o": (3, 2, 1, 4, 5, 7), "i": (2, 3, 1, 5, 4, 8), "r": (2, 1, 3), "bases": (2, 1, 3)}
Variant = Literal["paper", "peft"]


@factors(
    "base_a[r,short] base_b[long,bases,r] lambdas[r,bases] gammas[bases,short]",
    where="short = min(o,i), long = max(o,i)",
)
def delta(weight, base_a, base_b, lambdas, gammas, *, scaling: float, variant: Variant = "paper"):
    """U = c sum_j B_j L_j A G_j, transposed where o < i.

    Parameters
    ----------
    base_a : (r, s)
        A, frozen.
    base_b : (l, n, r)
        B_j = base_b[:, j], frozen.
    lambdas : (r, n)
        Diagonals of L_j as columns.
    gammas : (n, s)
        Diagonals of G_j as rows.
    scaling : float
        c; alpha / r.
    variant : str
        Which column of the B_j row t of L_j A G_j meets: column t of B_j (``"paper"``), or the one at its place t n + j when
        the columns are counted base by base (``"peft"``).
    """
    short, long = _factors(base_a, base_b, lambdas, gammas, scaling, variant)
    return (long.T, short.T) if weight.shape[0] < weight.shape[1] else (short, long)


@delta.vjp
def _(da, db, weight, base_a, base_b, lambdas, gammas, *, scaling, variant="paper"):
    """With S[t, j] = lambda[t, j] A[t] gamma[j], each factor's gradient is dS times the two others, summed over what it lacks."""
    dshort, dlong = (db.T, da.T) if weight.shape[0] < weight.shape[1] else (da, db)
    (long, n, r), s = base_b.shape, base_a.shape[1]
    dlong = scaling * dlong
    dbase_b = dlong.reshape(long, n, r) if variant == "peft" else dlong.reshape(long, r, n).transpose(0, 2, 1)
    d, a, g, z = (
        dshort.reshape(r, n, s),
        np.expand_dims(base_a, 1),
        np.expand_dims(gammas, 0),
        np.expand_dims(lambdas, 2),
    )
    return (
        np.sum(d * (z * g), axis=1),
        dbase_b,
        np.sum(d * (a * g), axis=2),
        np.sum(d * (z * a), axis=0),
    )


def _factors(base_a, base_b, lambdas, gammas, scaling, variant):
    """S (r n, s) with t the slower index of its rows, and c B (l, r n) with its columns in that order or as they lie."""
    (long, n, r), s = base_b.shape, base_a.shape[1]
    short = np.expand_dims(lambdas, 2) * np.expand_dims(base_a, 1) * gammas
    columns = base_b if variant == "peft" else base_b.transpose(0, 2, 1)
    return short.reshape(r * n, s), scaling * columns.reshape(long, r * n)


linear = delta.linear("randlora.linear", sizes=SIZES)
merge = delta.merge("randlora.merge", sizes=SIZES)
unmerge = delta.unmerge


def shapes(o: int, i: int, *, rank: int) -> dict[str, tuple[int, ...]]:
    """Of the bases, n = ceil(s / rank); those of a layer are a corner of those of a larger one."""
    short, long = min(o, i), max(o, i)
    return {"base_a": (rank, short), "base_b": (long, math.ceil(short / rank), rank)}


def bases(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """A and all B_j, uniform with deviation one as in peft, drawn once for the largest o and i of all layers; float64."""
    bound = math.sqrt(3)
    return {name: random.uniform(-bound, bound, shape) for name, shape in shapes(o, i, rank=rank).items()}


def init(o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """What a layer has of its own: lambdas (rank, n) zero and gammas (n, s) constant as in peft, float64."""
    short = min(o, i)
    n = math.ceil(short / rank)
    return {"lambdas": np.zeros((rank, n)), "gammas": np.full((n, short), 1 / max(n, short))}


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: n (r + s), n = ceil(s / r); the bases are frozen."""
    short = min(o, i)
    return math.ceil(short / rank) * (rank + short)
