"""Shadow: a state beside the hidden states, which corrects what goes into each block (peft's ShadowPEFT).

A small model gives a shadow s of the hidden states h, (*n, d). Before a frozen block, what the two differ by goes through a low
rank and is added; behind the block, the shadow moves by a gate towards a candidate, each a small network on the block's output:

    inject   h <- h + alpha Up Down drop(h - s)        Down (r, d),  Up (d, r)
    update   s <- (1 - g) o s + g o c                  c = C2 gelu(C1 h + c1) + c2,  g = sigmoid(G2 gelu(G1 h + g1) + g2)

Up is zero at the start, so that training begins at the base model. The small model itself is no part of this.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops._activations import gelu, gelu_vjp, sigmoid
from refpeft.ops._arrays import rows
from refpeft.ops.lora_init import kaiming_uniform

_NETWORKS = (
    "candidate_down[m,d] candidate_down_bias[m] candidate_up[d,m] candidate_up_bias[d] "
    "gate_down[m,d] gate_down_bias[m] gate_up[d,m] gate_up_bias[d]"
)


@operation(
    "shadow.inject",
    "x[*n,d] shadow[*n,d] down[r,d] up[d,r] mask?: bool[*n,d] -> y[*n,d] where keep <= 1, keep > 0",
)
def inject(x, shadow, down, up, mask=None, *, scaling: float, keep: float = 1.0):
    """y = x + alpha drop(x - shadow) Downᵀ Upᵀ.

    Parameters
    ----------
    x, shadow : (*n, d)
        Hidden states before a block, and their shadow.
    down, up : (r, d), (d, r)
    mask : (*n, d) bool, optional
        Dropout of the difference: which elements are kept.
    scaling : float
        alpha.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (*n, d)
    """
    return x + scaling * ((_dropped(x - shadow, mask, keep) @ down.T) @ up.T)


@inject.vjp
def _(dy, x, shadow, down, up, mask=None, *, scaling, keep=1.0):
    """With e = drop(x - s), k = e Downᵀ, du = alpha dy and dk = du Up: de = drop(dk Down), dx = dy + de, ds = -de,
    dDown = dkᵀ e, dUp = duᵀ k.
    """
    e, du = _dropped(x - shadow, mask, keep), scaling * dy
    dk = du @ up
    de = _dropped(dk @ down, mask, keep)
    return dy + de, -de, rows(dk).T @ rows(e), rows(du).T @ rows(e @ down.T)


@operation(
    "shadow.update", f"x[*n,d] shadow[*n,d] {_NETWORKS} -> y[*n,d]", sizes={"m": (2, 1, 3, 5), "d": (3, 2, 4, 5, 7, 1)}
)
def update(
    x,
    shadow,
    candidate_down,
    candidate_down_bias,
    candidate_up,
    candidate_up_bias,
    gate_down,
    gate_down_bias,
    gate_up,
    gate_up_bias,
):
    """y = (1 - g) o shadow + g o c, where c and sigmoid⁻¹(g) are small networks on x.

    Parameters
    ----------
    x, shadow : (*n, d)
        Hidden states behind a block, and the shadow before it.
    candidate_down, candidate_down_bias : (m, d), (m,)
        C1 and c1.
    candidate_up, candidate_up_bias : (d, m), (d,)
        C2 and c2.
    gate_down, gate_down_bias : (m, d), (m,)
        G1 and g1.
    gate_up, gate_up_bias : (d, m), (d,)
        G2 and g2.

    Returns
    -------
    y : (*n, d)
    """
    c = _network(x, candidate_down, candidate_down_bias, candidate_up, candidate_up_bias)
    g = sigmoid(_network(x, gate_down, gate_down_bias, gate_up, gate_up_bias))
    return (1 - g) * shadow + g * c


@update.vjp
def _(dy, x, shadow, *networks):
    """ds = (1 - g) o dy, dc = g o dy, and what the sigmoid is of gets g (1 - g) (c - s) o dy; each goes back through its network
    to x.
    """
    candidate, gate = networks[:4], networks[4:]
    c, g = _network(x, *candidate), sigmoid(_network(x, *gate))
    through_candidate, *dcandidate = _network_vjp(g * dy, x, *candidate)
    through_gate, *dgate = _network_vjp(g * (1 - g) * ((c - shadow) * dy), x, *gate)
    return through_candidate + through_gate, (1 - g) * dy, *dcandidate, *dgate


def _network(x, down, down_bias, up, up_bias):
    """Up gelu(Down x + b) + b'."""
    return gelu(x @ down.T + down_bias) @ up.T + up_bias


def _network_vjp(dz, x, down, down_bias, up, up_bias):
    """With a = Down x + b and da = gelu'(a) (dz Up): dx = da Down, dDown = daᵀ x, dUp = dzᵀ gelu(a)."""
    a = x @ down.T + down_bias
    da = gelu_vjp(dz @ up, a)
    ddown, dup = rows(da).T @ rows(x), rows(dz).T @ rows(gelu(a))
    return da @ down, ddown, rows(da).sum(axis=0), dup, rows(dz).sum(axis=0)


def _dropped(e, mask, keep):
    return e if mask is None else dropout(e, mask, keep)


@update.makes_valid
def moderate(random, arrays, attributes):
    """Layers over powers of two such that what adds up to an argument of a GELU is at most 4, and of a sigmoid at most 8: far
    from zero their slopes vanish, and gradients are nothing to judge.
    """
    size = {n: np.abs(a) for n, a in arrays.items()}
    changed: dict[str, np.ndarray] = {}
    for name in ("candidate", "gate"):
        hidden = size["x"] @ size[f"{name}_down"].T + size[f"{name}_down_bias"]
        changed |= {n: arrays[n] / _excess(hidden, 4.0) for n in (f"{name}_down", f"{name}_down_bias")}
        size["hidden"] = hidden / _excess(hidden, 4.0)
    logits = size["hidden"] @ size["gate_up"].T + size["gate_up_bias"]
    return changed | {n: arrays[n] / _excess(logits, 8.0) for n in ("gate_up", "gate_up_bias")}


def _excess(size, most: float) -> float:
    """The power of two that brings the largest below ``most``; 1 where it lies there."""
    largest = float(np.max(size, initial=0.0))
    return float(2.0 ** np.ceil(np.log2(largest / most))) if largest > most else 1.0


@update.anchors
def half_open(random, arrays, attributes):
    """Networks that say nothing of x, by their first layer: gelu(0) = 0, and a gate of a half."""
    silent = ("candidate_down", "candidate_down_bias", "gate_down", "gate_down_bias", "gate_up_bias")
    return {n: np.zeros_like(arrays[n]) for n in silent}


def init(random: np.random.Generator, d: int, *, rank: int, width: int) -> dict[str, np.ndarray]:
    """Up zero; all other matrices and biases uniform on [-1/sqrt(f), 1/sqrt(f)), f the fan-in, as torch starts linear layers.

    Returns
    -------
    dict of str to float64 array
        Of one block: down (rank, d), up (d, rank), and the two networks of that width.
    """
    arrays = {"down": kaiming_uniform(random, (rank, d)), "up": np.zeros((d, rank))}
    for name in ("candidate", "gate"):
        for layer, (o, i) in {"down": (width, d), "up": (d, width)}.items():
            arrays[f"{name}_{layer}"] = kaiming_uniform(random, (o, i))
            arrays[f"{name}_{layer}_bias"] = random.uniform(-(i**-0.5), i**-0.5, o)
    return arrays


def count(d: int, *, rank: int, width: int) -> int:
    """Trainable parameters of one block: 2 r d + 2 (2 m d + m + d); the model that gives the first shadow comes to that."""
    return 2 * rank * d + 2 * (2 * width * d + width + d)
