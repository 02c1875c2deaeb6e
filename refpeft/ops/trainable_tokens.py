"""Trainable tokens: some rows of an embedding table are trained and the others stay (peft's TrainableTokens).

    E'[t] = p_j where t = tokens_j,    E[t] elsewhere        E (v, d),  P (k, d)

The rows are replaced, not added to: what stood there reaches nothing any more, and P starts as a copy of it. No token comes
twice. An output layer tied to the table uses the same E'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._places import distinct

_SIZES = {"k": (2, 1, 3, 0, 5)}


@operation(
    "trainable_tokens.embedding",
    "ids: index(v)[*n] weight[v,d] trained[k,d] tokens: index(v)[k] -> y[*n,d] where k <= v",
    sizes=_SIZES,
)
def embedding(ids, weight, trained, tokens):
    """y = E'[ids].

    Parameters
    ----------
    ids : (*n,) int64
        Token ids from 0 to v - 1.
    weight : (v, d)
        Frozen table E.
    trained : (k, d)
        P, the rows that take the place of E's.
    tokens : (k,) int64
        Which rows they are, none twice.

    Returns
    -------
    y : (*n, d)
    """
    return take(_replaced(weight, trained, tokens), ids)


@embedding.vjp
def _(dy, ids, weight, trained, tokens):
    """dE'[t] is the sum of dy over the positions of t; it goes to P where t is trained, else to E."""
    return _split(scatter_add(dy, ids, weight.shape[0]), tokens)


@operation(
    "trainable_tokens.linear",
    "x[*n,d] weight[v,d] trained[k,d] tokens: index(v)[k] bias?[v] -> y[*n,v] where k <= v",
    sizes=_SIZES,
)
def linear(x, weight, trained, tokens, bias=None):
    """y = x E'ᵀ + bias, the output layer that is tied to the table.

    Parameters
    ----------
    x : (*n, d)
    weight : (v, d)
        Frozen table E.
    trained : (k, d)
        P.
    tokens : (k,) int64
        Which rows of E they take the place of, none twice.
    bias : (v,), optional
        The base layer's bias.

    Returns
    -------
    y : (*n, v)
    """
    return plus(x @ _replaced(weight, trained, tokens).T, bias)


@linear.vjp
def _(dy, x, weight, trained, tokens, bias=None):
    """dx = dy E', dE' = dyᵀ x."""
    dx = dy @ _replaced(weight, trained, tokens)
    return dx, *_split(rows(dy).T @ rows(x), tokens), rows(dy).sum(axis=0)


@operation(
    "trainable_tokens.merge",
    "weight[v,d] trained[k,d] tokens: index(v)[k] -> merged[v,d] where k <= v",
    sizes=_SIZES,
)
def merge(weight, trained, tokens):
    """merged = E'."""
    return _replaced(weight, trained, tokens)


@merge.vjp
def _(dmerged, weight, trained, tokens):
    return _split(dmerged, tokens)


def _replaced(weight, trained, tokens):
    """E' (v, d)."""
    return np.where(_hit(weight, tokens), scatter_add(trained, tokens, weight.shape[0]), weight)


def _split(dtable, tokens):
    """The gradient to E' as those to E, which has nothing at the trained rows, and to P."""
    return np.where(_hit(dtable, tokens), 0.0, dtable), take(dtable, tokens)


def _hit(table, tokens):
    """(v, 1): which rows of a table are trained."""
    return np.expand_dims(scatter_add(np.ones(tokens.shape), tokens, table.shape[0]) > 0, 1)


@embedding.refuses
def _(ids, weight, trained, tokens):
    distinct("trainable_tokens.embedding", tokens, "tokens")


@linear.refuses
def _(x, weight, trained, tokens, bias=None):
    distinct("trainable_tokens.linear", tokens, "tokens")


@merge.refuses
def _(weight, trained, tokens):
    distinct("trainable_tokens.merge", tokens, "tokens")


@embedding.makes_valid
@linear.makes_valid
@merge.makes_valid
def drawn(random, arrays, attributes):
    """Each token once."""
    return {"tokens": random.permutation(len(arrays["weight"]))[: len(arrays["tokens"])]}


@embedding.problems
def trained_ids(random, arrays, attributes):
    """Half of the ids are of trained tokens, and those come several times."""
    ids, tokens = arrays["ids"], arrays["tokens"]
    if not len(tokens):
        return {}
    return {"ids": np.where(random.random(ids.shape) < 0.5, random.choice(tokens, ids.shape), ids)}


def init(weight: np.ndarray, tokens: Sequence[int]) -> dict[str, np.ndarray]:
    """P as a copy of the table's rows, so that training begins at the base model."""
    places = np.asarray(tokens, np.int64)
    return {"trained": np.asarray(weight, np.float64)[places], "tokens": places}


def unmerge(merged: np.ndarray, originals: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The table that ``merged`` came from, whose rows at ``tokens`` were kept: their bits put back."""
    table = merged.copy()
    table[tokens] = originals
    return table


def count(width: int, *, tokens: int) -> int:
    """Trainable parameters: k d."""
    return tokens * width
