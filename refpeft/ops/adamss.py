"""AdaMSS: low-rank updates in subspaces of the weight's rows (AdaMSS, adaptive multi-subspace fine-tuning, in peft).

The leading right singular vectors of W span a frozen space V (r, i). Its rows fall into clusters, each with a map A_g (q, r)
within that space, and each row has weights of its own on the q directions of its cluster:

    delta[k] = B[k] A_g(k) V      B (o, q),  A (groups, q, r),  V (r, i)

What clusters the rows and how the directions start is not part of the operation. B is zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.ops._factors import factors
from refpeft.ops.lora_init import finite

SIZES = {"groups": (2, 1, 3), "q": (1, 2, 3), "r": (2, 1, 3)}


@factors("basis[r,i] inner[groups,q,r] outer[o,q] group: index(groups)[o]")
def delta(basis, inner, outer, group):
    """V, and the rows B[k] A_g(k).

    Parameters
    ----------
    basis : (r, i)
        V, frozen.
    inner : (groups, q, r)
        A_g.
    outer : (o, q)
        B, a row for each output.
    group : (o,) int64
        The cluster of each row.
    """
    return basis, np.sum(np.expand_dims(outer, 2) * take(inner, group), axis=1)


@delta.vjp
def _(da, db, basis, inner, outer, group):
    """dA_g gathers B[k]ᵀ dM[k] over the rows of the cluster, dB[k] = A_g(k) dM[k]."""
    d = np.expand_dims(db, 1)
    dinner = scatter_add(np.expand_dims(outer, 2) * d, group, inner.shape[0])
    return da, dinner, np.sum(take(inner, group) * d, axis=2)


linear = delta.linear("adamss.linear", sizes=SIZES)
merge = delta.merge("adamss.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(
    random: np.random.Generator, weight: np.ndarray, *, rank: int, groups: int, directions: int
) -> dict[str, np.ndarray]:
    """Clusters of the rows of W's left singular vectors by k-means; each starts at its own leading directions, B at zero.

    peft clusters with scikit-learn's k-means and a fixed seed; which rows are together then differs.

    Parameters
    ----------
    random : numpy.random.Generator
    weight : (o, i)
    rank, groups, directions : int

    Returns
    -------
    dict of str to array
        basis (r, i), inner (groups, q, r), outer (o, q) and group (o,) int64; r at most min(o, i).
    """
    from scipy.cluster.vq import kmeans2

    left, _, right = np.linalg.svd(finite("adamss", weight), full_matrices=False)
    rank = min(rank, len(right))
    left = left[:, :rank]
    group = kmeans2(left, min(groups, len(left)), iter=10, minit="points", seed=random)[1].astype(np.int64)
    inner = np.zeros((groups, directions, rank))
    for g in range(groups):
        leading = np.linalg.svd(left[group == g], full_matrices=False)[2][:directions]
        inner[g, : len(leading)] = leading
    return {"basis": right[:rank], "inner": inner, "outer": np.zeros((len(left), directions)), "group": group}


def count(o: int, i: int, *, rank: int, groups: int, directions: int) -> int:
    """Trainable parameters: q (o + groups r), r at most min(o, i)."""
    return directions * (o + groups * min(rank, o, i))
