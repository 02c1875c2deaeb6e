"""PVeRA: VeRA with what goes into B drawn from a normal distribution (arXiv:2512.07703).

The mean and the log-variance are the two halves of a `refpeft.ops.vera` layer with 2 r rows:

    [mu, v] = lambda_d o (A x)        t = mu + noise o exp(v / 2)        y = W x + lambda_b o (B t)

with A (2 r, i), lambda_d (2 r), B (o, r), lambda_b (o). The noise is an input, so that nothing here is random; without it t = mu,
which is VeRA with the first halves of A and lambda_d, and is merged as that (`mean`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops import vera
from refpeft.ops._arrays import plus, rows


@operation(
    "pvera.linear",
    "x[*n,i] weight[o,i] a[2*r,i] b[o,r] lambda_d[2*r] lambda_b[o] noise?[*n,r] bias?[o] mask?: bool[*n,i] -> y[*n,o] "
    "where keep <= 1, keep > 0",
    sizes={"r": (1, 2, 3, 4), "i": (2, 4, 6, 8, 1, 3, 17), "o": (2, 4, 3, 8, 1, 17)},
)
def linear(x, weight, a, b, lambda_d, lambda_b, noise=None, bias=None, mask=None, *, keep: float = 1.0):
    """y = x Wᵀ + bias + lambda_b o (t Bᵀ), where [mu, v] = lambda_d o (drop(x) Aᵀ) and t = mu + noise o exp(v / 2).

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (2 r, i), (o, r)
        Frozen random matrices; the first r rows of A give means, the others log-variances.
    lambda_d, lambda_b : (2 r,), (o,)
        The trained vectors.
    noise : (*n, r), optional
        Standard normal; left out in evaluation, where t = mu.
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
    z, r = x if mask is None else dropout(x, mask, keep), b.shape[1]
    k = lambda_d * (z @ a.T)
    t = k[..., :r] if noise is None else k[..., :r] + noise * np.exp(k[..., r:] / 2)
    return plus(x @ weight.T + lambda_b * (t @ b.T), bias)


@linear.vjp
def _(dy, x, weight, a, b, lambda_d, lambda_b, noise=None, bias=None, mask=None, *, keep=1.0):
    """With h = z Aᵀ, [mu, v] = lambda_d o h, d = exp(v / 2), du = lambda_b o dy and dt = du B: dmu = dt, dv = dt o noise o d / 2,
    dnoise = dt o d; dk = [dmu, dv], dlambda_d = sum dk o h, dh = lambda_d o dk, dA = dhᵀ z, dx = dy W + drop(dh A).
    """
    z, r = x if mask is None else dropout(x, mask, keep), b.shape[1]
    h, du = z @ a.T, lambda_b * dy
    k, dt = lambda_d * h, du @ b
    deviation = np.exp(k[..., r:] / 2)
    dnoise, t, dv = None, k[..., :r], 0.0 * dt
    if noise is not None:
        dnoise, t, dv = dt * deviation, t + noise * deviation, dt * (noise * deviation) / 2
    dk = np.concatenate([dt, dv], axis=-1)
    dh = lambda_d * dk
    dz = dh @ a
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep))
    dlambda_d, dlambda_b = np.sum(rows(dk * h), axis=0), np.sum(rows(dy * (t @ b.T)), axis=0)
    da, db = rows(dh).T @ rows(z), rows(du).T @ rows(t)
    return dx, rows(dy).T @ rows(x), da, db, dlambda_d, dlambda_b, dnoise, rows(dy).sum(axis=0)


@linear.anchors
def _(random, arrays, attributes):
    """Log-variances of zero: the second half of A or of lambda_d."""
    half = {n: arrays[n].copy() for n in ("a", "lambda_d")}
    zeroed = half["a" if random.random() < 0.5 else "lambda_d"]
    zeroed[len(zeroed) // 2 :] = 0
    return half


def mean(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of the VeRA layer that this one is without noise: the first halves of A and lambda_d."""
    halves = {n: parameters[n][: len(parameters[n]) // 2] for n in ("a", "lambda_d") if n in parameters}
    return dict(parameters) | halves


def shapes(o: int, i: int, *, rank: int) -> dict[str, tuple[int, ...]]:
    """Of A and B; those of a layer are a corner of those of a larger one."""
    return {"a": (2 * rank, i), "b": (o, rank)}


def projections(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """A and B, drawn as VeRA's, once for the largest o and i of all layers."""
    return {name: vera.kaiming(random, shape) for name, shape in shapes(o, i, rank=rank).items()}


def init(o: int, *, rank: int, start: float = 0.1) -> dict[str, np.ndarray]:
    """What a layer has of its own, as VeRA: lambda_d (2 rank,) all ``start`` and lambda_b (o,) zero, float64."""
    return vera.init(o, rank=2 * rank, start=start)


def count(o: int, *, rank: int) -> int:
    """Trainable parameters: 2 r + o."""
    return 2 * rank + o
