"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, program 1).

c = b1 m + (1 - b1) g        p' = p - lr (sign(c) + decay p)        m' = b2 m + (1 - b2) g
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation


@operation(
    "lion.step",
    "p[*n] grad[*n] m[*n] -> next_p[*n] next_m[*n] where beta1 >= 0, beta1 <= 1, beta2 >= 0, beta2 <= 1",
    sizes={"beta1": (0.5, 0.9, 0.75, 0.95), "beta2": (0.75, 0.99, 0.5, 1.0), "decay": (0.0, 0.5, 0.1)},
    nonfinite=("p",),
)
def step(p, grad, m, *, lr: float, beta1: float = 0.9, beta2: float = 0.99, decay: float = 0.0):
    """One step: every element moves by lr, towards less loss as far as momentum and gradient tell, and decays.

    Parameters
    ----------
    p, grad : (*n)
        A parameter and its gradient.
    m : (*n)
        The momentum after the step before; zero at first.
    lr : float
        The learning rate; negative to climb.
    beta1 : float
        How much of m the step is made of, from 0 to 1.
    beta2 : float
        How much of m is kept, from 0 to 1.
    decay : float
        The weight of p beside the sign.

    Returns
    -------
    next_p, next_m : (*n)
    """
    return p - lr * (_sign(_mixed(m, grad, beta1)) + decay * p), _mixed(m, grad, beta2)


def _mixed(m, grad, beta):
    """b m + (1 - b) g, written as m + (1 - b) (g - m), whose budget covers both."""
    return m + (1 - beta) * (grad - m)


def _sign(c):
    """-1, 0 or 1."""
    return np.where(c > 0, 1.0, np.where(c < 0, -1.0, 0.0))
