"""Plain layers that the methods adapt."""

from __future__ import annotations

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation("nn.linear", "x[*n,i] weight[o,i] bias?[o] -> y[*n,o]")
def linear(x, weight, bias=None):
    """y = x Wᵀ + bias.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
    bias : (o,), optional

    Returns
    -------
    y : (*n, o)
    """
    return plus(x @ weight.T, bias)


@linear.vjp
def _(dy, x, weight, bias=None):
    """dx = dy W, dW = dyᵀ x, dbias = the sum of dy over the batch."""
    return dy @ weight, rows(dy).T @ rows(x), rows(dy).sum(axis=0)
