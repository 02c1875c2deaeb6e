"""SwiGLU: a gate of silu beside a linear branch (Shazeer 2020, arXiv:2002.05202, equation 6)."""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._activations import sigmoid, silu


@operation("nn.swiglu", "gate[*n,d] up[*n,d] -> y[*n,d]")
def swiglu(gate, up):
    """y = silu(gate) o up, silu(z) = z sigmoid(z).

    Parameters
    ----------
    gate, up : (*n, d)
        The two branches of the feed-forward block.

    Returns
    -------
    y : (*n, d)
    """
    return silu(gate) * up


@swiglu.vjp
def _(dy, gate, up):
    """With s = sigmoid(gate): dgate = dy o up o s (1 + gate (1 - s)), dup = dy o silu(gate)."""
    s = sigmoid(gate)
    return dy * up * (s * (1 + gate * (1 - s))), dy * silu(gate)


@swiglu.problems
def saturated(random, arrays, attributes):
    """Gates where the sigmoid is nearly 0 or 1."""
    return {"gate": random.uniform(-30, 30, arrays["gate"].shape)}


@swiglu.anchors
def closed(random, arrays, attributes):
    """A gate of zero, at which nothing is rounded: y = 0, dgate = dy o up / 2 and dup = 0."""
    return {"gate": np.zeros_like(arrays["gate"])}
