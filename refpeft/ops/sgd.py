"""Stochastic gradient descent with momentum (Sutskever et al. 2013, *On the importance of initialization and momentum in deep
learning*), in the form that frameworks have it: the learning rate multiplies the step, not what is remembered.

    g = grad + decay p        b' = momentum b + g        p' = p - lr b'        Nesterov: p' = p - lr (g + momentum b')
"""

from __future__ import annotations

from refpeft.operation import operation


@operation(
    "sgd.step",
    "p[*n] grad[*n] buffer[*n] -> next_p[*n] next_buffer[*n] where momentum >= 0",
    sizes={"momentum": (0.5, 0.9, 0.75, 0.0), "decay": (0.0, 0.5, 0.1)},
    nonfinite=("grad",),
)
def step(p, grad, buffer, *, lr: float, momentum: float = 0.0, decay: float = 0.0, nesterov: bool = False):
    """One step, without dampening.

    Parameters
    ----------
    p, grad : (*n)
        A parameter and its gradient.
    buffer : (*n)
        b, what is remembered of the gradients before; zero at first.
    lr : float
        The learning rate; negative to climb.
    momentum : float
        How much of b is kept, at least 0.
    decay : float
        The weight of p among the gradient: the L2 penalty decay ||p||² / 2.
    nesterov : bool
        Whether the step looks ahead by the momentum.

    Returns
    -------
    next_p, next_buffer : (*n)
    """
    g = grad + decay * p
    kept = momentum * buffer + g
    return p - lr * (g + momentum * kept if nesterov else kept), kept
