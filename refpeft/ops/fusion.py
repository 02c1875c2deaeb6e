"""AdapterFusion: attention over the outputs of several adapters (Pfeiffer et al. 2020, arXiv:2005.00247, section 3.2).

    y = residual + sum over k of p_k (V z_k)        p = softmax over k of (Q x + c) . (K z_k) / T

x is what comes out of the sublayer, z_k what adapter k makes of it. There is no division by the root of the width.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation(
    "adapter.fusion",
    "x[*n,d] adapted[*n,k,d] query[e,d] key[e,d] value[o,d] query_bias?[e] residual?[*n,o] -> y[*n,o] "
    "where temperature > 0, k >= 1",
    sizes={"k": (2, 4, 3, 5), "d": (2, 3, 4, 5, 7, 1), "e": (2, 3, 4, 5, 7, 1)},
)
def fusion(x, adapted, query, key, value, query_bias=None, residual=None, *, temperature: float = 1.0):
    """y = residual + the average of V z_k over the adapters, weighted by softmax((Q x + c) . (K z_k) / T).

    Parameters
    ----------
    x : (*n, d)
        What asks: the sublayer's output.
    adapted : (*n, k, d)
        z_k, the outputs of k adapters.
    query, key : (e, d)
        Q and K; e = d in the paper.
    value : (o, d)
        V; o = d in the paper.
    query_bias : (e,), optional
        c. A bias of the keys would shift all scores of a vector alike, and change nothing.
    residual : (*n, o), optional
    temperature : float
        T, above 0.

    Returns
    -------
    y : (*n, o)
    """
    _, _, p = _attend(x, adapted, query, key, query_bias, temperature)
    return plus(_average(p, adapted @ value.T), residual)


@fusion.vjp
def _(dy, x, adapted, query, key, value, query_bias=None, residual=None, *, temperature=1.0):
    """With v_k = V z_k: dp_k = dy . v_k and dv_k = p_k dy; the scores get ds = p o (dp - sum of p o dp) / T, the asking vector
    the sum of ds_k K z_k, and K z_k gets ds_k (Q x + c).
    """
    q, keys, p = _attend(x, adapted, query, key, query_bias, temperature)
    values = adapted @ value.T
    dp = _dot(values, dy)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) / temperature
    dq, dkeys, dvalues = _average(ds, keys), _outer(ds, q), _outer(p, dy)
    dadapted = dkeys @ key + dvalues @ value
    dquery, dkey = rows(dq).T @ rows(x), rows(dkeys).T @ rows(adapted)
    return dq @ query, dadapted, dquery, dkey, rows(dvalues).T @ rows(adapted), rows(dq).sum(axis=0), dy


@fusion.makes_valid
def bounded_scores(random, arrays, attributes):
    """The query scaled by a power of two, where the terms of some score add up to more than 8 in magnitude: far apart scores
    leave one adapter, and nothing of the others to judge.
    """
    size = {n: np.abs(a) for n, a in arrays.items()}
    q = plus(size["x"] @ size["query"].T, size.get("query_bias"))
    largest = np.max(_dot(size["adapted"] @ size["key"].T, q), initial=0.0) / attributes["temperature"]
    if not largest > 8:
        return {}
    factor = 2.0 ** -np.ceil(np.log2(largest / 8))
    return {n: factor * arrays[n] for n in ("query", "query_bias") if n in arrays}


@fusion.anchors
def equal_scores(random, arrays, attributes):
    """All scores zero, by the query or by the key: every adapter has the weight 1/k."""
    if random.random() < 0.5:
        return {"key": np.zeros_like(arrays["key"])}
    return {n: np.zeros_like(arrays[n]) for n in ("query", "query_bias") if n in arrays}


def _attend(x, adapted, query, key, query_bias, temperature):
    """The asking vector, the keys, and the weights of the adapters."""
    q, keys = plus(x @ query.T, query_bias), adapted @ key.T
    scores = _dot(keys, q) / temperature
    e = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return q, keys, e / np.sum(e, axis=-1, keepdims=True)


def _dot(vectors, v):
    """(*n, k, d) and (*n, d) to (*n, k): the scalar product of each with its v."""
    return (vectors @ np.expand_dims(v, -1))[..., 0]


def _average(weights, vectors):
    """(*n, k) and (*n, k, d) to (*n, d): the sum over k, weighted."""
    return (np.expand_dims(weights, -2) @ vectors)[..., 0, :]


def _outer(weights, v):
    """(*n, k) and (*n, d) to (*n, k, d): v times each weight."""
    return np.expand_dims(weights, -1) * np.expand_dims(v, -2)


def init(random: np.random.Generator, d: int) -> dict[str, np.ndarray]:
    """Q and K normal with deviation 0.02, V the identity with 1e-6 beside the diagonal, c zero: as AdapterHub starts.

    Returns
    -------
    dict of str to float64 array
    """
    query, key = random.normal(0.0, 0.02, (d, d)), random.normal(0.0, 0.02, (d, d))
    value = np.full((d, d), 1e-6)
    np.fill_diagonal(value, 1.0)
    return {"query": query, "key": key, "value": value, "query_bias": np.zeros(d)}
