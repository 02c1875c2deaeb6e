"""P-tuning's perceptron, which makes a prompt of trained embeddings."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import narrow, wide


def mlp(embedding, w1, b1, w2, b2, w3, b3, *, residuals=True):
    """prompt = relu(relu(E W1ᵀ + b1) W2ᵀ + b2) W3ᵀ + b3."""
    h1 = np.maximum(_layer(wide(embedding), w1, b1), 0)
    h2 = np.maximum(_layer(h1, w2, b2), 0)
    kept = (embedding, w1, w2, w3, h1, h2) if residuals else None
    return (narrow(_layer(h2, w3, b3), (len(embedding), len(w3)), embedding.dtype),), kept


def mlp_vjp(residuals, cotangents, wanted):
    """Each layer as a linear one; relu lets pass what it let pass, and nothing at zero."""
    embedding, w1, w2, w3, h1, h2 = residuals
    d3 = wide(cotangents[0])
    d2 = np.where(h2 > 0, d3 @ wide(w3), 0)
    d1 = np.where(h1 > 0, d2 @ wide(w2), 0)
    gradients = {
        "embedding": lambda: (d1 @ wide(w1), embedding.shape),
        "w1": lambda: (d1.T @ wide(embedding), w1.shape),
        "w2": lambda: (d2.T @ h1, w2.shape),
        "w3": lambda: (d3.T @ h2, w3.shape),
        "b1": lambda: (d1.sum(axis=0), len(w1)),
        "b2": lambda: (d2.sum(axis=0), len(w2)),
        "b3": lambda: (d3.sum(axis=0), len(w3)),
    }
    return tuple(narrow(*gradients[name](), embedding.dtype) for name in wanted)


def _layer(x, weight, bias):
    y = x @ wide(weight).T
    y += wide(bias)
    return y
