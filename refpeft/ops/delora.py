"""DeLoRA: decoupling angles and strength in low-rank adaptation (Bini et al. 2025, arXiv:2503.18225).

Each of the r products of a column of B and a row of A is brought to norm one, and a trained boundary lambda says how far their
mean may go. The library then multiplies the inputs by the norms n of W's columns; without ``norms``, n is one:

    W' = W + B diag(c) A diag(n)        c_k = lambda / (r ||b_k|| ||a_k||)        A (r, i), B (o, r)

so that ||B diag(c) A|| <= abs(lambda), in the Frobenius norm. Norms count as ``floor`` where they are smaller, so that B may be
zero at the start, and training begins at the base model.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform

_RANKS = (1, 2, 4, 8, 3, 5, 16, 7)


def _strengths(a, b, boundary, floor):
    """c, and the norms of the rows of A and of the columns of B as they are and as they count."""
    la, lb = np.sqrt(np.sum(a * a, axis=1)), np.sqrt(np.sum(b * b, axis=0))
    na, nb = np.maximum(la, floor), np.maximum(lb, floor)
    return boundary / a.shape[0] / (na * nb), (la, lb, na, nb)


def _through_norms(dc, c, a, b, lengths, floor):
    """What reaches A, B and lambda by c: dn = -dc c / n for both norms, which pass it on where they are not below the floor."""
    la, lb, na, nb = lengths
    along_a = np.where(la >= floor, -(dc * c) / na / na, 0.0)
    along_b = np.where(lb >= floor, -(dc * c) / nb / nb, 0.0)
    return np.expand_dims(along_a, 1) * a, along_b * b, np.sum(dc / (na * nb)) / a.shape[0]


@operation(
    "delora.linear",
    "x[*n,i] weight[o,i] a[r,i] b[o,r] boundary[] norms?[i] bias?[o] -> y[*n,o] where r >= 1, floor > 0",
    sizes={"r": _RANKS},
)
def linear(x, weight, a, b, boundary, norms=None, bias=None, *, floor: float = 1e-4):
    """y = x Wᵀ + bias + (c o ((n o x) Aᵀ)) Bᵀ.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        Factors, whose norms do not matter above the floor.
    boundary : ()
        lambda.
    norms : (i,), optional
        n, in the library the norms of W's columns at the start; ones where not given.
    bias : (o,), optional
        The base layer's bias.
    floor : float
        What a norm counts as at least, above 0.

    Returns
    -------
    y : (*n, o)
    """
    z = x if norms is None else x * norms
    c, _ = _strengths(a, b, boundary, floor)
    return plus(x @ weight.T + (c * (z @ a.T)) @ b.T, bias)


@linear.vjp
def _(dy, x, weight, a, b, boundary, norms=None, bias=None, *, floor=1e-4):
    """With z = n o x, h = z Aᵀ, k = c o h, dk = dy B and dh = c o dk: dc = sum dk o h, dA = dhᵀ z, dB = dyᵀ k, dz = dh A,
    dx = dy W + n o dz, dn = sum x o dz; what goes through c is added to dA and dB.
    """
    z = x if norms is None else x * norms
    c, lengths = _strengths(a, b, boundary, floor)
    h, dk = z @ a.T, dy @ b
    dh = c * dk
    dz = dh @ a
    through_a, through_b, dboundary = _through_norms(np.sum(rows(dk * h), axis=0), c, a, b, lengths, floor)
    dx = dy @ weight + (dz if norms is None else dz * norms)
    da, db = rows(dh).T @ rows(z) + through_a, rows(dy).T @ rows(c * h) + through_b
    dnorms = np.sum(rows(x * dz), axis=0)
    return dx, rows(dy).T @ rows(x), da, db, dboundary, dnorms, rows(dy).sum(axis=0)


@update("a[r,i] b[o,r] boundary[] norms?[i]", "r >= 1, floor > 0")
def delta(a, b, boundary, norms=None, *, floor: float = 1e-4):
    """delta = B (diag(c) A) diag(n).

    Parameters
    ----------
    a, b : (r, i), (o, r)
        Factors, whose norms do not matter above the floor.
    boundary : ()
        lambda.
    norms : (i,), optional
        n; ones where not given.
    floor : float
        What a norm counts as at least, above 0.
    """
    c, _ = _strengths(a, b, boundary, floor)
    product = b @ (np.expand_dims(c, 1) * a)
    return product if norms is None else product * norms


@delta.vjp
def _(ddelta, a, b, boundary, norms=None, *, floor=1e-4):
    """With q = diag(c) A and u = ddelta diag(n): dq = Bᵀ u, dB = u qᵀ, dA = diag(c) dq, dc = sum_i A o dq,
    dn = sum_o ddelta o B q; what goes through c is added to dA and dB.
    """
    c, lengths = _strengths(a, b, boundary, floor)
    q, u = np.expand_dims(c, 1) * a, ddelta if norms is None else ddelta * norms
    dq = b.T @ u
    through_a, through_b, dboundary = _through_norms(np.sum(a * dq, axis=1), c, a, b, lengths, floor)
    dnorms = np.sum(ddelta * (b @ q), axis=0)
    return np.expand_dims(c, 1) * dq + through_a, u @ q.T + through_b, dboundary, dnorms


merge = delta.merge("delora.merge", sizes={"r": _RANKS})
unmerge = delta.unmerge


@linear.anchors
@merge.anchors
def _(random, arrays, attributes):
    """Rows of A and columns of B with norms that are powers of two, or zero, and a boundary that r divides."""
    a, b = _spiked(random, arrays["a"].shape), _spiked(random, arrays["b"].shape[::-1]).T
    return {"a": a, "b": b, "boundary": arrays["boundary"] * len(a)}


def _spiked(random, shape):
    """Each row one entry 2^k or four of them."""
    made = np.zeros(shape)
    for row in made:
        count = 4 if len(row) >= 4 and random.random() < 0.5 else 1
        row[random.permutation(len(row))[:count]] = random.choice([-1.0, 1.0], count) * random.choice([0.0, 1.0, 2.0])
    return made


def init(
    random: np.random.Generator, weight: np.ndarray, *, rank: int, boundary: float = 15.0
) -> dict[str, np.ndarray]:
    """A Kaiming-uniform, B zero, lambda as given, n the norms of the weight's columns; float64.

    Returns
    -------
    dict
        a (rank, i), b (o, rank), boundary (), norms (i,).
    """
    o, i = weight.shape
    norms = np.sqrt(np.sum(weight.astype(np.float64) ** 2, axis=0))
    return {
        "a": kaiming_uniform(random, (rank, i)),
        "b": np.zeros((o, rank)),
        "boundary": np.array(boundary),
        "norms": norms,
    }


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: r (o + i) + 1."""
    return rank * (o + i) + 1
