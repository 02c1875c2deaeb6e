"""RoAd: rotations of pairs of features, with scales (Liao and Monz 2024, arXiv:2409.00119).

The layer's outputs are paired, and each pair is turned by an angle and scaled,

    y_p = c_p h_p - s_p h_q        y_q = c_q h_q + s_q h_p        h = x Wᵀ + bias,  c = a cos t,  s = a sin t

so that W' = R W and bias' = R bias. Pairs lie half a group apart, as libraries have it: in a group of g outputs p goes with
p + g / 2; g = 2 pairs neighbours, as the paper writes it. What pairs share makes the variants: ``road_1`` one angle and scale for
a pair, ``road_2`` one for each output, ``road_4`` one for each of c and s of each output. Angles are 0 and scales 1 at the
start, so that training begins at the base model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows

Variant = Literal["road_1", "road_2", "road_4"]

_SIZE = "o*(is(variant,road_1)+2*is(variant,road_2)+4*is(variant,road_4))//2"
_GROUPS = "group >= 2, group//2*2 = group, o//group*group = o"
_SIZES = {"group": (2, 4, 6, 8), "o": (4, 8, 2, 12, 6, 16, 24)}


def _spread(v, group: int, variant: Variant):
    """What c and s are made of, (o,) each, from a parameter as it is held."""
    if variant == "road_1":
        pairs = v.reshape(v.shape[0] // (group // 2), 1, group // 2)
        v = np.concatenate([pairs, pairs], axis=1).reshape(2 * v.shape[0])
    if variant != "road_4":
        return v, v
    both = v.reshape(v.shape[0] // (2 * group), 2, group)
    return both[:, 0].reshape(v.shape[0] // 2), both[:, 1].reshape(v.shape[0] // 2)


def _gather(dc, ds, group: int, variant: Variant):
    """The adjoint of `_spread`."""
    size = dc.shape[0]
    if variant == "road_4":
        return np.stack([dc.reshape(size // group, group), ds.reshape(size // group, group)], axis=1).reshape(2 * size)
    if variant == "road_2":
        return dc + ds
    halves = (dc + ds).reshape(size // group, 2, group // 2)
    return np.sum(halves, axis=1).reshape(size // 2)


def _factors(theta, alpha, group, variant):
    """c and s, (o,) each."""
    (tc, ts), (ac, as_) = _spread(theta, group, variant), _spread(alpha, group, variant)
    return ac * np.cos(tc), as_ * np.sin(ts)


def _to_factors(dc, ds, theta, alpha, group, variant):
    """dtheta and dalpha: dt = -dc a sin t or ds a cos t, da = dc cos t or ds sin t."""
    (tc, ts), (ac, as_) = _spread(theta, group, variant), _spread(alpha, group, variant)
    dtheta = _gather(-dc * (ac * np.sin(tc)), ds * (as_ * np.cos(ts)), group, variant)
    return dtheta, _gather(dc * np.cos(tc), ds * np.sin(ts), group, variant)


def _swap(h, group: int, sign: float):
    """Of each pair (h_p, h_q) along the last axis: (-sign h_q, sign h_p)."""
    pairs = h.reshape(h.size // group, 2, group // 2)
    return np.stack([-sign * pairs[:, 1], sign * pairs[:, 0]], axis=1).reshape(h.shape)


@operation(
    "road.linear",
    f"x[*n,i] weight[o,i] theta[{_SIZE}] alpha[{_SIZE}] bias?[o] -> y[*n,o] where {_GROUPS}",
    sizes=_SIZES,
)
def linear(x, weight, theta, alpha, bias=None, *, group: int, variant: Variant = "road_1"):
    """y = c h + s swap(h), h = x Wᵀ + bias, swap(h) = (-h_q, h_p) for each pair.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    theta, alpha : (o / 2,), (o,) or (2 o,) for road_1, road_2 and road_4
        Angles and scales, group by group; in road_4 a group has those of c, then those of s.
    bias : (o,), optional
        The base layer's bias, which is turned too.
    group : int
        g, even, a divisor of o.
    variant : "road_1", "road_2" or "road_4"

    Returns
    -------
    y : (*n, o)
    """
    c, s = _factors(theta, alpha, group, variant)
    h = plus(x @ weight.T, bias)
    return c * h + s * _swap(h, group, 1.0)


@linear.vjp
def _(dy, x, weight, theta, alpha, bias=None, *, group, variant="road_1"):
    """dh = c dy - swap(s dy), dc = sum dy h, ds = sum dy swap(h); dx = dh W, dW = dhᵀ x."""
    c, s = _factors(theta, alpha, group, variant)
    h = plus(x @ weight.T, bias)
    dh = c * dy + _swap(s * dy, group, -1.0)
    dc, ds = (np.sum(rows(dy * v), axis=0) for v in (h, _swap(h, group, 1.0)))
    dtheta, dalpha = _to_factors(dc, ds, theta, alpha, group, variant)
    return dh @ weight, rows(dh).T @ rows(x), dtheta, dalpha, rows(dh).sum(axis=0)


@operation(
    "road.merge",
    f"weight[o,i] theta[{_SIZE}] alpha[{_SIZE}] -> merged[o,i] where {_GROUPS}",
    sizes=_SIZES,
)
def merge(weight, theta, alpha, *, group: int, variant: Variant = "road_1"):
    """merged = R W, row p being c_p W_p - s_p W_q. The bias, as a column (o, 1), merges the same way.

    Parameters
    ----------
    weight : (o, i)
        Base weight W.
    theta, alpha : (o / 2,), (o,) or (2 o,)
    group : int
    variant : "road_1", "road_2" or "road_4"

    Returns
    -------
    merged : (o, i)
    """
    c, s = (np.expand_dims(v, 1) for v in _factors(theta, alpha, group, variant))
    return c * weight + s * _swap(weight.T, group, 1.0).T


@merge.vjp
def _(dmerged, weight, theta, alpha, *, group, variant="road_1"):
    """dW = Rᵀ dM, dc = sum dM W and ds = sum dM swap(W) along the rows."""
    c, s = _factors(theta, alpha, group, variant)
    dc, ds = (np.sum(dmerged.T * v, axis=0) for v in (weight.T, _swap(weight.T, group, 1.0)))
    dweight = c * dmerged.T + _swap(s * dmerged.T, group, -1.0)
    return dweight.T, *_to_factors(dc, ds, theta, alpha, group, variant)


@linear.anchors
@merge.anchors
def _(random, arrays, attributes):
    """No angle: the only one whose sine and cosine are exact."""
    return {"theta": np.zeros(arrays["theta"].shape)}


def matrix(theta: np.ndarray, alpha: np.ndarray, *, group: int, variant: Variant) -> np.ndarray:
    """R, (o, o), in float64."""
    theta, alpha = theta.astype(np.float64), alpha.astype(np.float64)
    size = theta.size * 2 // {"road_1": 1, "road_2": 2, "road_4": 4}[variant]
    return merge.forward(np.eye(size), theta, alpha, group=group, variant=variant)


def unmerge(
    merged: np.ndarray, theta: np.ndarray, alpha: np.ndarray, *, group: int, variant: Variant = "road_1"
) -> np.ndarray:
    """The weight (o, i) that ``merged`` came from: R^-1 merged, rounded once to its dtype.

    R is no rotation in general, and far from one this loses digits; a scale of zero cannot be undone.
    """
    r = matrix(theta, alpha, group=group, variant=variant)
    return store(np.linalg.solve(r, merged.astype(np.float64)), as_format(merged.dtype.name))


def init(o: int, *, variant: Variant = "road_1") -> dict[str, np.ndarray]:
    """No angle and unit scales.

    Returns
    -------
    dict of str to float64 array
        theta and alpha, (o / 2,), (o,) or (2 o,).
    """
    size = count(o, variant=variant) // 2
    return {"theta": np.zeros(size), "alpha": np.ones(size)}


def count(o: int, *, variant: Variant = "road_1") -> int:
    """Trainable parameters: o, 2 o or 4 o."""
    return o * {"road_1": 1, "road_2": 2, "road_4": 4}[variant]
