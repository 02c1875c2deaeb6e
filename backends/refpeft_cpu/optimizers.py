"""Steps of SGD and Lion, and clipping by the global norm."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, wide


def sgd(p, grad, buffer, *, lr, momentum=0.0, decay=0.0, nesterov=False, residuals=True):
    """b' = momentum b + g, p' = p - lr b', or of what lies ahead of it."""
    wide_p = wide(p)
    g = wide(grad) + decay * wide_p
    kept = momentum * wide(buffer) + g
    step = g + momentum * kept if nesterov else kept
    return (narrow(wide_p - lr * step, p.shape, p.dtype), narrow(kept, p.shape, p.dtype)), None


def lion(p, grad, m, *, lr, beta1=0.9, beta2=0.99, decay=0.0, residuals=True):
    """p' = p - lr (sign(c) + decay p)."""
    wide_p, wide_m = wide(p), wide(m)
    ahead = wide(grad) - wide_m
    step = np.sign(wide_m + (1 - beta1) * ahead) + decay * wide_p
    next_m = wide_m + (1 - beta2) * ahead
    return (narrow(wide_p - lr * step, p.shape, p.dtype), narrow(next_m, p.shape, p.dtype)), None


def clip(grad, *, max_norm, eps=0.0, residuals=True):
    """The gradient and its norm, a product with itself."""
    g = wide(grad)
    norm = np.sqrt(g @ g)
    clipped = g * (max_norm / np.maximum(norm + g.dtype.type(eps), g.dtype.type(max_norm)))
    return (narrow(clipped, grad.shape, grad.dtype), narrow(norm, (), grad.dtype)), None
