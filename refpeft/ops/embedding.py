"""A table of embeddings: a linear layer over one-hot vectors, whose gradient adds up by token."""

from __future__ import annotations

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation


@operation("nn.embedding", "ids: index(v)[*n] weight[v,d] -> y[*n,d]")
def embedding(ids, weight):
    """y = E[ids].

    Parameters
    ----------
    ids : (*n,) int64
        Token ids from 0 to v - 1.
    weight : (v, d)
        The table E.

    Returns
    -------
    y : (*n, d)

    Raises
    ------
    DomainError
        If an id is negative or not below v.
    """
    return take(weight, ids)


@embedding.vjp
def _(dy, ids, weight):
    """dE adds the rows of dy up by token."""
    return scatter_add(dy, ids, weight.shape[0])


@embedding.problems
def repeated_tokens(random, arrays, attributes):
    """Few distinct ids, so that gradients of one row meet."""
    return {"ids": arrays["ids"] * (random.random(arrays["ids"].shape) < 0.3)}
