"""VeRA: vector-based random matrix adaptation (Kopiczko et al. 2023, arXiv:2310.11454, equation 2), and PVeRA.

A and B are random, frozen and shared by all layers; each layer trains two vectors:

    W' = W + diag(lambda_b) B diag(lambda_d) A        A (r, i), lambda_d (r), B (o, r), lambda_b (o)

lambda_b is zero at the start, so that training begins at the base model.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._update import update

_LAYER = "bias?[o] mask?: bool[*n,i] -> y[*n,o] where keep <= 1, keep > 0"


@operation("vera.linear", f"x[*n,i] weight[o,i] a[r,i] b[o,r] lambda_d[r] lambda_b[o] {_LAYER}")
def linear(x, weight, a, b, lambda_d, lambda_b, bias=None, mask=None, *, keep: float = 1.0):
    """y = x Wᵀ + bias + lambda_b o ((lambda_d o (drop(x) Aᵀ)) Bᵀ), where drop(x) = mask x / keep.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        Frozen random matrices.
    lambda_d, lambda_b : (r,), (o,)
        The trained vectors.
    bias : (o,), optional
        The base layer's bias.
    mask : (*n, i) bool, optional
        Dropout before A: which elements are kept.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (*n, o)
    """
    z = x if mask is None else dropout(x, mask, keep)
    return plus(x @ weight.T + path(z, a, b, lambda_d, lambda_b), bias)


@linear.vjp
def _(dy, x, weight, a, b, lambda_d, lambda_b, bias=None, mask=None, *, keep=1.0):
    """That of the path; dx = dy W + drop(dz)."""
    z = x if mask is None else dropout(x, mask, keep)
    dz, *gradients = path_vjp(dy, z, a, b, lambda_d, lambda_b)
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep))
    return dx, rows(dy).T @ rows(x), *gradients, rows(dy).sum(axis=0)


def path(z, a, b, lambda_d, lambda_b):
    """lambda_b o ((lambda_d o (z Aᵀ)) Bᵀ)."""
    return lambda_b * ((lambda_d * (z @ a.T)) @ b.T)


def path_vjp(dy, z, a, b, lambda_d, lambda_b):
    """With h = z Aᵀ, t = lambda_d o h, u = t Bᵀ: dlambda_b = sum dy o u, du = lambda_b o dy, dt = du B, dB = duᵀ t,
    dlambda_d = sum dt o h, dh = lambda_d o dt, dA = dhᵀ z, dz = dh A.
    """
    h = z @ a.T
    t, du = lambda_d * h, lambda_b * dy
    dt = du @ b
    dh = lambda_d * dt
    dlambda_d, dlambda_b = np.sum(rows(dt * h), axis=0), np.sum(rows(dy * (t @ b.T)), axis=0)
    return dh @ a, rows(dh).T @ rows(z), rows(du).T @ rows(t), dlambda_d, dlambda_b


@update("a[r,i] b[o,r] lambda_d[r] lambda_b[o]")
def delta(a, b, lambda_d, lambda_b):
    """delta = (diag(lambda_b) B) (diag(lambda_d) A).

    Parameters
    ----------
    a, b : (r, i), (o, r)
        Frozen random matrices.
    lambda_d, lambda_b : (r,), (o,)
        The trained vectors.
    """
    return (np.expand_dims(lambda_b, 1) * b) @ (np.expand_dims(lambda_d, 1) * a)


@delta.vjp
def _(ddelta, a, b, lambda_d, lambda_b):
    """With p = diag(lambda_b) B and q = diag(lambda_d) A: dp = ddelta qᵀ, dq = pᵀ ddelta, and each by its diagonal."""
    left, right = np.expand_dims(lambda_b, 1), np.expand_dims(lambda_d, 1)
    dp, dq = ddelta @ (right * a).T, (left * b).T @ ddelta
    return right * dq, left * dp, np.sum(a * dq, axis=1), np.sum(b * dp, axis=1)


merge = delta.merge("vera.merge")
unmerge = delta.unmerge


def shapes(o: int, i: int, *, rank: int) -> dict[str, tuple[int, ...]]:
    """Of A and B; those of a layer are a corner of those of a larger one."""
    return {"a": (rank, i), "b": (o, rank)}


def kaiming(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Kaiming-uniform: within sqrt(6 / fan-in) of zero, float64."""
    bound = math.sqrt(6 / shape[1])
    return random.uniform(-bound, bound, shape)


def projections(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """A and B, drawn once for the largest o and i of all layers."""
    return {name: kaiming(random, shape) for name, shape in shapes(o, i, rank=rank).items()}


def init(o: int, *, rank: int, start: float = 0.1) -> dict[str, np.ndarray]:
    """What a layer has of its own: lambda_d (rank,) all ``start`` and lambda_b (o,) zero, float64."""
    return {"lambda_d": np.full(rank, start), "lambda_b": np.zeros(o)}


def count(o: int, *, rank: int) -> int:
    """Trainable parameters: r + o."""
    return rank + o
