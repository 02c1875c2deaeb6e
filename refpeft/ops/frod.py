"""FRoD: a diagonal and rotations between frozen bases (doi:10.1609/aaai.v40i31.39813, as peft implements it).

All layers of one kind share a basis V, and each weight is written in it:

    W = U diag(l) Vᵀ        V (i, i),  U (o, i) with columns of norm one,  l (i)

U and V are frozen. What is trained is l, and some elements S beside the diagonal, zero at the start:

    W' = U (diag(l) + S) Vᵀ        S[p_j] = s_j, zero elsewhere        p: k places in the (i, i) matrix, counted along its rows

W' does not need W: the layer is a product of three matrices, and the merged weight takes W's place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows

_PARAMETERS = "u[o,i] v[i,i] diagonal[i] sparse[k] places: index(i*i)[k]"
_SIZES = {"k": (3, 1, 2, 0, 5), "i": (3, 2, 4, 5, 8, 13, 1)}


@operation("frod.linear", f"x[*n,i] {_PARAMETERS} bias?[o] -> y[*n,o]", sizes=_SIZES)
def linear(x, u, v, diagonal, sparse, places, bias=None):
    """y = x V (diag(l) + Sᵀ) Uᵀ + bias.

    Parameters
    ----------
    x : (*n, i)
    u : (o, i)
        U, frozen, of this layer.
    v : (i, i)
        V, frozen, of all layers of a kind.
    diagonal : (i,)
        l.
    sparse : (k,)
        s.
    places : (k,) int64
        Row times i plus column; values at a place that comes twice add up.
    bias : (o,), optional
        The base layer's bias.

    Returns
    -------
    y : (*n, o)
    """
    z = x @ v
    return plus((z * diagonal + z @ _scattered(sparse, places, diagonal).T) @ u.T, bias)


@linear.vjp
def _(dy, x, u, v, diagonal, sparse, places, bias=None):
    """With z = x V, m = z o l + z Sᵀ and dm = dy U: dU = dyᵀ m, dl = sum of dm o z, dS = dmᵀ z, dz = dm o l + dm S, dV = xᵀ dz,
    dx = dz Vᵀ.
    """
    z, s = x @ v, _scattered(sparse, places, diagonal)
    m, dm = z * diagonal + z @ s.T, dy @ u
    dz = dm * diagonal + dm @ s
    ds = (rows(dm).T @ rows(z)).reshape(len(diagonal) * len(diagonal))
    dl = np.sum(rows(dm * z), axis=0)
    return dz @ v.T, rows(dy).T @ rows(m), rows(x).T @ rows(dz), dl, take(ds, places), rows(dy).sum(axis=0)


@operation("frod.merge", f"{_PARAMETERS} -> merged[o,i]", sizes=_SIZES)
def merge(u, v, diagonal, sparse, places):
    """merged = U (diag(l) + S) Vᵀ."""
    return (u * diagonal + u @ _scattered(sparse, places, diagonal)) @ v.T


@merge.vjp
def _(dmerged, u, v, diagonal, sparse, places):
    """With m = U diag(l) + U S and dm = dmerged V: dV = dmergedᵀ m, dl = sums of U o dm over rows, dS = Uᵀ dm,
    dU = dm diag(l) + dm Sᵀ.
    """
    s = _scattered(sparse, places, diagonal)
    m, dm = u * diagonal + u @ s, dmerged @ v
    ds = (u.T @ dm).reshape(len(diagonal) * len(diagonal))
    return dm * diagonal + dm @ s.T, dmerged.T @ m, np.sum(u * dm, axis=0), take(ds, places)


def _scattered(sparse, places, diagonal):
    """S (i, i)."""
    i = diagonal.shape[0]
    return scatter_add(sparse, places, i * i).reshape(i, i)


def basis(weights: Sequence[np.ndarray], *, ridge: float = 1e-3) -> np.ndarray:
    """V (i, i) from the weights (o, i) of all layers of a kind: directions that they have in common.

    With their stack Q R and Q_j the rows of one weight: V = Rᵀ E, E the eigenvectors of the mean of (Q_jᵀ Q_j + ridge I)^-1.
    Where the stack has fewer rows than columns, V is its right singular vectors.
    """
    stack = np.concatenate([np.asarray(w, np.float64) for w in weights])
    if stack.shape[0] < stack.shape[1]:
        return np.linalg.svd(stack, full_matrices=True)[2].T
    q, r = np.linalg.qr(stack)
    parts = np.split(q, np.cumsum([len(w) for w in weights])[:-1])
    inverses = [np.linalg.inv(p.T @ p + ridge * np.eye(len(r))) for p in parts]
    return r.T @ np.linalg.eigh(sum(inverses) / len(parts))[1]


def init(random: np.random.Generator, weight: np.ndarray, *, rate: float, basis: np.ndarray) -> dict[str, np.ndarray]:
    """U and l that write the weight in the basis, and a share ``rate`` of places beside the diagonal, with zeros.

    Parameters
    ----------
    random : numpy.random.Generator
    weight : (o, i)
    rate : float
        Share of the (i, i) elements; at least one where it is not zero, and none on the diagonal.
    basis : (i, i)
        V; where it is singular, W is written as far as that goes.

    Returns
    -------
    dict of str to float64 array
    """
    i = weight.shape[1]
    u, length = written(weight, basis)
    beside = np.flatnonzero(~np.eye(i, dtype=bool))
    places = np.sort(random.permutation(beside)[: count(i, rate=rate) - i])
    return {"u": u, "v": basis, "diagonal": length, "sparse": np.zeros(len(places)), "places": places}


def written(weight: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U (o, i) and l (i) of a weight in a basis."""
    try:
        both = np.linalg.solve(basis, np.asarray(weight, np.float64).T).T
    except np.linalg.LinAlgError:
        both = np.asarray(weight, np.float64) @ np.linalg.pinv(basis, rcond=1e-6).T
    length = np.linalg.norm(both, axis=0)
    return np.where(length > 1e-12, both / np.where(length > 1e-12, length, 1.0), 0.0), length


def count(i: int, *, rate: float) -> int:
    """Trainable parameters: i, and a share of i i, rounded down, whatever o is."""
    beside = i * i - i
    return i + min(max(int(i * i * rate), 1 if rate > 0 else 0), beside)
