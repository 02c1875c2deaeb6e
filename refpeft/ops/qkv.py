"""Queries, keys and values of the same x in one, as a composite operation.

    q = x Qᵀ        k = x Kᵀ        v = x Vᵀ

It is `nn.linear` three times. A backend that has it whole reads x once, and adds up dx once: with the three matrices one below
the other, it is a single product.
"""

from __future__ import annotations

from refpeft.operation import operation
from refpeft.ops.nn import linear


@operation(
    "nn.qkv",
    "x[*n,i] q_weight[w,i] k_weight[g,i] v_weight[e,i] q_bias?[w] k_bias?[g] v_bias?[e] -> q[*n,w] k[*n,g] v[*n,e]",
    sizes={"w": (2, 4, 3, 1, 8), "g": (2, 4, 3, 1), "e": (2, 4, 3, 1)},
)
def qkv(x, q_weight, k_weight, v_weight, q_bias=None, k_bias=None, v_bias=None):
    """x Qᵀ, x Kᵀ and x Vᵀ, each with its bias.

    Parameters
    ----------
    x : (*n, i)
    q_weight, k_weight, v_weight : (w, i), (g, i), (e, i)
    q_bias, k_bias, v_bias : (w,), (g,), (e,), optional
        Each may be there without the others.

    Returns
    -------
    q, k, v : (*n, w), (*n, g), (*n, e)
    """
    layers = (q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias)
    return tuple(linear.forward(x, weight, bias) for weight, bias in layers)


@qkv.vjp
def _(dq, dk, dv, x, q_weight, k_weight, v_weight, q_bias=None, k_bias=None, v_bias=None):
    """dx = dq Q + dk K + dv V; for each matrix and bias what `nn.linear` has."""
    layers = (dq, q_weight), (dk, k_weight), (dv, v_weight)
    dx, dweights, dbiases = zip(*(linear.backward(dy, x, weight) for dy, weight in layers))
    return dx[0] + dx[1] + dx[2], *dweights, *dbiases
