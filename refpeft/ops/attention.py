"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1), with heads that share keys.

Query i of head j sees some of the t keys of its group of heads, and takes the mean of their values with weights

    S = s Q Kᵀ        P = exp(S - max S) / sum exp(S - max S), over the keys seen        Y = P V

Heads come in g groups of h / g (Ainslie et al. 2023, arXiv:2305.13245, grouped-query attention): head j reads the keys and
values of group j // (h / g). What stands before the queries, a prefix or a cache, is only more keys and values in front, and
``offset`` their number.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import positions
from refpeft.operation import operation
from refpeft.ops._arrays import turned
from refpeft.ops._logits import keys, selection, tamed


@operation(
    "nn.attention",
    "q[*n,h,s,d] k[*n,g,t,d] v[*n,g,t,e] mask?: bool[*n,s,t] -> y[*n,h,s,e] "
    "where g >= 1, h//g*g = h, t >= 1, d >= 1, scale > 0, offset >= 0",
    sizes={"h": (2, 1, 4), "g": (1, 2, 4), "s": (2, 1, 3, 5), "t": (4, 2, 3, 5, 8), "d": (4, 1, 2, 3), "e": (2, 1, 3)}
    | {"offset": (0, 1, 2, 3)},
    nonfinite=(),
)
def attention(q, k, v, mask=None, *, scale: float, causal: bool = False, offset: int = 0):
    """y = softmax(s q kᵀ) v over the keys that a query sees.

    Parameters
    ----------
    q : (*n, h, s, d)
        Queries of h heads.
    k : (*n, g, t, d)
        Keys of g groups of heads; g divides h.
    v : (*n, g, t, e)
        Values.
    mask : (*n, s, t) bool, optional
        True where query and key may meet; the same for all heads.
    scale : float
        s, above 0; 1/sqrt(d) in the paper.
    causal : bool
        Whether query i sees the keys j <= i + offset only.
    offset : int
        How many keys stand before the first query's own, as a cache or a prefix does.

    Returns
    -------
    y : (*n, h, s, e)
        Zero for a query that sees no key.
    """
    return attend(q, k, v, seen(q, k, mask, causal, offset), scale)


@attention.vjp
def _(dy, q, k, v, mask=None, *, scale, causal=False, offset=0):
    """dV = Pᵀ dY, dP = dY Vᵀ, dS = P o (dP - rowsum(P o dP)), dQ = s dS K, dK = s dSᵀ Q."""
    return attend_vjp(dy, q, k, v, seen(q, k, mask, causal, offset), scale)


def seen(q, k, mask, causal: bool, offset: int):
    """Which keys each query sees, to be broadcast to (*n, g, h/g, s, t)."""
    if mask is not None:
        mask = np.expand_dims(mask, (-4, -3))
    if not causal:
        return everywhere(k, -2) if mask is None else mask
    past = positions(k, -2) <= np.expand_dims(positions(q, -2), 1) + offset
    return past if mask is None else np.logical_and(mask, past)


def attend(q, k, v, seen, scale):
    """y (*n, h, s, e) of q (*n, h, s, d), k (*n, g, t, d) and v (*n, g, t, e)."""
    p = softmax(_logits(q, k, scale), seen)
    return (_stacked(p) @ v).reshape(*q.shape[:-1], v.shape[-1])


def attend_vjp(dy, q, k, v, seen, scale):
    """Gradients to q, k and v, the heads of a group summed into its keys and values.

    P comes back from the log-sum-exp of each row, all that a forward need keep of it (Dao et al. 2022, arXiv:2205.14135).
    """
    s, lse = _log_sum_exp(_logits(q, k, scale), seen)
    p, dy = _stacked(np.where(seen, np.exp(s - lse), 0.0)), _grouped(dy, k)
    dp = dy @ turned(v)
    ds = scale * (p * (dp - np.sum(p * dp, axis=-1, keepdims=True)))
    return (ds @ k).reshape(q.shape), turned(ds) @ _grouped(q, k), turned(p) @ dy


def everywhere(x, axis):
    """True along an axis of x."""
    return positions(x, axis) >= 0


def softmax(s, seen=None):
    """exp(s - max) / sum over the last axis, of the elements that are ``seen``; the others, and a row of them, are zero."""
    _, e, total = _shifted(s, everywhere(s, -1) if seen is None else seen)
    return e / total


def _log_sum_exp(s, seen):
    """s with what is not seen lowered, and max + log sum exp(s - max) of each row, over what is seen."""
    s, _, total = _shifted(s, seen)
    return s, np.max(s, axis=-1, keepdims=True) + np.log(total)


def _shifted(s, seen):
    """s with what is not seen lowered, exp(s - max) of what is seen, and its sum in each row.

    The row's minimum stands in for what is not seen: it never exceeds the maximum of the rest. Where anything is seen, the
    sum is at least exp(0) = 1.
    """
    s = np.where(seen, s, np.min(s, axis=-1, keepdims=True))
    e = np.where(seen, np.exp(s - np.max(s, axis=-1, keepdims=True)), 0.0)
    return s, e, np.maximum(np.sum(e, axis=-1, keepdims=True), 1.0)


def _logits(q, k, scale):
    """s Q Kᵀ, (*n, g, h/g, s, t)."""
    s = (scale * _grouped(q, k)) @ turned(k)
    return s.reshape(*k.shape[:-2], q.shape[-3] // k.shape[-3], q.shape[-2], k.shape[-2])


def _stacked(p):
    """(*n, g, h/g, s, t) as (*n, g, (h/g) s, t): the heads of a group one below the other."""
    return p.reshape(*p.shape[:-3], p.shape[-3] * p.shape[-2], p.shape[-1])


def _grouped(q, k):
    """(*n, h, s, d) as (*n, g, (h/g) s, d)."""
    return _stacked(q.reshape(*k.shape[:-2], q.shape[-3] // k.shape[-3], *q.shape[-2:]))


def before(prefix, x):
    """[prefix; x] along the tokens: (g, p, d) or (*n, g, p, d), and (*n, g, t, d), give (*n, g, p + t, d)."""
    return np.concatenate([np.broadcast_to(prefix, (*x.shape[:-3], *prefix.shape[-3:])), x], axis=-2)


@attention.makes_valid
def tame(random, arrays, attributes):
    """Logits of at most 16: see `tamed`."""
    return {"q": tamed(arrays["q"], arrays["k"], attributes["scale"])}


@attention.anchors
def anchored(random, arrays, attributes):
    """One-hot keys and queries: see `selection`."""
    q, k, v, mask = (arrays.get(n) for n in ("q", "k", "v", "mask"))
    k, visible = keys(random, k.shape), seen(q, k, mask, attributes["causal"], attributes["offset"])
    return {"k": k} | selection(random, q, k, visible, v=v)
