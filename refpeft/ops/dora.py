"""DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3).

A weight is split into the length of each row and its direction. LoRA moves the direction, and the lengths are trained:

    V = W + s B A        g = m / ||V||        W' = g V        ||V||_j = sqrt(sum_i V_ji^2)

A zero row has no direction: there g = 0, and the row of W' is zero. At the start B = 0 and m = ||W||, so that training begins at
the base model. ``norm="detached"`` takes the norm for a constant on the way back, as section 4.3 proposes and libraries do;
``norm="full"`` is the gradient of equation 5 itself.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.numerics.primitives import detach, dropout
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops.lora_init import kaiming_uniform, zeros

Norm = Literal["detached", "full"]
# A row of one element has nowhere to turn, so that its full gradient is zero and no budget says anything about it.
WIDTHS = {"i": (2, 3, 5, 7, 4, 8, 11, 13, 16, 17)}


def directed(weight, a, b, scaling, norm):
    """V, and the reciprocals of its row norms."""
    v = weight + scaling * (b @ a)
    return v, reciprocal_norms(v, norm)


def reciprocal_norms(v, norm):
    """1 / ||V|| of each row, zero for a zero row."""
    length = np.sqrt(np.sum(v * v, axis=1))
    length = detach(length) if norm == "detached" else length
    return np.where(length > 0, 1 / np.where(length > 0, length, 1.0), 0.0)


def through_norm(dg, v, g, inverse):
    """What reaches V by its norm: d||V|| = -dg g / ||V||, and d||V|| / dV = V / ||V||."""
    return np.expand_dims(-(dg * (g * inverse)) * inverse, 1) * v


@operation(
    "dora.linear",
    "x[*n,i] weight[o,i] a[r,i] b[o,r] magnitude[o] bias?[o] mask?: bool[*n,i] -> y[*n,o] where keep <= 1, keep > 0",
    sizes=WIDTHS,
)
def linear(
    x, weight, a, b, magnitude, bias=None, mask=None, *, scaling: float, keep: float = 1.0, norm: Norm = "detached"
):
    """y = x Wᵀ + (g - 1) (z Wᵀ) + g u + bias with z = drop(x), u = s z Aᵀ Bᵀ; without dropout, y = g (x Vᵀ) + bias.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        The factors that move the direction.
    magnitude : (o,)
        m, the length of each row of W'.
    bias : (o,), optional
        The base layer's bias, which m leaves alone.
    mask : (*n, i) bool, optional
        Dropout on the adapter's way: which elements are kept.
    scaling : float
        s; alpha / r.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.
    norm : "detached" or "full"
        Whether the norm is a constant on the way back.

    Returns
    -------
    y : (*n, o)
    """
    z = x if mask is None else dropout(x, mask, keep)
    _, inverse = directed(weight, a, b, scaling, norm)
    g, u = magnitude * inverse, (scaling * (z @ a.T)) @ b.T
    return plus(x @ weight.T + (g - 1) * (z @ weight.T) + g * u, bias)


@linear.vjp
def _(dy, x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached"):
    """With h = z Aᵀ, dq = (g - 1) dy, du = s g dy and dh = du B: dx = dy W + drop(dq W + dh A), dW = dyᵀ x + dqᵀ z,
    dA = dhᵀ z, dB = duᵀ h, dg = sum dy (z Wᵀ + s h Bᵀ), dm = dg / ||V||; the full norm adds its dV to those of W, A and B.
    """
    z = x if mask is None else dropout(x, mask, keep)
    v, inverse = directed(weight, a, b, scaling, norm)
    g, h = magnitude * inverse, z @ a.T
    dq, du = (g - 1) * dy, scaling * (g * dy)
    dh = du @ b
    dz = dq @ weight + dh @ a
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep))
    dg = np.sum(rows(dy * (z @ weight.T + (scaling * h) @ b.T)), axis=0)
    dweight, da, db = rows(dy).T @ rows(x) + rows(dq).T @ rows(z), rows(dh).T @ rows(z), rows(du).T @ rows(h)
    if norm == "full":
        dv = through_norm(dg, v, g, inverse)
        dweight, da, db = dweight + dv, da + b.T @ (scaling * dv), db + (scaling * dv) @ a.T
    return dx, dweight, da, db, dg * inverse, rows(dy).sum(axis=0)


@operation("dora.merge", "weight[o,i] a[r,i] b[o,r] magnitude[o] -> merged[o,i]", sizes=WIDTHS)
def merge(weight, a, b, magnitude, *, scaling: float, norm: Norm = "detached"):
    """merged = g V.

    Parameters
    ----------
    weight : (o, i)
        Base weight W.
    a, b : (r, i), (o, r)
    magnitude : (o,)
    scaling : float
        s.
    norm : "detached" or "full"
        Whether the norm is a constant on the way back.

    Returns
    -------
    merged : (o, i)
        Row j has norm ``abs(magnitude[j])``, or is zero.
    """
    v, inverse = directed(weight, a, b, scaling, norm)
    return np.expand_dims(magnitude * inverse, 1) * v


@merge.vjp
def _(dmerged, weight, a, b, magnitude, *, scaling, norm="detached"):
    """dV = g dM, with the norm's own share where it is not detached; dW = dV, dA = Bᵀ (s dV), dB = (s dV) Aᵀ; dm = dg / ||V||."""
    v, inverse = directed(weight, a, b, scaling, norm)
    g, dg = magnitude * inverse, np.sum(dmerged * v, axis=1)
    dv = np.expand_dims(g, 1) * dmerged
    if norm == "full":
        dv = dv + through_norm(dg, v, g, inverse)
    return dv, b.T @ (scaling * dv), (scaling * dv) @ a.T, dg * inverse


@linear.anchors
@merge.anchors
def _(random, arrays, attributes):
    """V with rows whose norm is a power of two, or zero."""
    v = rooted(random, arrays["weight"].shape)
    return {"weight": v - attributes["scaling"] * (arrays["b"] @ arrays["a"])}


def rooted(random, shape):
    """Rows whose norm is a power of two, or zero: one entry 2^k, or four of them."""
    v = np.zeros(shape)
    for row in v:
        count = 4 if len(row) >= 4 and random.random() < 0.5 else 1
        chosen = random.permutation(len(row))[:count]
        row[chosen] = random.choice([-1.0, 1.0], count) * random.choice([0.0, 1.0, 1.0, 1.0, 2.0])
    return v


def norms(weight: np.ndarray, a: np.ndarray, b: np.ndarray, *, scaling: float) -> np.ndarray:
    """||W + s B A|| of each row in float64: what the magnitude is at the start, and what `unmerge` needs back."""
    v = weight.astype(np.float64) + scaling * (b.astype(np.float64) @ a.astype(np.float64))
    return np.sqrt(np.sum(v * v, axis=1))


def unmerge(merged, a, b, magnitude, norms, *, scaling: float) -> np.ndarray:
    """W = M ||V|| / m - s B A, rounded once to the dtype of ``merged``.

    A merged row has lost its norm, so that `norms` must have been kept from before the merge.

    Parameters
    ----------
    merged : (o, i)
    a, b, magnitude
        As merged; no element of ``magnitude`` is zero unless its row of V is.
    norms : (o,)
        What `norms` gave for the base weight.
    scaling : float
    """
    a, b, magnitude, norms = (np.asarray(p, np.float64) for p in (a, b, magnitude, norms))
    factor = np.where(norms > 0, norms / np.where(norms > 0, magnitude, 1.0), 1.0)
    back = factor[:, None] * merged.astype(np.float64) - scaling * (b @ a)
    return store(back, as_format(merged.dtype.name))


def init(random: np.random.Generator, weight: np.ndarray, *, rank: int) -> dict[str, np.ndarray]:
    """A Kaiming-uniform, B zero, m the row norms of the weight; float64.

    Returns
    -------
    dict
        a (rank, i), b (o, rank), magnitude (o,).
    """
    o, i = weight.shape
    a, b = kaiming_uniform(random, (rank, i)), zeros((o, rank))
    return {"a": a, "b": b, "magnitude": norms(weight, a, b, scaling=1.0)}


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: r (o + i) + o."""
    return rank * (o + i) + o
