"""P-tuning: a prompt that a small network makes of trained embeddings (Liu et al. 2021, arXiv:2103.10385).

The virtual tokens' embeddings E (p, c) go through an encoder whose output is the prompt, in front of the input as in prompt
tuning; only that output is kept after training. The paper's encoder is a bidirectional LSTM of two layers with a perceptron on
top (section 3.2); the other, a perceptron alone.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.operation import operation
from refpeft.ops._lstm import bidirectional, bidirectional_vjp


@operation(
    "ptuning.mlp",
    "embedding[p,c] w1[h,c] b1[h] w2[h,h] b2[h] w3[o,h] b3[o] -> prompt[p,o]",
    sizes={"p": (3, 2, 1, 5), "c": (4, 2, 3, 1), "h": (5, 3, 2, 8), "o": (4, 3, 2)},
)
def mlp(embedding, w1, b1, w2, b2, w3, b3):
    """prompt = relu(relu(E W1ᵀ + b1) W2ᵀ + b2) W3ᵀ + b3.

    Parameters
    ----------
    embedding : (p, c)
        E.
    w1, w2, w3 : (h, c), (h, h), (o, h)
    b1, b2, b3 : (h,), (h,), (o,)

    Returns
    -------
    prompt : (p, o)
    """
    return _relu(_relu(embedding @ w1.T + b1) @ w2.T + b2) @ w3.T + b3


@mlp.vjp
def _(dprompt, embedding, w1, b1, w2, b2, w3, b3):
    """Each layer as a linear one; relu lets pass what it let pass, and nothing at zero."""
    a1 = embedding @ w1.T + b1
    h1 = _relu(a1)
    a2 = h1 @ w2.T + b2
    d2 = np.where(a2 > 0, dprompt @ w3, 0.0)
    d1 = np.where(a1 > 0, d2 @ w2, 0.0)
    first = (d1 @ w1, d1.T @ embedding, d1.sum(axis=0))
    return *first, d2.T @ h1, d2.sum(axis=0), dprompt.T @ _relu(a2), dprompt.sum(axis=0)


@operation(
    "ptuning.lstm",
    "embedding[p,c] w_1[2,k,c] u_1[2,k,h] b_1[2,k] w_2[2,k,2*h] u_2[2,k,h] b_2[2,k] "
    "w_3[2*h,2*h] b_3[2*h] w_4[o,2*h] b_4[o] -> prompt[p,o] where k = 4*h, p >= 1, p <= 64, h >= 1",
    sizes={"p": (3, 2, 1, 4), "c": (3, 2, 1), "h": (2, 1, 3), "o": (3, 2, 1)},
    nonfinite=(),
)
def lstm(embedding, w_1, u_1, b_1, w_2, u_2, b_2, w_3, b_3, w_4, b_4):
    """prompt = relu(H W3ᵀ + b3) W4ᵀ + b4, H the hidden states of two bidirectional layers over E.

    Parameters
    ----------
    embedding : (p, c)
        E.
    w_1, u_1, b_1 : (2, 4 h, c), (2, 4 h, h), (2, 4 h)
        First layer, forward and backward: from the input, from the state, and bias; rows in the order i, f, g, o.
    w_2, u_2, b_2 : (2, 4 h, 2 h), (2, 4 h, h), (2, 4 h)
        Second layer.
    w_3, b_3, w_4, b_4 : (2 h, 2 h), (2 h,), (o, 2 h), (o,)
        The perceptron.

    Returns
    -------
    prompt : (p, o)
    """
    first, _ = bidirectional(embedding, w_1, u_1, b_1)
    second, _ = bidirectional(first, w_2, u_2, b_2)
    return _relu(second @ w_3.T + b_3) @ w_4.T + b_4


@lstm.vjp
def _(dprompt, embedding, w_1, u_1, b_1, w_2, u_2, b_2, w_3, b_3, w_4, b_4):
    """The perceptron's, then each layer's, backwards through time."""
    first, runs_1 = bidirectional(embedding, w_1, u_1, b_1)
    second, runs_2 = bidirectional(first, w_2, u_2, b_2)
    a = second @ w_3.T + b_3
    da = np.where(a > 0, dprompt @ w_4, 0.0)
    dfirst, *layer_2 = bidirectional_vjp(da @ w_3, first, w_2, u_2, runs_2)
    dembedding, *layer_1 = bidirectional_vjp(dfirst, embedding, w_1, u_1, runs_1)
    top = (da.T @ second, da.sum(axis=0), dprompt.T @ _relu(a), dprompt.sum(axis=0))
    return dembedding, *layer_1, *layer_2, *top


@lstm.makes_valid
def tame(random, arrays, attributes):
    """Gates that are neither open nor shut, and one unit of the perceptron that lives: else nothing is left to judge.

    No part of a gate's argument exceeds 4 (states lie within 1), and b_3 of the first unit exceeds what states can take away.
    """
    reach = {n: np.abs(a) for n, a in arrays.items()}
    tamed = {"w_1": _within(arrays["w_1"], reach["w_1"] @ reach["embedding"].T)}
    for name in ("u_1", "w_2", "u_2"):
        tamed[name] = _within(arrays[name], np.sum(reach[name], axis=-1))
    for name in ("b_1", "b_2"):
        tamed[name] = _within(arrays[name], reach[name])
    alive = np.arange(len(arrays["b_3"])) == 0
    return tamed | {"b_3": np.where(alive, 1 + np.sum(reach["w_3"], axis=-1), arrays["b_3"])}


def _within(array, reach, limit: float = 4.0):
    """``array`` over the power of two that brings ``reach``, which grows with it, below the limit."""
    return array * 2.0 ** -max(0.0, float(np.ceil(np.log2(np.max(reach, initial=limit) / limit))))


@lstm.anchors
def at_zero(random, arrays, attributes):
    """Weights and biases of the layers zero: gates are 1/2, states 0, and the gradients of the rest are exact."""
    return {n: 0.0 * a for n, a in arrays.items() if n[:2] in ("w_", "u_", "b_") and n[2] in "12"}


def _relu(a):
    return np.maximum(a, 0.0)


def init_mlp(random: np.random.Generator, tokens: int, width: int, hidden: int) -> dict[str, np.ndarray]:
    """As torch draws it: E normal, the rest uniform within 1/sqrt(fan-in)."""
    sizes = [("1", hidden, width), ("2", hidden, hidden), ("3", width, hidden)]
    drawn = {"embedding": random.normal(size=(tokens, width))}
    for name, rows, columns in sizes:
        drawn |= {f"w{name}": _uniform(random, columns, rows, columns), f"b{name}": _uniform(random, columns, rows)}
    return drawn


def init_lstm(random: np.random.Generator, tokens: int, width: int, hidden: int) -> dict[str, np.ndarray]:
    """As torch draws it: E normal, the layers uniform within 1/sqrt(h), the perceptron within 1/sqrt(fan-in)."""
    drawn = {"embedding": random.normal(size=(tokens, width))}
    for layer, columns in (("1", width), ("2", 2 * hidden)):
        drawn[f"w_{layer}"] = _uniform(random, hidden, 2, 4 * hidden, columns)
        drawn[f"u_{layer}"] = _uniform(random, hidden, 2, 4 * hidden, hidden)
        drawn[f"b_{layer}"] = _uniform(random, hidden, 2, 4 * hidden) + _uniform(random, hidden, 2, 4 * hidden)
    for layer, rows in (("3", 2 * hidden), ("4", width)):
        drawn |= {f"w_{layer}": _uniform(random, 2 * hidden, rows, 2 * hidden)}
        drawn |= {f"b_{layer}": _uniform(random, 2 * hidden, rows)}
    return drawn


def _uniform(random, fan_in, *shape):
    return random.uniform(-1, 1, shape) / math.sqrt(fan_in)


def count_mlp(tokens: int, width: int, hidden: int) -> int:
    """Trainable parameters of embeddings and perceptron."""
    return tokens * width + hidden * (width + 1) + hidden * (hidden + 1) + width * (hidden + 1)


def count_lstm(tokens: int, width: int, hidden: int) -> int:
    """Trainable parameters of embeddings, two layers with one bias each direction, and perceptron."""
    layers = 8 * hidden * (width + hidden + 1) + 8 * hidden * (3 * hidden + 1)
    return tokens * width + layers + 2 * hidden * (2 * hidden + 1) + width * (2 * hidden + 1)
