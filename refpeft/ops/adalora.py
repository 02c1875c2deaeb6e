"""AdaLoRA: LoRA in the form of a singular value decomposition (Zhang et al. 2023, arXiv:2303.10512, equations 3 and 4).

The update keeps its singular values e apart from the vectors, so that a triplet (column of B, e_k, row of A) can be pruned by
setting e_k to zero and come back later:

    W' = W + s B diag(e) A        A (r, i), e (r), B (o, r)

e is zero and A and B are random at the start, so that training begins at the base model. A penalty keeps A and B near
orthogonal. Which triplets stay is decided in `refpeft.ops.adalora_budget`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import dropout, positions
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._update import update
from refpeft.ops.lora_init import gaussian


@operation(
    "adalora.linear",
    "x[*n,i] weight[o,i] a[r,i] e[r] b[o,r] bias?[o] mask?: bool[*n,i] -> y[*n,o] where keep <= 1, keep > 0",
)
def linear(x, weight, a, e, b, bias=None, mask=None, *, scaling: float, keep: float = 1.0):
    """y = x Wᵀ + bias + s drop(x) (diag(e) A)ᵀ Bᵀ, where drop(x) = mask x / keep.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, e, b : (r, i), (r,), (o, r)
        Right singular vectors as rows, singular values, left singular vectors as columns.
    bias : (o,), optional
        The base layer's bias.
    mask : (*n, i) bool, optional
        Dropout before A: which elements are kept.
    scaling : float
        s; alpha / r.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (*n, o)
    """
    z = x if mask is None else dropout(x, mask, keep)
    h = z @ (np.expand_dims(e, 1) * a).T
    return plus(x @ weight.T + (scaling * h) @ b.T, bias)


@linear.vjp
def _(dy, x, weight, a, e, b, bias=None, mask=None, *, scaling, keep=1.0):
    """With q = diag(e) A, h = z qᵀ, du = s dy and dh = du B: dx = dy W + drop(dh q), dq = dhᵀ z, dA = diag(e) dq,
    de = sum_i (A o dq), dB = duᵀ h.
    """
    z = x if mask is None else dropout(x, mask, keep)
    q, du = np.expand_dims(e, 1) * a, scaling * dy
    dh = du @ b
    dz, dq = dh @ q, rows(dh).T @ rows(z)
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep))
    db = rows(du).T @ rows(z @ q.T)
    return dx, rows(dy).T @ rows(x), np.expand_dims(e, 1) * dq, np.sum(a * dq, axis=1), db, rows(dy).sum(axis=0)


@update("a[r,i] e[r] b[o,r]")
def delta(a, e, b, *, scaling: float):
    """delta = s B (diag(e) A).

    Parameters
    ----------
    a, e, b : (r, i), (r,), (o, r)
        Right singular vectors as rows, singular values, left singular vectors as columns.
    scaling : float
        s; alpha / r.
    """
    return scaling * (b @ (np.expand_dims(e, 1) * a))


@delta.vjp
def _(ddelta, a, e, b, *, scaling):
    """With u = s ddelta and q = diag(e) A: dq = Bᵀ u, dA = diag(e) dq, de = sum_i (A o dq), dB = u qᵀ."""
    u = scaling * ddelta
    dq = b.T @ u
    return np.expand_dims(e, 1) * dq, np.sum(a * dq, axis=1), u @ (np.expand_dims(e, 1) * a).T


merge = delta.merge("adalora.merge")
unmerge = delta.unmerge


@operation("adalora.orthogonality", "a[r,i] b[o,r] -> penalty[]")
def orthogonality(a, b, *, variant: Literal["squared", "norm"] = "squared"):
    """How far A and B are from orthogonal: ||A Aᵀ - I||² + ||Bᵀ B - I||², Frobenius norms (equation 4).

    Parameters
    ----------
    a : (r, i)
        Right singular vectors as rows.
    b : (o, r)
        Left singular vectors as columns.
    variant : "squared" or "norm"
        The paper's; or (||A Aᵀ - I|| + ||Bᵀ B - I||) / 2, which peft averages over the layers.

    Returns
    -------
    penalty : ()
    """
    squares = [np.sum(g * g) for g in (_off(a @ a.T), _off(b.T @ b))]
    return squares[0] + squares[1] if variant == "squared" else (np.sqrt(squares[0]) + np.sqrt(squares[1])) / 2


@orthogonality.vjp
def _(dpenalty, a, b, *, variant="squared"):
    """With G = A Aᵀ - I and K = Bᵀ B - I: dG = 2 G and dK = 2 K, or G / (2 ||G||) and K / (2 ||K||), zero at zero;
    dA = dG A + dGᵀ A, dB = B dK + B dKᵀ.
    """
    g, k = _off(a @ a.T), _off(b.T @ b)
    dg, dk = (dpenalty * (2 * m if variant == "squared" else _directed(m) / 2) for m in (g, k))
    return dg @ a + dg.T @ a, b @ dk + b @ dk.T


def _off(gram):
    """What a Gram matrix lacks of the identity."""
    place = positions(gram, 0)
    return gram - np.where(np.equal(np.expand_dims(place, 1), np.expand_dims(place, 0)), 1.0, 0.0)


def _directed(matrix):
    """``matrix`` by its Frobenius norm; zero where it is zero."""
    norm = np.sqrt(np.sum(matrix * matrix))
    return np.where(norm > 0, matrix / np.where(norm > 0, norm, 1.0), 0.0)


@orthogonality.anchors
def _(random, arrays, attributes):
    """For the norms: rows of A and columns of B from a permutation matrix, of which 1, 4 or 16 are zero."""
    if attributes["variant"] == "squared":
        return {}
    return {"a": _part(random, arrays["a"].shape), "b": _part(random, arrays["b"].shape[::-1]).T}


def _part(random, shape):
    count, width = shape
    zeros = next((z for z in (1, 4, 16) if count - z <= width), count)
    made = np.zeros(shape)
    kept = random.permutation(count)[: max(count - zeros, 0)]
    made[kept, random.permutation(width)[: len(kept)]] = random.choice([-1.0, 1.0], len(kept))
    return made


def init(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """A and B normal with deviation 0.02, e zero, as the authors' code and peft have it.

    Returns
    -------
    dict of str to float64 array
        a (rank, i), e (rank,), b (o, rank).
    """
    a, b = gaussian(random, (rank, i), std=0.02), gaussian(random, (o, rank), std=0.02)
    return {"a": a, "e": np.zeros(rank), "b": b}


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: r (o + i + 1)."""
    return rank * (o + i + 1)
