"""Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450), and its tuning (Zhao et al. 2023, arXiv:2312.11420).

Each vector of a batch is centred, divided by its standard deviation, and mapped by a gain and a bias of its own per feature:

    y = w o (x - mean) / sqrt(variance + eps) + b        variance = mean of (x - mean)**2

LayerNorm tuning trains w and b and nothing else.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation(
    "nn.layer_norm",
    "x[*n,d] weight?[d] bias?[d] -> y[*n,d] where eps > 0, d >= 1",
    sizes={"d": (4, 8, 2, 3, 5, 7, 13, 16, 17)},
)
def layer_norm(x, weight=None, bias=None, *, eps: float = 1e-5):
    """y = w o (x - mean) / sqrt(variance + eps) + b over the last axis, the variance from the centred values.

    Parameters
    ----------
    x : (*n, d)
    weight : (d,), optional
        The gain w.
    bias : (d,), optional
    eps : float
        Above 0; added to the variance, under the root.

    Returns
    -------
    y : (*n, d)
    """
    centred, inverse = _centred(x, eps)
    normal = centred * inverse
    return plus(normal if weight is None else normal * weight, bias)


@layer_norm.vjp
def _(dy, x, weight=None, bias=None, *, eps=1e-5):
    """With c = x - mean, r = 1 / sqrt(variance + eps) and g = w o dy: dx = r (g - mean(g)) - c r r r mean(g o c),
    dw = the sum of dy o r c over the batch, db = that of dy.

    The order is that of a root differentiated first, as automatic differentiation does: where g o c is subnormal, r**3 makes
    its rounding larger than in r (g - mean(g) - r c mean(g o r c)), and the budget of this order holds for both.
    """
    centred, inverse = _centred(x, eps)
    g = dy if weight is None else dy * weight
    dx = inverse * (g - _mean(g)) - centred * (inverse * (inverse * (inverse * _mean(g * centred))))
    return dx, rows(dy * (centred * inverse)).sum(axis=0), rows(dy).sum(axis=0)


@layer_norm.problems
def off_centre(random, arrays, attributes):
    """A mean up to 256 times the deviation: a variance as mean of squares minus square of the mean cancels."""
    return {"x": arrays["x"] + 2.0 ** random.integers(0, 9)}


@layer_norm.anchors
def constant_rows(random, arrays, attributes):
    """Each row one integer: where eps is the square of a power of two, nothing on the way is rounded in any algorithm."""
    x = arrays["x"]
    return {"x": x[..., :1] + np.zeros(x.shape)}


def _centred(x, eps):
    """x - mean, and 1 / sqrt(variance + eps), of each row."""
    centred = x - _mean(x)
    return centred, 1 / np.sqrt(_mean(centred * centred) + eps)


def _mean(x):
    return np.sum(x, axis=-1, keepdims=True) / x.shape[-1]
