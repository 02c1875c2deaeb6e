"""Prompt tuning: virtual tokens in front of the embedded input."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import over_batch


def embed(x, prompt, *, residuals=True):
    """y = [P; x] along the tokens."""
    p = len(prompt)
    y = np.empty_like(x, shape=(*x.shape[:-2], p + x.shape[-2], x.shape[-1]))
    y[..., :p, :], y[..., p:, :] = prompt, x
    return (y,), p if residuals else None


def embed_vjp(residuals, cotangents, wanted):
    """The rows of dy back to where they came from; those of P are summed over the batch."""
    p, (dy,) = residuals, cotangents
    gradients = {"x": lambda: dy[..., p:, :], "prompt": lambda: over_batch(dy[..., :p, :], 2)}
    return tuple(gradients[name]() for name in wanted)
