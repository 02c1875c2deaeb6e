"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4), the norm of Llama's decoder.

Each vector of a batch is divided by the root of its mean square and mapped by a gain per feature:

    y = w o x / sqrt(mean of x**2 + eps)
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import rows


@operation(
    "nn.rms_norm",
    "x[*n,d] weight?[d] -> y[*n,d] where eps > 0, d >= 1",
    sizes={"d": (4, 8, 2, 3, 5, 7, 13, 16, 17)},
)
def rms_norm(x, weight=None, *, eps: float = 1e-6):
    """y = w o x / sqrt(mean of x**2 + eps) over the last axis.

    Parameters
    ----------
    x : (*n, d)
    weight : (d,), optional
        The gain w.
    eps : float
        Above 0; added to the mean square, under the root.

    Returns
    -------
    y : (*n, d)
    """
    normal = x * _inverse(x, eps)
    return normal if weight is None else normal * weight


@rms_norm.vjp
def _(dy, x, weight=None, *, eps=1e-6):
    """With r = 1 / sqrt(mean of x**2 + eps) and g = w o dy: dx = r g - x r r r mean(g o x), dw = the sum of dy o r x.

    The order is that of a root differentiated first, see `refpeft.ops.layer_norm`.
    """
    inverse, g = _inverse(x, eps), dy if weight is None else dy * weight
    dx = inverse * g - x * (inverse * (inverse * (inverse * _mean(g * x))))
    return dx, rows(dy * (x * inverse)).sum(axis=0)


@rms_norm.anchors
def three_quarters(random, arrays, attributes):
    """Where eps is the square of a power of two: three quarters of a vector +-2 sqrt(eps), so that its root is that, too.

    A length that four does not divide gets zeros.
    """
    shape, step = arrays["x"].shape, 2 * np.sqrt(attributes["eps"])
    kept = np.arange(shape[-1]) % 4 < (3 if shape[-1] % 4 == 0 else 0)
    return {"x": np.where(kept, random.choice([-step, step], shape), 0.0)}


def _inverse(x, eps):
    return 1 / np.sqrt(_mean(x * x) + eps)


def _mean(x):
    return np.sum(x, axis=-1, keepdims=True) / x.shape[-1]
