"""Invertible adapters: additive coupling (Dinh et al. 2014, arXiv:1410.8516) in MAD-X (Pfeiffer et al. 2020, arXiv:2005.00052).

The features of an embedding are cut in two, and each half moves by what a small network makes of the other:

    y1 = x1 + F(x2)        y2 = x2 + G(y1)                F, G(v) = f(v Dᵀ + d) Uᵀ + u

Nothing need be solved to undo it: x2 = y2 - G(y1), then x1 = y1 - F(x2). MAD-X moves the embeddings so, and takes it back before
the output layer, whose table is that of the embeddings.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops import adapter
from refpeft.ops._activations import Name

_NETWORKS = "f_down[p,d-d//2] f_up[d//2,p] g_down[q,d//2] g_up[d-d//2,q]"
_BIASES = "f_down_bias?[p] f_up_bias?[d//2] g_down_bias?[q] g_up_bias?[d-d//2]"


@operation(
    "nice.couple",
    f"x[*n,d] {_NETWORKS} {_BIASES} -> y[*n,d] where d >= 2",
    sizes={"d": (4, 5, 2, 3, 7, 8, 13), "p": (2, 1, 3), "q": (2, 3, 1)},
)
def couple(
    x,
    f_down,
    f_up,
    g_down,
    g_up,
    f_down_bias=None,
    f_up_bias=None,
    g_down_bias=None,
    g_up_bias=None,
    *,
    activation: Name = "relu",
    inverse: bool = False,
):
    """y = [x1 + F(x2), x2 + G(y1)], or the x that gives this y.

    Parameters
    ----------
    x : (*n, d)
        x1 are the first d // 2 features, x2 the others.
    f_down, f_up, f_down_bias, f_up_bias : (p, d - d//2), (d//2, p), (p,), (d//2,)
        F; its biases are optional.
    g_down, g_up, g_down_bias, g_up_bias : (q, d//2), (d - d//2, q), (q,), (d - d//2,)
        G.
    activation : "relu", "gelu", "gelu_tanh", "silu" or "tanh"
        f.
    inverse : bool
        Whether ``x`` is y, and the result its x.

    Returns
    -------
    y : (*n, d)
    """
    f, g = (f_down, f_up, f_down_bias, f_up_bias), (g_down, g_up, g_down_bias, g_up_bias)
    (moved, still), first, second, how = _ordered(x, f, g, activation, inverse)
    moved = _step(moved, still, first, how)
    return _joined(moved, _step(still, moved, second, how), inverse)


@couple.vjp
def _(
    dy,
    x,
    f_down,
    f_up,
    g_down,
    g_up,
    f_down_bias=None,
    f_up_bias=None,
    g_down_bias=None,
    g_up_bias=None,
    *,
    activation="relu",
    inverse=False,
):
    """Back through the second step, dy1 += that of G at y1 to dy2, and through the first, dx2 = dy2 + that of F at x2 to dy1;
    in the inverse from F to G, both with a minus.
    """
    f, g = (f_down, f_up, f_down_bias, f_up_bias), (g_down, g_up, g_down_bias, g_up_bias)
    (moved, still), first, second, how = _ordered(x, f, g, activation, inverse)
    (dmoved, dstill), *_ = _ordered(dy, f, g, activation, inverse)
    through, *dsecond = _step_vjp(dstill, _step(moved, still, first, how), second, how)
    dmoved = dmoved + through
    through, *dfirst = _step_vjp(dmoved, still, first, how)
    df, dg = (dsecond, dfirst) if inverse else (dfirst, dsecond)
    return _joined(dmoved, dstill + through, inverse), *df[:2], *dg[:2], *df[2:], *dg[2:]


def _ordered(x, f, g, activation, inverse):
    """The half that moves first and the other, its network and the other's, and how a network is added."""
    half = x.shape[-1] // 2
    halves, networks = (x[..., :half], x[..., half:]), (f, g)
    if inverse:
        halves, networks = halves[::-1], networks[::-1]
    return halves, *networks, {"activation": activation, "scaling": -1.0 if inverse else 1.0}


def _joined(moved, still, inverse):
    return np.concatenate([still, moved] if inverse else [moved, still], axis=-1)


def _step(moved, still, network, how):
    """What moves, plus or minus the network of what stands still."""
    down, up, down_bias, up_bias = network
    return adapter.bottleneck.forward(still, down, up, moved, down_bias, up_bias, **how)


def _step_vjp(dmoved, still, network, how):
    """To what stood still, and to the network."""
    down, up, down_bias, up_bias = network
    dstill, ddown, dup, _, ddown_bias, dup_bias, _ = adapter.bottleneck.backward(
        dmoved, still, down, up, None, down_bias, up_bias, **how
    )
    return dstill, ddown, dup, ddown_bias, dup_bias


@couple.problems
def early_training(random, arrays, attributes):
    """Near the identity, as after the first steps."""
    return {n: arrays[n] * 2.0**-10 for n in ("f_up", "g_up")}


@couple.anchors
def inactive(random, arrays, attributes):
    """relu takes any integers. The others are exact at zero only: no bias inside, and nothing that goes into them."""
    if attributes["activation"] == "relu":
        return {}
    return {n: np.zeros_like(arrays[n]) for n in ("f_down", "g_down", "f_down_bias", "g_down_bias") if n in arrays}


def init(random: np.random.Generator, d: int, *, reduction: int = 2) -> dict[str, np.ndarray]:
    """Matrices normal with deviation 0.02, as AdapterHub draws them, and biases zero.

    Parameters
    ----------
    random : numpy.random.Generator
    d : int
        Width of the embeddings, at least 2.
    reduction : int
        Width of a network's input over that of its hidden layer.

    Returns
    -------
    dict of str to float64 array
    """
    found: dict[str, np.ndarray] = {}
    for name, reads, writes in (("f", d - d // 2, d // 2), ("g", d // 2, d - d // 2)):
        begun = adapter.init(random, reads, writes, width=reads // reduction, start="bert")
        found |= {f"{name}_{n}": a for n, a in begun.items()}
    return found


def count(d: int, *, reduction: int = 2) -> int:
    """Trainable parameters: two networks with biases."""
    a, b = d // 2, d - d // 2
    return adapter.count(b, a, width=b // reduction) + adapter.count(a, b, width=a // reduction)
