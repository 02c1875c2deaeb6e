"""GELU: the Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.operation import operation
from refpeft.ops._activations import ACTIVATIONS

_NAMES = {"none": "gelu", "tanh": "gelu_tanh"}


@operation("nn.gelu", "x[*n,d] -> y[*n,d]")
def gelu(x, *, approximate: Literal["none", "tanh"] = "none"):
    """y = x Phi(x), Phi the normal distribution function, or its approximation by tanh.

    Parameters
    ----------
    x : (*n, d)
    approximate : "none" or "tanh"

    Returns
    -------
    y : (*n, d)
    """
    return ACTIVATIONS[_NAMES[approximate]].function(x)


@gelu.vjp
def _(dy, x, *, approximate="none"):
    """dx = dy o (Phi(x) + x phi(x)), phi the normal density; the derivative of the approximation where that is meant."""
    return ACTIVATIONS[_NAMES[approximate]].vjp(dy, x)


@gelu.problems
def tails(random, arrays, attributes):
    """Where Phi is nearly 0 or 1, and where the exact function and its approximation differ most."""
    return {"x": random.uniform(-9, 9, arrays["x"].shape)}


@gelu.anchors
def _(random, arrays, attributes):
    """The one point at which nothing is rounded: y = 0 and dx = dy / 2."""
    return {"x": np.zeros_like(arrays["x"])}
