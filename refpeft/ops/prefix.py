"""Prefix tuning: trained keys and values in front of every layer's own (Li and Liang 2021, arXiv:2101.00190).

P virtual tokens give a layer P keys and values that no token of the input computed. Every query sees them, causal or not:

    y = softmax(q [P_K; K]ᵀ / sqrt(d)) [P_V; V]

The prefix is shared by the batch. The paper trains it through a perceptron, for stability, and keeps its output only:

    flat = tanh(E W1ᵀ + b1) W2ᵀ + b2        E (p, w), flat (p, 2 L g d)

P-tuning v2 (Liu et al. 2021, arXiv:2110.07602) trains the flat prefix itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refpeft.errors import AttributeValueError
from refpeft.operation import operation
from refpeft.ops._arrays import rows
from refpeft.ops._logits import keys, selection, tamed
from refpeft.ops.attention import attend, attend_vjp, before, seen

_SIZES = {"h": (2, 1, 4), "g": (1, 2, 4), "s": (2, 1, 3, 5), "t": (2, 3, 4, 5), "d": (4, 1, 2, 3), "e": (2, 1, 3)}
_SIZES |= {"p": (2, 1, 3, 0, 5), "offset": (0, 1, 2, 3)}


@operation(
    "prefix.attention",
    "q[*n,h,s,d] k[*n,g,t,d] v[*n,g,t,e] prefix_k[g,p,d] prefix_v[g,p,e] mask?: bool[*n,s,t] -> y[*n,h,s,e] "
    "where g >= 1, h//g*g = h, t >= 1, d >= 1, offset >= 0",
    sizes=_SIZES,
    nonfinite=(),
)
def attention(q, k, v, prefix_k, prefix_v, mask=None, *, causal: bool = False, offset: int = 0):
    """y = softmax(q [P_K; k]ᵀ / sqrt(d)) [P_V; v], the prefix always visible.

    Parameters
    ----------
    q : (*n, h, s, d)
        Queries of h heads.
    k : (*n, g, t, d)
        Keys of g groups of heads; g divides h.
    v : (*n, g, t, e)
        Values.
    prefix_k, prefix_v : (g, p, d), (g, p, e)
        The layer's prefix, shared by the batch; p = 0 is plain attention.
    mask : (*n, s, t) bool, optional
        True where a query may meet a key of the input; the prefix needs none.
    causal : bool
        Whether query i sees the input's keys j <= i + offset only.
    offset : int
        How many of the input's keys stand before the first query's own (a cache), the prefix not among them.

    Returns
    -------
    y : (*n, h, s, e)
    """
    return behind(q, k, v, prefix_k, prefix_v, mask, causal, offset)


@attention.vjp
def _(dy, q, k, v, prefix_k, prefix_v, mask=None, *, causal=False, offset=0):
    """Those of attention over [P_K; k] and [P_V; v], cut after p; the batch is summed into the prefix."""
    *gradients, dprefix_k, dprefix_v = behind_vjp(dy, q, k, v, prefix_k, prefix_v, mask, causal, offset)
    return *gradients, over_batch(dprefix_k), over_batch(dprefix_v)


def behind(q, k, v, prefix_k, prefix_v, mask, causal, offset):
    """Attention over [P_K; k] and [P_V; v], the prefix (g, p, d), or (*n, g, p, d) where each sequence has its own."""
    k, v = before(prefix_k, k), before(prefix_v, v)
    return attend(q, k, v, visible(q, k, mask, prefix_k, causal, offset), _scale(q))


def behind_vjp(dy, q, k, v, prefix_k, prefix_v, mask, causal, offset):
    """Its gradients; those to the prefix for each sequence."""
    k, v, p = before(prefix_k, k), before(prefix_v, v), prefix_k.shape[-2]
    dq, dk, dv = attend_vjp(dy, q, k, v, visible(q, k, mask, prefix_k, causal, offset), _scale(q))
    return dq, dk[..., p:, :], dv[..., p:, :], dk[..., :p, :], dv[..., :p, :]


def visible(q, k, mask, prefix, causal, offset):
    """What is seen of [P_K; k]: all of the prefix, and of k what mask and causality leave."""
    p = prefix.shape[-2]
    if mask is not None:
        hidden = np.pad(np.logical_not(mask), ((0, 0),) * (mask.ndim - 1) + ((p, 0),))
        mask = np.logical_not(hidden)
    return seen(q, k, mask, causal, offset + p)


def _scale(q):
    return 1 / math.sqrt(q.shape[-1])


def over_batch(x):
    """(*n, g, p, d) summed to (g, p, d)."""
    last = x.shape[-3:]
    return rows(x.reshape(*x.shape[:-3], math.prod(last))).sum(axis=0).reshape(last)


@attention.makes_valid
def tame(random, arrays, attributes):
    """Logits of at most 16, by a power of two into q."""
    q, k, prefix_k = (arrays[n] for n in ("q", "k", "prefix_k"))
    return {"q": tamed(q, before(prefix_k, k), _scale(q))}


@attention.anchors
def anchored(random, arrays, attributes):
    """One-hot keys and queries, in the prefix and behind it."""
    q, mask = arrays["q"], arrays.get("mask")
    k, prefix_k = (keys(random, arrays[n].shape) for n in ("k", "prefix_k"))
    both = before(prefix_k, k)
    shown = visible(q, both, mask, prefix_k, attributes["causal"], attributes["offset"])
    values = {n: arrays[n] for n in ("v", "prefix_v")}
    return {"k": k, "prefix_k": prefix_k} | selection(random, q, both, shown, **values)


@operation(
    "prefix.encode",
    "embedding[p,w] w1[m,w] b1[m] w2[c,m] b2[c] -> flat[p,c]",
    sizes={"p": (3, 2, 1, 5), "w": (4, 2, 3, 1), "m": (5, 2, 3), "c": (8, 4, 2)},
)
def encode(embedding, w1, b1, w2, b2):
    """flat = tanh(E W1ᵀ + b1) W2ᵀ + b2 (section 4.3), dropped after training.

    Parameters
    ----------
    embedding : (p, w)
        E, one row per virtual token.
    w1 : (m, w)
    b1 : (m,)
    w2 : (c, m)
        c = 2 L g d; see `prefix.cut`.
    b2 : (c,)

    Returns
    -------
    flat : (p, c)
    """
    return np.tanh(embedding @ w1.T + b1) @ w2.T + b2


@encode.vjp
def _(dflat, embedding, w1, b1, w2, b2):
    """With h = tanh(E W1ᵀ + b1) and da = (1 - h o h) o (dflat W2): each layer as a linear one."""
    h = np.tanh(embedding @ w1.T + b1)
    da = (1.0 - h * h) * (dflat @ w2)
    return da @ w1, da.T @ embedding, da.sum(axis=0), dflat.T @ h, dflat.sum(axis=0)


@operation(
    "prefix.cut",
    "flat[p,c] -> keys[l,g,p,d] values[l,g,p,d] where c = 2*l*g*d, l >= 1, g >= 1, d >= 1, p >= 0",
    sizes={"p": (3, 2, 1), "l": (2, 1, 3), "g": (2, 1, 3), "d": (3, 2, 1)},
)
def cut(flat, *, l: int, g: int, d: int):  # noqa: E741
    """Each layer's keys and values out of the flat prefix, whose columns run over (layer, key or value, group, element).

    Parameters
    ----------
    flat : (p, 2 l g d)
        As `prefix.encode` gives it, and as checkpoints hold it.
    l, g, d : int
        Layers, groups of heads with keys of their own, and elements of a head.

    Returns
    -------
    keys, values : (l, g, p, d)
    """
    apart = flat.reshape(flat.shape[0], l, 2, g, d).transpose(2, 1, 3, 0, 4)
    return apart[0], apart[1]


@cut.vjp
def _(dkeys, dvalues, flat, *, l, g, d):  # noqa: E741
    """The columns back in their places."""
    return together(dkeys, dvalues)


def together(keys, values):
    """The flat prefix (p, 2 l g d) of each layer's keys and values (l, g, p, d): `cut` the other way round."""
    layers, groups, tokens, size = keys.shape
    return np.stack([keys, values], axis=0).transpose(3, 1, 0, 2, 4).reshape(tokens, 2 * layers * groups * size)


def init(random: np.random.Generator, tokens: int, layers: int, groups: int, size: int) -> np.ndarray:
    """A flat prefix at the start, normal with deviation 1 as peft's embedding has it (tokens, 2 layers groups size)."""
    return random.normal(size=(tokens, 2 * layers * groups * size))


def init_encoder(random: np.random.Generator, tokens: int, width: int, hidden: int, columns: int) -> dict:
    """The perceptron at the start, as torch draws it: E normal, the rest uniform within 1/sqrt(fan-in)."""
    first, second = 1 / math.sqrt(width), 1 / math.sqrt(hidden)
    return {
        "embedding": random.normal(size=(tokens, width)),
        "w1": random.uniform(-first, first, (hidden, width)),
        "b1": random.uniform(-first, first, hidden),
        "w2": random.uniform(-second, second, (columns, hidden)),
        "b2": random.uniform(-second, second, columns),
    }


def fitted(arrays: Mapping[str, np.ndarray], flat: np.ndarray) -> dict[str, np.ndarray]:
    """The perceptron with b2 and W2 that give a flat prefix (p, c): b2 its mean row, W2 the least with h W2ᵀ = flat - b2.

    Raises
    ------
    AttributeValueError
        If the hidden layer is narrower than there are tokens, so that there is none.
    """
    hidden = np.tanh(arrays["embedding"] @ arrays["w1"].T + arrays["b1"])
    if hidden.shape[1] < len(flat):
        raise AttributeValueError(
            f"fitted: a hidden layer of {hidden.shape[1]} gives no {len(flat)} rows that are wanted: make it as wide."
        )
    b2 = flat.mean(axis=0)
    return {**arrays, "w2": np.linalg.lstsq(hidden, flat - b2, rcond=None)[0].T, "b2": b2}


def count(tokens: int, layers: int, width: int) -> int:
    """Trainable parameters of a flat prefix: 2 p L w, w = g d the width of all keys together."""
    return 2 * tokens * layers * width


def count_encoder(tokens: int, layers: int, width: int, hidden: int) -> int:
    """Trainable parameters with the perceptron, over embeddings as wide as the keys."""
    columns = 2 * layers * width
    return tokens * width + hidden * (width + 1) + columns * (hidden + 1)
