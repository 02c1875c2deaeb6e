"""Adam's steps, which go over their arrays once for each operation and keep one array beside the results."""

from __future__ import annotations

import numpy as np


def step(p, grad, m, v, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, residuals=True):
    """p - lr u."""
    next_m, next_v, u = moments(grad, m, v, lr, step, beta1, beta2, eps)
    np.subtract(p.reshape(-1), u, out=u)
    return tuple(array.reshape(p.shape) for array in (u, next_m, next_v)), None


def decayed_step(
    p, grad, m, v, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01, variant="before", residuals=True
):
    """(1 - lr decay) p - lr u, or the decay of both."""
    next_m, next_v, u = moments(grad, m, v, lr, step, beta1, beta2, eps)
    left = 1 - lr * decay
    if variant == "before":
        np.subtract(left * p.reshape(-1), u, out=u)
    else:
        np.subtract(p.reshape(-1), u, out=u)
        u *= left
    return tuple(array.reshape(p.shape) for array in (u, next_m, next_v)), None


def moments(grad, m, v, lr, step, beta1, beta2, eps):
    """m', v' and lr u = lr / (1 - b1ᵗ) m' / (sqrt(v') / sqrt(1 - b2ᵗ) + eps), along one axis."""
    grad, m, v = (array.reshape(-1) for array in (grad, m, v))
    next_m = grad - m
    next_m *= 1 - beta1
    next_m += m
    u = grad * grad
    u *= 1 - beta2
    next_v = beta2 * v
    next_v += u
    np.sqrt(next_v, out=u)
    u /= np.sqrt(1 - beta2**step)
    u += eps
    np.divide(next_m, u, out=u)
    u *= lr / (1 - beta1**step)
    return next_m, next_v, u
