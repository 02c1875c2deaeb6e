"""A language model's head and its loss in one: cross-entropy of x Wᵀ, as a composite operation.

    loss = cross_entropy(x Wᵀ, target)

It is the plain composition of `nn.linear` and `nn.cross_entropy`, between which the logits stand, tokens times vocabulary. A
backend that has it whole need not keep them all: it goes over tokens or vocabulary in chunks, and computes them again on the way
back.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import rows
from refpeft.ops._logits import LARGEST, one_hot
from refpeft.ops.cross_entropy import cross_entropy


@operation(
    "nn.lm_loss",
    "x[*n,d] weight[v,d] target: index(v)[*n] mask?: bool[*n] -> loss[] where v >= 1",
    sizes={"v": (4, 2, 3, 5, 8, 17), "d": (4, 2, 1, 3, 8)},
    nonfinite=(),
)
def lm_loss(x, weight, target, mask=None):
    """The mean of -log softmax(x Wᵀ)[target] over the tokens that the mask keeps.

    Parameters
    ----------
    x : (*n, d)
        What the head reads.
    weight : (v, d)
        The head, often the table of embeddings too.
    target : (*n,) int64
    mask : (*n,) bool, optional
        As for `nn.cross_entropy`.

    Returns
    -------
    loss : ()
    """
    return cross_entropy.forward(x @ weight.T, target, mask)


@lm_loss.vjp
def _(dloss, x, weight, target, mask=None):
    """With dl of the logits: dx = dl W, dW = dlᵀ x."""
    (dl,) = cross_entropy.backward(dloss, x @ weight.T, target, mask)
    return dl @ weight, rows(dl).T @ rows(x)


@lm_loss.problems
def confident(random, arrays, attributes):
    """Each x leans towards the row of its target, as in a trained model: the loss is small."""
    towards = arrays["weight"][arrays["target"]]
    along = towards / (1 + np.sum(towards**2, axis=-1, keepdims=True))
    return {"x": arrays["x"] + along * random.uniform(2, 20, (*arrays["target"].shape, 1))}


@lm_loss.makes_valid
def tame(random, arrays, attributes):
    """Logits of at most `LARGEST`: x over a power of two. Where each x is one power of two, it stays: its logits are exact."""
    x, weight = arrays["x"], arrays["weight"]
    largest = float(np.max(np.abs(x) @ np.abs(weight).T, initial=0.0))
    return {} if largest <= LARGEST or one_hot(x) else {"x": x * 2.0 ** -np.ceil(np.log2(largest / LARGEST))}


@lm_loss.anchors
def certain(random, arrays, attributes):
    """Each x selects a column of the head, in which one logit stands 8192 above integers: softmax is exactly one-hot."""
    v, d = arrays["weight"].shape
    column, winner = random.integers(0, d, arrays["target"].shape), random.integers(0, v, d)
    weight = np.where(np.arange(v)[:, None] == winner, 8192.0, 64.0 * np.sign(random.integers(-8, 9, (v, d))))
    return {"x": np.where(np.arange(d) == column[..., None], 1.0, 0.0), "weight": weight}
