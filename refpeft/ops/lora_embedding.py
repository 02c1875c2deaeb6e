"""LoRA on an embedding table (Hu et al. 2021, arXiv:2106.09685, section 4.1, applied to a look-up).

The table E (v, d) is a linear layer over one-hot vectors, so its update is E' = E + s (B A)ᵀ with A (r, v) and B (d, r);
looking a token up takes its row of E and its column of A.
"""

from __future__ import annotations

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import rows


@operation("lora.embedding", "ids: index(v)[*n] weight[v,d] a[r,v] b[d,r] -> y[*n,d]")
def embedding(ids, weight, a, b, *, scaling: float):
    """y = E[ids] + s (Aᵀ)[ids] Bᵀ.

    Parameters
    ----------
    ids : (*n,) int64
        Token ids from 0 to v - 1.
    weight : (v, d)
        Frozen table E.
    a : (r, v)
    b : (d, r)
    scaling : float
        s; see `lora.scaling`.

    Returns
    -------
    y : (*n, d)

    Raises
    ------
    DomainError
        If an id is negative or not below v.
    """
    return take(weight, ids) + (scaling * take(a.T, ids)) @ b.T


@embedding.vjp
def _(dy, ids, weight, a, b, *, scaling):
    """With h = (Aᵀ)[ids], du = s dy and dh = du B: dE and dAᵀ add the rows of dy and dh up by token, dB = duᵀ h."""
    h, du = take(a.T, ids), scaling * dy
    dh = du @ b
    size = weight.shape[0]
    return scatter_add(dy, ids, size), scatter_add(dh, ids, size).T, rows(du).T @ rows(h)


@embedding.problems
def repeated_tokens(random, arrays, attributes):
    """Few distinct ids, so that gradients of one row meet; B off zero."""
    return {"ids": arrays["ids"] * (random.random(arrays["ids"].shape) < 0.3), "b": arrays["b"] * 2.0**-3}
