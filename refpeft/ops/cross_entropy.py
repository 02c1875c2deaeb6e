"""Cross-entropy of the next token: what a language model is trained on.

loss = mean over the tokens that count of  log sum_j exp(l_j) - l_target
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import positions, take
from refpeft.operation import operation


@operation(
    "nn.cross_entropy",
    "logits[*n,v] target: index(v)[*n] mask?: bool[*n] -> loss[] where v >= 1",
    sizes={"v": (4, 2, 3, 5, 8, 17)},
    nonfinite=(),
)
def cross_entropy(logits, target, mask=None):
    """The mean of -log softmax(logits)[target] over the tokens that the mask keeps.

    Parameters
    ----------
    logits : (*n, v)
    target : (*n,) int64
        The right token, from 0 to v - 1; any of them where the mask leaves the token out.
    mask : (*n,) bool, optional
        Which tokens count; all where it is not given. It is libraries' ``ignore_index``.

    Returns
    -------
    loss : ()
        Zero where no token counts.

    Raises
    ------
    DomainError
        If a target is negative or not below v.
    """
    counts, number = _counts(logits, mask)
    lse, chosen = _log_sum_exp(logits), _at(logits, target)
    return np.sum(np.where(counts, lse[..., 0] - chosen, 0.0)) / number


@cross_entropy.vjp
def _(dloss, logits, target, mask=None):
    """dl = dloss / N (softmax(l) - onehot(target)) for the N tokens that count, zero for the others."""
    counts, number = _counts(logits, mask)
    p = np.exp(logits - _log_sum_exp(logits))
    hit = positions(logits, -1) == np.expand_dims(target, -1)
    return np.where(np.expand_dims(counts, -1), np.where(hit, p - 1, p) * (dloss / number), 0.0)


@cross_entropy.problems
def confident(random, arrays, attributes):
    """Logits whose targets stand out, as of a trained model: the loss is small, a difference of nearly equal numbers."""
    hit = np.arange(arrays["logits"].shape[-1]) == arrays["target"][..., None]
    return {"logits": arrays["logits"] + hit * random.uniform(2, 10, (*arrays["target"].shape, 1))}


@cross_entropy.anchors
def certain(random, arrays, attributes):
    """One logit 8192 above integers, so that softmax is exactly one-hot: the loss is 0, or the distance to the target."""
    logits = random.integers(-8, 9, arrays["logits"].shape).astype(np.float64)
    winner = random.integers(0, logits.shape[-1], (*logits.shape[:-1], 1))
    return {"logits": np.where(np.arange(logits.shape[-1]) == winner, 8192.0, 64.0 * np.sign(logits))}


def _counts(logits, mask):
    """Which tokens count, and how many, at least 1."""
    if mask is None:
        return positions(logits, -1)[0] >= 0, max(int(np.prod(logits.shape[:-1])), 1)
    return mask, np.maximum(np.sum(np.where(mask, 1.0, 0.0)), 1.0)


def _log_sum_exp(logits):
    """max + log sum exp(l - max), (*n, 1)."""
    largest = np.max(logits, axis=-1, keepdims=True)
    return largest + np.log(np.sum(np.exp(logits - largest), axis=-1, keepdims=True))


def _at(logits, target):
    """The logit of each target."""
    v, flat = logits.shape[-1], target.reshape(-1)
    return take(logits.reshape(-1), positions(flat, 0) * v + flat).reshape(target.shape)
