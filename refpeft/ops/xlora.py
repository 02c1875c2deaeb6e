"""X-LoRA: several LoRA under gates of each token's own (Buehler and Buehler 2024, arXiv:2402.07148, as peft implements it).

    y = x Wᵀ + s (sum over k of g_k drop_k(x) A_kᵀ B_kᵀ)        g = softmax((C h + c) / T)

h is the last hidden state of a first pass over the input, C (k, d) and c the classifier's head. Of the gates a few may be kept,
the others set to zero, and those that are left normalised by a second softmax. The adapters were trained before; what is trained
is C and c, and layers below them where there are any.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import dropout, positions, scatter_add, topk
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops.lora_init import kaiming_uniform
from refpeft.ops.vblora import apart

LARGEST = 8.0
"""Of a problem's logits: where they lie further apart, one gate is left, and nothing of the others to judge."""
_SIZES = {"k": (2, 4, 3, 1, 5), "r": (2, 1, 3)}


@operation(
    "xlora.linear",
    "x[*n,i] weight[o,i] a[k,r,i] b[k,o,r] gates[*n,k] bias?[o] mask?: bool[*n,k,i] -> y[*n,o] where keep <= 1, keep > 0",
    sizes=_SIZES,
)
def linear(x, weight, a, b, gates, bias=None, mask=None, *, scaling: float, keep: float = 1.0):
    """y = x Wᵀ + bias + s (sum over k of g_k drop_k(x) A_kᵀ B_kᵀ), where drop_k(x) = mask_k x / keep.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        Frozen base weight W.
    a, b : (k, r, i), (k, o, r)
        The factors of each LoRA.
    gates : (*n, k)
        g, of each token.
    bias : (o,), optional
        The base layer's bias.
    mask : (*n, k, i) bool, optional
        Dropout before each A: which elements are kept.
    scaling : float
        s; alpha / r, times the global weight of the gates. Where the adapters' differ, they belong to B_k.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (*n, o)
    """
    h = _hidden(x, a) if mask is None else _apart(_dropped(x, mask, keep), a)
    return plus(x @ weight.T + (scaling * _flat(h * np.expand_dims(gates, -1))) @ _beside(b).T, bias)


@linear.vjp
def _(dy, x, weight, a, b, gates, bias=None, mask=None, *, scaling, keep=1.0):
    """With z_k = drop_k(x), h_k = z_k A_kᵀ, du = s dy and dm_k = du B_k: dg_k = dm_k . h_k, dB_k = duᵀ (g_k h_k),
    dh_k = g_k dm_k, dA_k = dh_kᵀ z_k, dx = dy W + sum of drop_k(dh_k A_k).
    """
    (k, r, i), o = a.shape, b.shape[1]
    z = None if mask is None else _dropped(x, mask, keep)
    h, g, du = _hidden(x, a) if z is None else _apart(z, a), np.expand_dims(gates, -1), scaling * dy
    dm = (du @ _beside(b)).reshape(*x.shape[:-1], k, r)
    dgates, dh = np.sum(dm * h, axis=-1), dm * g
    db = (rows(du).T @ rows(_flat(h * g))).reshape(o, k, r).transpose(1, 0, 2)
    if z is None:
        da = (rows(_flat(dh)).T @ rows(x)).reshape(k, r, i)
        through = _flat(dh) @ a.reshape(k * r, i)
    else:
        n = rows(x).shape[0]
        da = dh.reshape(n, k, r).transpose(1, 2, 0) @ z.reshape(n, k, i).transpose(1, 0, 2)
        through = np.sum(dropout(_apart(dh, a.transpose(0, 2, 1)), mask, keep), axis=-2)
    dx = dy @ weight + through
    return dx, rows(dy).T @ rows(x), da, db, dgates, rows(dy).sum(axis=0)


@operation(
    "xlora.gates",
    "hidden[*n,d] head[k,d] head_bias?[k] -> gates[*n,k] where temperature > 0, k >= 1",
    sizes=_SIZES | {"k": (2, 4, 3, 5)},  # the gate of one adapter is 1, whatever its logit
)
def gates(hidden, head, head_bias=None, *, temperature: float = 1.0):
    """g = softmax((C h + c) / T).

    Parameters
    ----------
    hidden : (*n, d)
        h.
    head : (k, d)
        C, a row for each adapter (and layer, where each layer has gates of its own).
    head_bias : (k,), optional
        c.
    temperature : float
        T, above 0.

    Returns
    -------
    gates : (*n, k)
    """
    return _softmax(plus(hidden @ head.T, head_bias) / temperature)


@gates.vjp
def _(dgates, hidden, head, head_bias=None, *, temperature=1.0):
    """dlogits = g o (dg - g . dg) / T; dh = dlogits C, dC = dlogitsᵀ h, dc = the sum of dlogits."""
    g = _softmax(plus(hidden @ head.T, head_bias) / temperature)
    dlogits = g * (dgates - np.sum(g * dgates, axis=-1, keepdims=True)) / temperature
    return dlogits @ head, rows(dlogits).T @ rows(hidden), rows(dlogits).sum(axis=0)


@operation(
    "xlora.top",
    "gates[*n,k] -> kept[*n,k] where chosen >= 1, chosen <= k",
    sizes=_SIZES | {"chosen": (2, 1, 3)},
    nonfinite=(),
)
def top(gates, *, chosen: int, softmax: bool = False):
    """The largest gates of each token, zeros for the others; with ``softmax``, the softmax of those that are left and not zero.

    Parameters
    ----------
    gates : (*n, k)
        Of equal ones the first are kept.
    chosen : int
        How many are kept, from 1 to k.
    softmax : bool

    Returns
    -------
    kept : (*n, k)
    """
    left = largest(gates, chosen)
    return softmax_over(gates, np.logical_and(left, gates != 0)) if softmax else np.where(left, gates, 0.0)


@top.vjp
def _(dkept, gates, *, chosen, softmax=False):
    """Through what is left; with ``softmax``, p o (dp - p . dp)."""
    left = largest(gates, chosen)
    if not softmax:
        return np.where(left, dkept, 0.0)
    p = softmax_over(gates, np.logical_and(left, gates != 0))
    return p * (dkept - np.sum(p * dkept, axis=-1, keepdims=True))


def _hidden(x, a):
    """(*n, k, r): what each adapter makes of x on its way through the rank."""
    k, r, i = a.shape
    return (x @ a.reshape(k * r, i).T).reshape(*x.shape[:-1], k, r)


def _dropped(x, mask, keep):
    """(*n, k, i): x on its way into each adapter."""
    return dropout(np.broadcast_to(np.expand_dims(x, -2), mask.shape), mask, keep)


def _apart(z, a):
    """(*n, k, r): each adapter's z (*n, k, i) times its own A_kᵀ."""
    return (np.expand_dims(z, -2) @ a.transpose(0, 2, 1)).reshape(*z.shape[:-1], a.shape[1])


def _flat(h):
    """(*n, k, r) to (*n, k r)."""
    return h.reshape(*h.shape[:-2], h.shape[-2] * h.shape[-1])


def _beside(b):
    """(k, o, r) to (o, k r): all B side by side."""
    k, o, r = b.shape
    return b.transpose(1, 0, 2).reshape(o, k * r)


def _softmax(logits):
    e = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def largest(gates, chosen):
    """(*n, k) bool: the ``chosen`` largest gates of each token."""
    k, flat = gates.shape[-1], rows(gates)
    places = topk(flat, chosen) + k * np.expand_dims(positions(flat, 0), 1)
    ones = np.ones(places.shape)
    return (scatter_add(ones, places, flat.shape[0] * k) > 0).reshape(gates.shape)


def softmax_over(gates, left):
    """The softmax of what is left, zero elsewhere and where nothing is."""
    most = np.max(np.where(left, gates, -(2.0**15)), axis=-1, keepdims=True)
    e = np.where(left, np.exp(np.where(left, gates - most, 0.0)), 0.0)
    total = np.sum(e, axis=-1, keepdims=True)
    return e / np.where(total > 0, total, 1.0)


@gates.makes_valid
def bounded_logits(random, arrays, attributes):
    """Head and bias over the power of two that brings what adds up to a logit to `LARGEST` at most."""
    size = {n: np.abs(a) for n, a in arrays.items()}
    logits = plus(size["hidden"] @ size["head"].T, size.get("head_bias"))
    most = np.max(logits, initial=0.0) / attributes["temperature"]
    if not most > LARGEST:
        return {}
    factor = 2.0 ** -np.ceil(np.log2(most / LARGEST))
    return {n: factor * arrays[n] for n in ("head", "head_bias") if n in arrays}


@gates.anchors
def equal_logits(random, arrays, attributes):
    """A zero head: every adapter has the gate 1 / k."""
    return {n: np.zeros_like(arrays[n]) for n in ("head", "head_bias") if n in arrays}


@top.makes_valid
def separated(random, arrays, attributes):
    """No two gates of a token so close that the flushing of subnormal numbers could change which are larger."""
    return {"gates": apart(arrays["gates"])}


def init(random: np.random.Generator, d: int, *, adapters: int) -> dict[str, np.ndarray]:
    """The head as torch starts a linear layer: matrix and bias uniform on [-1/sqrt(d), 1/sqrt(d)).

    Returns
    -------
    dict of str to float64 array
        head (adapters, d) and head_bias (adapters,).
    """
    bound = d**-0.5
    return {"head": kaiming_uniform(random, (adapters, d)), "head_bias": random.uniform(-bound, bound, adapters)}


def count(d: int, *, adapters: int) -> int:
    """Trainable parameters of the head: k (d + 1)."""
    return adapters * (d + 1)
