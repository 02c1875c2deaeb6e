"""Clipping by the global norm (Pascanu, Mikolov and Bengio 2012, arXiv:1211.5063, algorithm 1).

clipped = g min(1, c / ||g||)        ||g|| over the gradients of all parameters together
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation


@operation(
    "clip.global_norm",
    "grad[n] -> clipped[n] norm[] where max_norm > 0, eps >= 0, n >= 0",
    sizes={"n": (1, 2, 3, 5, 8, 13, 64, 200), "max_norm": (1.0, 0.5, 4.0, 0.3), "eps": (0.0, 1e-6)},
)
def global_norm(grad, *, max_norm: float, eps: float = 0.0):
    """g times c / max(||g|| + eps, c), which is 1 where the norm is small enough.

    Parameters
    ----------
    grad : (n,)
        The gradients of all parameters, laid end to end: an implementation may leave them apart, and add the squares of their
        norms.
    max_norm : float
        c, above 0.
    eps : float
        0 in the paper, 1e-6 in torch.

    Returns
    -------
    clipped : (n,)
    norm : ()
        Before clipping.
    """
    norm = np.sqrt(np.sum(grad * grad))
    return grad * (max_norm / np.maximum(norm + eps, max_norm)), norm


@global_norm.makes_valid
def _(random, arrays, attributes):
    """The first element is large enough for the root of the sum to have a bound, unless all are zero."""
    grad = np.array(arrays["grad"])
    if grad.any():
        grad[0] = np.copysign(max(abs(grad[0]), 2.0**-5), grad[0])
    return {"grad": grad}


@global_norm.anchors
def _(random, arrays, attributes):
    """One element, or four of equal magnitude, so that the norm is a power of two."""
    grad = np.zeros(arrays["grad"].shape)
    count = 4 if grad.size >= 4 and random.random() < 0.5 else min(1, grad.size)
    at = random.permutation(grad.size)[:count]
    grad[at] = random.choice([-1.0, 1.0], size=count) * 2.0 ** random.integers(-3, 4)
    return {"grad": grad}


@global_norm.problems
def near_the_border(random, arrays, attributes):
    """Norms that are the largest admitted one, but for rounding."""
    norm = np.sqrt(np.sum(arrays["grad"] ** 2))
    return {"grad": arrays["grad"] * (attributes["max_norm"] / norm if norm else 1.0)}
