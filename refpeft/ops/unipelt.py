"""UniPELT: LoRA, an adapter and a prefix in one model, each under a gate of its own (Mao et al. 2021, arXiv:2110.07577).

A gate looks at the hidden states x (t, i) of a sequence and says how much the method beside it has to say there:

    G = mean over the t tokens of sigmoid(x wᵀ + c)        w (1, i), c (1), one number for each sequence

    LoRA       y = x Wᵀ + G x Aᵀ Bᵀ                        G in the place of the scaling
    adapter    y = x + G A(x)                              A as in `adapter.bottleneck`
    prefix     y = softmax(q [G P_K; k]ᵀ / sqrt(d)) [G P_V; v]

The mean is the authors' code's and AdapterHub's; the paper has a sigmoid of the input.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops import adapter, prefix
from refpeft.ops._activations import Name, sigmoid
from refpeft.ops._arrays import plus, rows
from refpeft.ops._logits import keys, selection, tamed
from refpeft.ops.attention import before
from refpeft.ops.lora_init import kaiming_uniform

_TOKENS = {"t": (2, 1, 4, 3, 8)}


def gates(x, gate, gate_bias):
    """G (*n, k): of each sequence and each row of ``gate`` (k, i) the mean of its sigmoids over the tokens."""
    return np.sum(sigmoid(plus(x @ gate.T, gate_bias)), axis=-2) / x.shape[-2]


def gates_vjp(dgates, x, gate, gate_bias):
    """With p the sigmoids: their logits get p (1 - p) dG / t, and a linear layer takes that back to x, w and c."""
    p = sigmoid(plus(x @ gate.T, gate_bias))
    dlogits = p * (1 - p) * (np.expand_dims(dgates, -2) / x.shape[-2])
    return dlogits @ gate, rows(dlogits).T @ rows(x), rows(dlogits).sum(axis=0)


@operation(
    "unipelt.linear",
    "x[*n,t,i] weight[o,i] a[r,i] b[o,r] gate[1,i] gate_bias?[1] bias?[o] mask?: bool[*n,t,i] -> y[*n,t,o] "
    "where t >= 1, keep <= 1, keep > 0",
    sizes=_TOKENS,
)
def linear(x, weight, a, b, gate, gate_bias=None, bias=None, mask=None, *, keep: float = 1.0):
    """y = x Wᵀ + bias + G (drop(x) Aᵀ Bᵀ), G the gate of each sequence.

    Parameters
    ----------
    x : (*n, t, i)
        Sequences of t tokens.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        LoRA's factors.
    gate : (1, i)
        w.
    gate_bias : (1,), optional
        c.
    bias : (o,), optional
        The base layer's bias.
    mask : (*n, t, i) bool, optional
        Dropout before A: which elements are kept. The gate sees all of x.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (*n, t, o)
    """
    z = x if mask is None else dropout(x, mask, keep)
    g = np.expand_dims(gates(x, gate, gate_bias), -1)
    return plus(x @ weight.T + g * ((z @ a.T) @ b.T), bias)


@linear.vjp
def _(dy, x, weight, a, b, gate, gate_bias=None, bias=None, mask=None, *, keep=1.0):
    """With h = z Aᵀ and du = G dy: LoRA's gradients, and dG = the sum of dy o (h Bᵀ) over a sequence, to x, w and c."""
    z = x if mask is None else dropout(x, mask, keep)
    g, h = np.expand_dims(gates(x, gate, gate_bias), -1), z @ a.T
    du = g * dy
    dh = du @ b
    dz = dh @ a
    through, dgate, dgate_bias = gates_vjp(_summed(dy * (h @ b.T)), x, gate, gate_bias)
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep)) + through
    da, db, dweight = rows(dh).T @ rows(z), rows(du).T @ rows(h), rows(dy).T @ rows(x)
    return dx, dweight, da, db, dgate, dgate_bias, rows(dy).sum(axis=0)


@operation(
    "unipelt.bottleneck",
    "x[*n,t,i] down[r,i] up[o,r] gate[1,i] residual?[*n,t,o] down_bias?[r] up_bias?[o] gate_bias?[1] -> y[*n,t,o] where t >= 1",
    sizes=_TOKENS,
)
def bottleneck(
    x,
    down,
    up,
    gate,
    residual=None,
    down_bias=None,
    up_bias=None,
    gate_bias=None,
    *,
    activation: Name = "relu",
    scaling: float = 1.0,
):
    """y = residual + G s (f(x Dᵀ + d) Uᵀ + u), G the gate of each sequence.

    Parameters
    ----------
    x : (*n, t, i)
        What adapter and gate read, sequences of t tokens.
    down, up : (r, i), (o, r)
        D and U.
    gate : (1, i)
        w.
    residual : (*n, t, o), optional
        What the adapter adds to; neither scaled nor gated.
    down_bias, up_bias, gate_bias : (r,), (o,), (1,), optional
        d, u and c.
    activation : "relu", "gelu", "gelu_tanh", "silu" or "tanh"
        f.
    scaling : float
        s.

    Returns
    -------
    y : (*n, t, o)
    """
    v = adapter.bottleneck.forward(x, down, up, None, down_bias, up_bias, activation=activation, scaling=scaling)
    return plus(np.expand_dims(gates(x, gate, gate_bias), -1) * v, residual)


@bottleneck.vjp
def _(
    dy,
    x,
    down,
    up,
    gate,
    residual=None,
    down_bias=None,
    up_bias=None,
    gate_bias=None,
    *,
    activation="relu",
    scaling=1.0,
):
    """With v what the adapter gives: dv = G dy goes back through it, and dG = the sum of dy o v over a sequence to x, w and c."""
    read = (x, down, up, None, down_bias, up_bias)
    v = adapter.bottleneck.forward(*read, activation=activation, scaling=scaling)
    dv = np.expand_dims(gates(x, gate, gate_bias), -1) * dy
    dx, ddown, dup, _, ddown_bias, dup_bias, _ = adapter.bottleneck.backward(
        dv, *read, activation=activation, scaling=scaling
    )
    through, dgate, dgate_bias = gates_vjp(_summed(dy * v), x, gate, gate_bias)
    return dx + through, ddown, dup, dgate, dy, ddown_bias, dup_bias, dgate_bias


@operation(
    "unipelt.attention",
    "q[*n,h,s,d] k[*n,g,t,d] v[*n,g,t,e] prefix_k[g,p,d] prefix_v[g,p,e] hidden[*n,l,w] gate[j,w] gate_bias?[j] "
    "mask?: bool[*n,s,t] -> y[*n,h,s,e] "
    "where g >= 1, h//g*g = h, t >= 1, d >= 1, l >= 1, j >= 1, j <= 2, offset >= 0",
    sizes={
        "h": (2, 1, 4),
        "g": (1, 2),
        "s": (2, 1, 3),
        "t": (2, 3, 4),
        "d": (4, 1, 2, 3),
        "e": (2, 1, 3),
        "p": (2, 1, 3),
    }
    | {"l": (2, 1, 4, 3), "w": (3, 2, 1, 5), "j": (2, 1), "offset": (0, 1, 2)},
    nonfinite=(),
)
def attention(
    q,
    k,
    v,
    prefix_k,
    prefix_v,
    hidden,
    gate,
    gate_bias=None,
    mask=None,
    *,
    causal: bool = False,
    offset: int = 0,
):
    """y = softmax(q [G P_K; k]ᵀ / sqrt(d)) [G' P_V; v], the prefix always visible.

    Parameters
    ----------
    q : (*n, h, s, d)
        Queries of h heads.
    k, v : (*n, g, t, d), (*n, g, t, e)
        Keys and values of g groups of heads; g divides h.
    prefix_k, prefix_v : (g, p, d), (g, p, e)
        The layer's prefix, shared by the batch.
    hidden : (*n, l, w)
        What goes into the layer, of which the gates are made.
    gate : (1, w) or (2, w)
        w; with two rows the first gates keys and the second values, with one it gates both.
    gate_bias : (1,) or (2,), optional
        c.
    mask : (*n, s, t) bool, optional
        True where a query may meet a key of the input; the prefix needs none.
    causal : bool
        Whether query i sees the input's keys j <= i + offset only.
    offset : int
        How many of the input's keys stand before the first query's own, the prefix not among them.

    Returns
    -------
    y : (*n, h, s, e)
    """
    for_keys, for_values = _of_prefix(gates(hidden, gate, gate_bias))
    return prefix.behind(q, k, v, for_keys * prefix_k, for_values * prefix_v, mask, causal, offset)


@attention.vjp
def _(dy, q, k, v, prefix_k, prefix_v, hidden, gate, gate_bias=None, mask=None, *, causal=False, offset=0):
    """With dK and dV what a sequence's gated prefix gets: the prefix gets the sums of G dK and G' dV over the batch, a gate the
    sum of dK o P_K or dV o P_V, or of both where it is one.
    """
    for_keys, for_values = _of_prefix(gates(hidden, gate, gate_bias))
    own = (for_keys * prefix_k, for_values * prefix_v)
    dq, dk, dv, dkeys, dvalues = prefix.behind_vjp(dy, q, k, v, *own, mask, causal, offset)
    of_keys, of_values = _summed(dkeys * prefix_k, 3), _summed(dvalues * prefix_v, 3)
    dgates = np.concatenate([of_keys, of_values], axis=-1) if gate.shape[0] == 2 else of_keys + of_values
    dhidden, dgate, dgate_bias = gates_vjp(dgates, hidden, gate, gate_bias)
    dprefix_k, dprefix_v = prefix.over_batch(for_keys * dkeys), prefix.over_batch(for_values * dvalues)
    return dq, dk, dv, dprefix_k, dprefix_v, dhidden, dgate, dgate_bias


def _summed(products, axes=2):
    """(*n, t, o) to (*n, 1): what the gate of a sequence gets."""
    return np.expand_dims(np.sum(products, axis=tuple(range(-axes, 0))), -1)


def _of_prefix(g):
    """(*n, j) to the gates of keys and of values, (*n, 1, 1, 1) each."""
    g = np.expand_dims(g, (-3, -2))
    return g[..., :1], g[..., -1:]


@linear.makes_valid
@bottleneck.makes_valid
def moderate_gates(random, arrays, attributes):
    """Logits of at most 8 in magnitude, by a power of two into the gate: a sigmoid beyond that is its asymptote."""
    x, size = arrays.get("hidden", arrays.get("x")), np.abs(arrays["gate"])
    largest = np.max(
        plus(np.abs(x) @ size.T, np.abs(arrays["gate_bias"]) if "gate_bias" in arrays else None), initial=0.0
    )
    if not largest > 8:
        return {}
    factor = 2.0 ** -np.ceil(np.log2(largest / 8))
    return {n: factor * arrays[n] for n in ("gate", "gate_bias") if n in arrays}


@attention.makes_valid
def moderate_logits(random, arrays, attributes):
    """Those of the gates, and of attention at most 16."""
    q, k, prefix_k = (arrays[n] for n in ("q", "k", "prefix_k"))
    return {"q": tamed(q, before(prefix_k, k), 1 / np.sqrt(q.shape[-1]))} | moderate_gates(random, arrays, attributes)


@linear.anchors
def half_open(random, arrays, attributes):
    """Gates of a half: w and c zero."""
    return {n: np.zeros_like(arrays[n]) for n in ("gate", "gate_bias") if n in arrays}


@bottleneck.anchors
def _(random, arrays, attributes):
    """The same, and an adapter whose activations are exact."""
    return adapter.inactive(random, arrays, attributes) | half_open(random, arrays, attributes)


@attention.anchors
def _(random, arrays, attributes):
    """The same, and one-hot keys and queries, the prefix's keys halved."""
    q, mask = arrays["q"], arrays.get("mask")
    k, prefix_k = keys(random, arrays["k"].shape), 2 * keys(random, arrays["prefix_k"].shape)
    both = before(prefix_k / 2, k)
    shown = prefix.visible(q, both, mask, prefix_k, attributes["causal"], attributes["offset"])
    chosen = selection(random, q, both, shown, v=arrays["v"])
    return {"k": k, "prefix_k": prefix_k} | chosen | half_open(random, arrays, attributes)


def init(random: np.random.Generator, width: int, *, gates: int = 1) -> dict[str, np.ndarray]:
    """Gates over hidden states of that width: w normal with deviation 0.02, as AdapterHub has it; c zero, so that they are half
    open.

    Returns
    -------
    dict of str to float64 array
        gate (gates, width), gate_bias (gates,).
    """
    return {"gate": random.normal(0.0, 0.02, (gates, width)), "gate_bias": np.zeros(gates)}


def init_linear(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """LoRA's start and a gate's: a (rank, i) Kaiming-uniform, b (o, rank) zero."""
    return {"a": kaiming_uniform(random, (rank, i)), "b": np.zeros((o, rank))} | init(random, i)


def count(width: int, *, gates: int = 1) -> int:
    """Trainable parameters of the gates: w and c."""
    return gates * (width + 1)
