"""LoKr of a convolution with a core (Tucker) in the second factor, what LyCORIS calls ``use_effective_conv2d``.

The core T (r, r, kh, kw) alone sees the kernel's extent, W2a (r, u) and W2b (r, v) only channels:

    W2[c,e,p,q] = sum_ab T[a,b,p,q] W2a[a,c] W2b[b,e]        delta = s W1 (x) W2        o = p u, c = q v, s = alpha / r

with the Kronecker product over output and input channels (FedPara's proposition 3, arXiv:2108.06098, factors kernels so).
"""

from __future__ import annotations

from refpeft.ops._kronecker import kron, kron_vjp
from refpeft.ops._tucker import tucker, tucker_vjp
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
    return scaling * kron(w1, tucker(core, w2_a, w2_b))


@delta.vjp
def _(ddelta, w1, core, w2_a, w2_b, *, scaling):
    """Through the Kronecker product, and then through the Tucker product."""
    dw1, dw2 = kron_vjp(scaling * ddelta, w1, tucker(core, w2_a, w2_b))
    return dw1, *tucker_vjp(dw2, core, w2_a, w2_b)


conv2d = delta.conv2d("lokr_core.conv2d", sizes=SIZES | {"cg": (1, 2, 3, 4, 6)})
merge = delta.merge("lokr_core.merge", sizes=SIZES)
unmerge = delta.unmerge
