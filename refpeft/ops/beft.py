"""BEFT: a bias of its own on a frozen linear layer (arXiv:2509.15974), and BitFit (Ben Zaken et al. 2021, arXiv:2106.10199).

    y = W x + b + c        c (o)

c is trained and zero at the start. BitFit trains the layer's own b instead, which needs no operation beside `nn.linear`; where
c starts at zero and the learning rates are equal, both give the same layer.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation("beft.linear", "x[*n,i] weight[o,i] shift[o] bias?[o] -> y[*n,o]")
def linear(x, weight, shift, bias=None):
    """y = x Wᵀ + bias + shift.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        Frozen base weight W.
    shift : (o,)
        The trained bias c.
    bias : (o,), optional
        The base layer's.

    Returns
    -------
    y : (*n, o)
    """
    return plus(x @ weight.T, bias) + shift


@linear.vjp
def _(dy, x, weight, shift, bias=None):
    """dx = dy W, dW = dyᵀ x; both biases get the sum of dy over the batch."""
    total = rows(dy).sum(axis=0)
    return dy @ weight, rows(dy).T @ rows(x), total, total


def init(o: int) -> dict[str, np.ndarray]:
    """c = 0, as a float64 array."""
    return {"shift": np.zeros(o)}
