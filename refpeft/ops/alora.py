"""aLoRA: activated LoRA (Greenewald et al. 2025, arXiv:2504.12397).

The adapter acts on the last tokens of a sequence only, from where it is invoked, so that what the base model computed before (its
keys and values) can be used as it is:

    y_t = W x_t + s B A x_t    where t >= length - offset,    else W x_t
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import positions
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation("alora.linear", "x[*n,t,i] weight[o,i] a[r,i] b[o,r] offsets?: index(t+1)[*n] bias?[o] -> y[*n,t,o]")
def linear(x, weight, a, b, offsets=None, bias=None, *, scaling: float):
    """y = x Wᵀ + bias, and s x Aᵀ Bᵀ on the last ``offsets`` tokens of each sequence.

    Parameters
    ----------
    x : (*n, t, i)
        Sequences of t tokens.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        LoRA's factors.
    offsets : (*n) integers from 0 to t, optional
        How many tokens, counted from the end, the adapter acts on; none where not given.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.

    Returns
    -------
    y : (*n, t, o)
    """
    update = (scaling * (x @ a.T)) @ b.T
    return plus(x @ weight.T + np.where(_active(x, offsets), update, 0.0), bias)


@linear.vjp
def _(dy, x, weight, a, b, offsets=None, bias=None, *, scaling):
    """With du = s dy on active tokens, else zero, and dh = du B: dx = dy W + dh A, dW = dyᵀ x, dA = dhᵀ x, dB = duᵀ (x Aᵀ)."""
    du = np.where(_active(x, offsets), scaling * dy, 0.0)
    dh = du @ b
    dweight, da, db = rows(dy).T @ rows(x), rows(dh).T @ rows(x), rows(du).T @ rows(x @ a.T)
    return dy @ weight + dh @ a, dweight, da, db, rows(dy).sum(axis=0)


def _active(x, offsets):
    """(*n, t, 1): whether the adapter acts on a token."""
    length = x.shape[-2]
    first = length if offsets is None else np.expand_dims(length - offsets, (-2, -1))
    return np.greater_equal(np.expand_dims(positions(x, x.ndim - 2), 1), first)


def offsets(tokens: np.ndarray, invocation: np.ndarray) -> np.ndarray:
    """From the start of the last occurrence of ``invocation`` in each sequence to its end; 0 where it does not occur.

    Parameters
    ----------
    tokens : (n, t) integers
    invocation : (k,) integers
        The tokens that invoke the adapter, at least one.

    Returns
    -------
    (n,) int64
    """
    n, t = tokens.shape
    found = np.zeros(n, np.int64)
    for start in range(t - len(invocation) + 1):
        here = np.all(tokens[:, start : start + len(invocation)] == invocation, axis=1)
        found = np.where(here, t - start, found)
    return found
