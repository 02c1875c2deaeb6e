"""The hyperbolic tangent: what BERT's pooler ends in."""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._activations import ACTIVATIONS


@operation("nn.tanh", "x[*n,d] -> y[*n,d]")
def tanh(x):
    """y = tanh x.

    Parameters
    ----------
    x : (*n, d)

    Returns
    -------
    y : (*n, d)
    """
    return ACTIVATIONS["tanh"].function(x)


@tanh.vjp
def _(dy, x):
    """dx = dy (1 - y²)."""
    return ACTIVATIONS["tanh"].vjp(dy, x)


@tanh.problems
def tails(random, arrays, attributes):
    """Where y is nearly 1 or -1 too."""
    return {"x": random.uniform(-6, 6, arrays["x"].shape)}


@tanh.anchors
def _(random, arrays, attributes):
    """The one point at which nothing is rounded: y = 0 and dx = dy."""
    return {"x": np.zeros_like(arrays["x"])}
