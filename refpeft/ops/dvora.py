"""DVoRA: DoRA's magnitude over VeRA's update (Liu et al. 2024, arXiv:2402.09353, which combines the two).

VeRA moves the direction of each row, and its length is trained beside it:

    V = W + diag(lambda_b) B diag(lambda_d) A        W' = m V / ||V||

V is VeRA's merged weight, m the new lengths of its rows; a zero row has no direction, and ``norm`` is what it is in `dora`. A and
B are random, frozen and shared by all layers; three vectors are trained.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops import vera
from refpeft.ops._arrays import plus, rows
from refpeft.ops.dora import WIDTHS, Norm, reciprocal_norms, rooted, through_norm

_TRAINED = "lambda_d[r] lambda_b[o] magnitude[o]"


@operation(
    "dvora.linear",
    f"x[*n,i] weight[o,i] a[r,i] b[o,r] {_TRAINED} bias?[o] mask?: bool[*n,i] -> y[*n,o] where keep <= 1, keep > 0",
    sizes=WIDTHS,
)
def linear(
    x, weight, a, b, lambda_d, lambda_b, magnitude, bias=None, mask=None, *, keep: float = 1.0, norm: Norm = "detached"
):
    """y = x Wᵀ + (g - 1) (z Wᵀ) + g u + bias with z = drop(x), u = lambda_b o ((lambda_d o (z Aᵀ)) Bᵀ), g = m / ||V||.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        Frozen random matrices.
    lambda_d, lambda_b : (r,), (o,)
        The vectors that move the direction.
    magnitude : (o,)
        m, the length of each row of W'.
    bias : (o,), optional
        The base layer's bias, which m leaves alone.
    mask : (*n, i) bool, optional
        Dropout on the adapter's way: which elements are kept.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.
    norm : "detached" or "full"
        Whether the norm is a constant on the way back.

    Returns
    -------
    y : (*n, o)
    """
    z = x if mask is None else dropout(x, mask, keep)
    _, inverse = _directed(weight, a, b, lambda_d, lambda_b, norm)
    g, u = magnitude * inverse, vera.path(z, a, b, lambda_d, lambda_b)
    return plus(x @ weight.T + (g - 1) * (z @ weight.T) + g * u, bias)


@linear.vjp
def _(dy, x, weight, a, b, lambda_d, lambda_b, magnitude, bias=None, mask=None, *, keep=1.0, norm="detached"):
    """With dq = (g - 1) dy and du = g dy, which VeRA's path takes back to dz, A, B and its vectors: dx = dy W + drop(dq W + dz),
    dW = dyᵀ x + dqᵀ z, dg = sum dy (z Wᵀ + u), dm = dg / ||V||; the full norm adds its dV to W, A, B and the two vectors.
    """
    z = x if mask is None else dropout(x, mask, keep)
    v, inverse = _directed(weight, a, b, lambda_d, lambda_b, norm)
    g, u = magnitude * inverse, vera.path(z, a, b, lambda_d, lambda_b)
    dq = (g - 1) * dy
    dz, *moved = vera.path_vjp(g * dy, z, a, b, lambda_d, lambda_b)
    dz = dq @ weight + dz
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep))
    dg = np.sum(rows(dy * (z @ weight.T + u)), axis=0)
    moved = [rows(dy).T @ rows(x) + rows(dq).T @ rows(z), *moved]
    if norm == "full":
        dv = through_norm(dg, v, g, inverse)
        moved = [d + e for d, e in zip(moved, vera.merge.backward(dv, weight, a, b, lambda_d, lambda_b))]
    return dx, *moved, dg * inverse, rows(dy).sum(axis=0)


@operation("dvora.merge", f"weight[o,i] a[r,i] b[o,r] {_TRAINED} -> merged[o,i]", sizes=WIDTHS)
def merge(weight, a, b, lambda_d, lambda_b, magnitude, *, norm: Norm = "detached"):
    """merged = m V / ||V||.

    Parameters
    ----------
    weight : (o, i)
        Base weight W.
    a, b : (r, i), (o, r)
    lambda_d, lambda_b, magnitude : (r,), (o,), (o,)
    norm : "detached" or "full"
        Whether the norm is a constant on the way back.

    Returns
    -------
    merged : (o, i)
        Row j has norm ``abs(magnitude[j])``, or is zero.
    """
    v, inverse = _directed(weight, a, b, lambda_d, lambda_b, norm)
    return np.expand_dims(magnitude * inverse, 1) * v


@merge.vjp
def _(dmerged, weight, a, b, lambda_d, lambda_b, magnitude, *, norm="detached"):
    """dV = g dM, with the norm's own share where it is not detached, goes back through VeRA's merge; dm = dg / ||V||."""
    v, inverse = _directed(weight, a, b, lambda_d, lambda_b, norm)
    g, dg = magnitude * inverse, np.sum(dmerged * v, axis=1)
    dv = np.expand_dims(g, 1) * dmerged
    if norm == "full":
        dv = dv + through_norm(dg, v, g, inverse)
    return *vera.merge.backward(dv, weight, a, b, lambda_d, lambda_b), dg * inverse


def _directed(weight, a, b, lambda_d, lambda_b, norm):
    """V, VeRA's merged weight, and the reciprocals of its row norms."""
    v = vera.merge.forward(weight, a, b, lambda_d, lambda_b)
    return v, reciprocal_norms(v, norm)


def scaled(a, b, lambda_d, lambda_b):
    """diag(lambda_d) A and diag(lambda_b) B, the factors with which `dora.norms` and `dora.unmerge` speak of this method."""
    return np.expand_dims(lambda_d, 1) * a, np.expand_dims(lambda_b, 1) * b


@linear.anchors
@merge.anchors
def _(random, arrays, attributes):
    """V with rows whose norm is a power of two, or zero."""
    moved = vera.delta(*(arrays[n] for n in ("a", "b", "lambda_d", "lambda_b")))
    return {"weight": rooted(random, arrays["weight"].shape) - moved}


def init(weight: np.ndarray, *, rank: int, start: float = 0.1) -> dict[str, np.ndarray]:
    """What a layer has of its own: VeRA's lambda_d and lambda_b, and m (o,), the row norms of the weight; float64."""
    magnitude = np.linalg.norm(weight.astype(np.float64), axis=1)
    return vera.init(len(weight), rank=rank, start=start) | {"magnitude": magnitude}


def count(o: int, *, rank: int) -> int:
    """Trainable parameters: r + 2 o."""
    return rank + 2 * o
