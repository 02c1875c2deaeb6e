"""LoRA with an adapter of its own for each sequence of a batch, over one frozen base.

Tasks switch by their A and B alone (Hu et al. 2021, arXiv:2106.09685, section 4.1), and are served together (Chen et al. 2023,
arXiv:2310.18547):

    y[p] = x[p] Wᵀ + s_j x[p] A_jᵀ B_jᵀ + bias,    j = adapter[p]
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows, turned


@operation(
    "lora.batched",
    "x[n,t,i] adapter: index(k)[n] weight[o,i] a[k,r,i] b[k,o,r] scaling[k] bias?[o] -> y[n,t,o]",
    sizes={"n": (2, 1, 3, 5, 0), "t": (2, 1, 3, 7), "k": (2, 1, 3)},
)
def batched(x, adapter, weight, a, b, scaling, bias=None):
    """y = x Wᵀ + s_j (x A_jᵀ) B_jᵀ + bias, j the adapter of the sequence.

    Parameters
    ----------
    x : (n, t, i)
        n sequences of t tokens.
    adapter : (n,) int64
        Which adapter each sequence takes, 0 to k - 1. One with a zero B stands for the base model alone.
    weight : (o, i)
        Frozen weight W, the same for all.
    a : (k, r, i)
    b : (k, o, r)
        Adapters of smaller rank are padded with zeros.
    scaling : (k,)
        s; see `lora.scaling`.
    bias : (o,), optional

    Returns
    -------
    y : (n, t, o)

    Raises
    ------
    DomainError
        If an index is negative or not below k.
    """
    h = x @ turned(take(a, adapter))
    return plus(x @ weight.T + _each(scaling, adapter) * (h @ turned(take(b, adapter))), bias)


@batched.vjp
def _(dy, x, adapter, weight, a, b, scaling, bias=None):
    """With A, B and s those of the sequence, u = s dy, h = x Aᵀ and dh = u B:

    dx = dy W + dh A, dW = dyᵀ x; and added up over the sequences of an adapter, dA = dhᵀ x, dB = uᵀ h, ds = sum dy o (h Bᵀ).
    """
    own_a, own_b, k = take(a, adapter), take(b, adapter), a.shape[0]
    u, h = _each(scaling, adapter) * dy, x @ turned(own_a)
    dh = u @ own_b
    return (
        dy @ weight + dh @ own_a,
        rows(dy).T @ rows(x),
        scatter_add(turned(dh) @ x, adapter, k),
        scatter_add(turned(u) @ h, adapter, k),
        scatter_add(np.sum(dy * (h @ turned(own_b)), axis=(1, 2)), adapter, k),
        rows(dy).sum(axis=0),
    )


def _each(scaling, adapter):
    """The scaling of each sequence, (n, 1, 1)."""
    return np.expand_dims(take(scaling, adapter), (1, 2))


@batched.problems
def shared_adapters(random, arrays, attributes):
    """Most sequences take the same adapter, so that gradients of one meet; B off zero."""
    return {
        "adapter": arrays["adapter"] * (random.random(arrays["adapter"].shape) < 0.3),
        "b": arrays["b"] * 2.0**-3,
    }
