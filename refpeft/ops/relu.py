"""The rectified linear unit: what lies between the layers of X-LoRA's classifier (Nair and Hinton 2010)."""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._activations import ACTIVATIONS


@operation("nn.relu", "x[*n,d] -> y[*n,d]")
def relu(x):
    """y = max(x, 0).

    Parameters
    ----------
    x : (*n, d)

    Returns
    -------
    y : (*n, d)
    """
    return ACTIVATIONS["relu"].function(x)


@relu.vjp
def _(dy, x):
    """dx = dy where x > 0, else 0."""
    return ACTIVATIONS["relu"].vjp(dy, x)


@relu.problems
def corners(random, arrays, attributes):
    """Zeros among the numbers, at which the slope is 0."""
    return {"x": np.where(random.random(arrays["x"].shape) < 0.25, 0.0, arrays["x"])}
