"""Prefix tuning: attention behind trained keys and values, the perceptron that makes them, and each layer's share."""

from __future__ import annotations

import math

import numpy as np

from refpeft_cpu import attention as plain
from refpeft_cpu.arrays import narrow, over_batch, wide


def attention(q, k, v, prefix_k, prefix_v, mask=None, *, causal=False, offset=0, residuals=True):
    """y = softmax(q [P_K; k]ᵀ / sqrt(d)) [P_V; v], the prefix seen by every query."""
    p = prefix_k.shape[-2]
    if mask is not None:
        mask = np.concatenate([np.ones((*mask.shape[:-1], p), bool), mask], axis=-1)
    behind, scale = (_in_front(prefix_k, k), _in_front(prefix_v, v)), 1 / math.sqrt(q.shape[-1])
    numbers = {"scale": scale, "causal": causal, "offset": offset + p, "residuals": residuals}
    results, kept = plain.attention(q, *behind, mask, **numbers)
    return results, (kept, p) if residuals else None


def attention_vjp(residuals, cotangents, wanted):
    """Those of attention, cut after p; the batch is summed into the prefix."""
    kept, p = residuals
    needed = [name for name in ("q", "k", "v") if {name, f"prefix_{name}"} & set(wanted)]
    found = dict(zip(needed, plain.attention_vjp(kept, cotangents, needed), strict=True))

    def gradient(name):
        if name == "q":
            return found[name]
        if name in found:
            return found[name][..., p:, :]
        return over_batch(found[name.removeprefix("prefix_")][..., :p, :], 3)

    return tuple(gradient(name) for name in wanted)


def encode(embedding, w1, b1, w2, b2, *, residuals=True):
    """flat = tanh(E W1ᵀ + b1) W2ᵀ + b2."""
    h = np.tanh(wide(embedding) @ wide(w1).T + wide(b1))
    flat = h @ wide(w2).T + wide(b2)
    kept = (embedding, w1, w2, h) if residuals else None
    return (narrow(flat, flat.shape, embedding.dtype),), kept


def encode_vjp(residuals, cotangents, wanted):
    """With da = (1 - h o h) o (dflat W2): each layer as a linear one."""
    embedding, w1, w2, h = residuals
    dflat = wide(cotangents[0])
    da = (1 - h * h) * (dflat @ wide(w2))
    gradients = {
        "embedding": lambda: (da @ wide(w1), embedding.shape),
        "w1": lambda: (da.T @ wide(embedding), w1.shape),
        "b1": lambda: (da.sum(axis=0), len(w1)),
        "w2": lambda: (dflat.T @ h, w2.shape),
        "b2": lambda: (dflat.sum(axis=0), len(w2)),
    }
    return tuple(narrow(*gradients[name](), embedding.dtype) for name in wanted)


def cut(flat, *, l, g, d, residuals=True):  # noqa: E741
    """Columns run over (layer, key or value, group, element)."""
    apart = flat.reshape(len(flat), l, 2, g, d).transpose(2, 1, 3, 0, 4)
    return (apart[0], apart[1]), flat.shape if residuals else None


def cut_vjp(residuals, cotangents, wanted):
    """The columns back in their places."""
    together = np.stack(cotangents).transpose(3, 1, 0, 2, 4).reshape(residuals)
    return tuple(together for _ in wanted)


def _in_front(prefix, x):
    return np.concatenate([np.broadcast_to(prefix, (*x.shape[:-3], *prefix.shape)), x], axis=-2)
