"""LoKr of a convolution with a core (Tucker) in the second factor, what LyCORIS calls ``use_effective_conv2d``.

The core T (r, r, kh, kw) alone sees the kernel's extent, W2a (r, u) and W2b (r, v) only channels:

    W2[c,e,p,q] = sum_ab T[a,b,p,q] W2a[a,c] W2b[b,e]        delta = s W1 (x) W2        o = p u, c = q v, s = alpha / r

with the Kronecker product over output and input channels (FedPara's proposition 3, arXiv:2108.06098, factors kernels so).
"""

from __future__ import annotations

from refpeft.ops._kronecker import kron, kron_vjp
from refpeft.ops._update import update

SIZES = {
    "p": (2, 1, 3),
    "q": (1, 2, 3),
    "u": (2, 1, 3),
    "v": (2, 1, 3),
    "r": (2, 1, 3),
    "kh": (2, 1, 3),
    "kw": (2, 1, 3),
}


@update("w1[p,q] core[r,r,kh,kw] w2_a[r,u] w2_b[r,v]", where="o = p*u, i = q*v*kh*kw")
def delta(w1, core, w2_a, w2_b, *, scaling: float):
    """delta = s W1 (x) W2, W2 the Tucker product of the core with W2a and W2b; as a matrix (o, c kh kw).

    Parameters
    ----------
    w1 : (p, q)
    core : (r, r, kh, kw)
        T; its first axis meets W2a, its second W2b.
    w2_a : (r, u)
    w2_b : (r, v)
    scaling : float
        s; alpha / r.
    """
    return scaling * kron(w1, _tucker(core, w2_a, w2_b)[1])


@delta.vjp
def _(ddelta, w1, core, w2_a, w2_b, *, scaling):
    """With G[c, (p, q), b] = sum_a W2a[a, c] T[a, b, p, q]: W2 = G W2b, and dG = dW2 W2bᵀ, dT = W2a dG."""
    r, u, v, area = core.shape[0], w2_a.shape[1], w2_b.shape[1], core.shape[2] * core.shape[3]
    half, w2 = _tucker(core, w2_a, w2_b)
    dw1, dw2 = kron_vjp(scaling * ddelta, w1, w2)
    dw2 = dw2.reshape(u, v, area).transpose(0, 2, 1).reshape(u * area, v)
    dhalf = (dw2 @ w2_b.T).reshape(u, area, r).transpose(0, 2, 1).reshape(u, r * area)
    dw2_b = half.reshape(u * area, r).T @ dw2
    return dw1, (w2_a @ dhalf).reshape(core.shape), core.reshape(r, r * area) @ dhalf.T, dw2_b


conv2d = delta.conv2d("lokr_core.conv2d", sizes=SIZES | {"cg": (1, 2, 3, 4, 6)})
merge = delta.merge("lokr_core.merge", sizes=SIZES)
unmerge = delta.unmerge


def _tucker(core, w2_a, w2_b):
    """G (u, area, r), and W2 as a matrix (u, v area)."""
    r, u, v, area = core.shape[0], w2_a.shape[1], w2_b.shape[1], core.shape[2] * core.shape[3]
    half = (w2_a.T @ core.reshape(r, r * area)).reshape(u, r, area).transpose(0, 2, 1)
    return half, (half.reshape(u * area, r) @ w2_b).reshape(u, area, v).transpose(0, 2, 1).reshape(u, v * area)
