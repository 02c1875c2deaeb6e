"""Lily: low-rank adapters interconnected across layers (Zhong et al. 2024, arXiv:2407.09946, as peft implements it).

Layers near each other share A, all layers share e matrices B_j, and a router of each layer's own mixes these:

    h = A x        p = mean over the tokens of softmax(R h)        y = W x + s (sum of p_j B_j)ᵀ h

The mean goes over all tokens of the batch, so that y of one token depends on the others. A (r, i), B_j (r, o), R (e, r); B is
zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops.lora_init import kaiming_uniform

LARGEST = 8.0
"""Of a problem's logits: where they lie further apart, one B is left, and nothing of the others to judge."""


@operation(
    "lily.linear",
    "x[*n,i] weight[o,i] a[r,i] b[e,r,o] router[e,r] bias?[o] -> y[*n,o] where e >= 1",
    sizes={"e": (2, 4, 3, 1), "r": (2, 1, 3, 4, 5)},
)
def linear(x, weight, a, b, router, bias=None, *, scaling: float):
    """y = x Wᵀ + bias + s h (sum of p_j B_j), where h = x Aᵀ and p = the mean of softmax(h Rᵀ) over all rows of h.

    Parameters
    ----------
    x : (*n, i)
        All of them are averaged over.
    weight : (o, i)
        Frozen base weight W.
    a : (r, i)
        Shared by layers near each other.
    b : (e, r, o)
        B_j, shared by all layers.
    router : (e, r)
        R.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s.

    Returns
    -------
    y : (*n, o)
    """
    h = x @ a.T
    _, p = _routed(h, router)
    return plus(x @ weight.T + (scaling * h) @ _mixed(p, b), bias)


@linear.vjp
def _(dy, x, weight, a, b, router, bias=None, *, scaling):
    """With C the mixture, q the softmax of each of the t tokens and du = s dy: dC = hᵀ du, dB_j = p_j dC, dp_j = <B_j, dC>;
    each token's logits get q o (dp - q . dp) / t, of which dR = dlogitsᵀ h; dh = du Cᵀ + dlogits R, dA = dhᵀ x,
    dx = dy W + dh A.
    """
    h, du = x @ a.T, scaling * dy
    q, p = _routed(h, router)
    e, r, o = b.shape
    dmixed = (rows(h).T @ rows(du)).reshape(r * o)
    db = (np.expand_dims(p, 1) * dmixed).reshape(e, r, o)
    dq = (b.reshape(e, r * o) @ dmixed) / max(1, q.shape[0])
    dlogits = q * (dq - np.sum(q * dq, axis=-1, keepdims=True))
    dh = rows(du) @ _mixed(p, b).T + dlogits @ router
    dx = dy @ weight + (dh @ a).reshape(x.shape)
    return dx, rows(dy).T @ rows(x), dh.T @ rows(x), db, dlogits.T @ rows(h), rows(dy).sum(axis=0)


def _routed(h, router):
    """The softmax of each token's logits, (t, e), and its mean over the tokens, (e,); zero where there are none."""
    logits = rows(h @ router.T)
    exponentials = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    q = exponentials / np.sum(exponentials, axis=-1, keepdims=True)
    return q, np.sum(q, axis=0) / max(1, q.shape[0])


def _mixed(p, b):
    """The sum of p_j B_j, (r, o)."""
    e, r, o = b.shape
    return (p @ b.reshape(e, r * o)).reshape(r, o)


@linear.makes_valid
def bounded_logits(random, arrays, attributes):
    """The router over the power of two that brings what adds up to a logit to `LARGEST` at most."""
    size = {n: np.abs(arrays[n]) for n in ("x", "a", "router")}
    largest = np.max((size["x"] @ size["a"].T) @ size["router"].T, initial=0.0)
    return {"router": arrays["router"] * 2.0 ** -np.ceil(np.log2(largest / LARGEST))} if largest > LARGEST else {}


@linear.anchors
def equal_logits(random, arrays, attributes):
    """A zero router: every B has the weight 1 / e."""
    return {"router": np.zeros_like(arrays["router"])}


def init(random: np.random.Generator, o: int, i: int, *, rank: int, experts: int) -> dict[str, np.ndarray]:
    """A and the router Kaiming-uniform, B zero.

    Returns
    -------
    dict of str to float64 array
        a (rank, i), b (experts, rank, o) and router (experts, rank).
    """
    return {
        "a": kaiming_uniform(random, (rank, i)),
        "b": np.zeros((experts, rank, o)),
        "router": kaiming_uniform(random, (experts, rank)),
    }


def count(o: int, i: int, *, rank: int, experts: int) -> int:
    """Trainable parameters of one layer with A and B of its own: r (i + e o + e)."""
    return rank * (i + experts * o + experts)
