"""CPT: context-aware prompt tuning (Blau et al. 2024, arXiv:2410.17222).

The prompt is the embedded context, examples with their labels, and moves by a delta that never leaves a small ball:

    y = [T + delta; x]        |delta_i| <= eps_i for each token

It is trained by projected gradient descent: after each step every row goes back to its ball.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.operation import operation
from refpeft.ops.prompt import in_front, over_batch

_SIZES = {"p": (3, 1, 2, 0, 5), "t": (2, 1, 3, 5)}


@operation("cpt.embed", "x[*n,t,d] tokens[p,d] delta[p,d] -> y[*n,p+t,d]", sizes=_SIZES)
def embed(x, tokens, delta):
    """y = [T + delta; x] along the tokens.

    Parameters
    ----------
    x : (*n, t, d)
        Embedded input.
    tokens : (p, d)
        T, the frozen embeddings of the context.
    delta : (p, d)

    Returns
    -------
    y : (*n, p + t, d)
    """
    prompt = tokens + delta
    return in_front(np.broadcast_to(prompt, (*x.shape[:-2], *prompt.shape)), x)


@embed.vjp
def _(dy, x, tokens, delta):
    """The rows of dy back to where they came from; T and delta share those in front, summed over the batch."""
    p = tokens.shape[0]
    dprompt = over_batch(dy[..., :p, :])
    return dy[..., p:, :], dprompt, dprompt


@operation("cpt.project", "delta[p,d] epsilon[p] -> projected[p,d]", sizes={"p": (3, 1, 2, 5)}, nonfinite=())
def project(delta, epsilon):
    """delta_i eps_i / |delta_i| where |delta_i| > eps_i, else delta_i. A step on parameters, of which no gradient flows.

    Parameters
    ----------
    delta : (p, d)
    epsilon : (p,)
        Radii, above 0.

    Returns
    -------
    projected : (p, d)

    Raises
    ------
    DomainError
        If a radius is not above 0.
    """
    square, radius = np.sum(delta * delta, axis=-1, keepdims=True), np.expand_dims(epsilon, 1)
    outside = square > radius * radius
    return np.where(outside, delta * (radius / np.sqrt(np.where(outside, square, 1.0))), delta)


@project.refuses
def positive_radii(delta, epsilon):
    """A ball has a radius."""
    if not np.all(np.asarray(epsilon, np.float64) > 0):
        raise DomainError("cpt.project: every epsilon must be above 0.")


@project.makes_valid
def radii(random, arrays, attributes):
    """Radii from 1/256 on: some rows lie inside, some outside."""
    return {"epsilon": np.maximum(np.abs(arrays["epsilon"]), 2.0**-8)}


@project.anchors
def pythagorean(random, arrays, attributes):
    """Rows with one element, or (3, 4) in two of them, and radii that divide their norms."""
    delta, epsilon = np.zeros_like(arrays["delta"]), np.zeros_like(arrays["epsilon"])
    for row in range(len(delta)):
        at = random.permutation(delta.shape[1])[:2]
        pair = len(at) == 2 and random.random() < 0.5
        size = 2.0 ** random.integers(-1, 3)
        delta[row, at[: 1 + pair]] = size * random.choice([-1, 1], 1 + pair) * ([3, 4] if pair else [1])
        epsilon[row] = (5 if pair else 1) * size * 2.0 ** random.integers(-2, 2)
    return {"delta": delta, "epsilon": epsilon}


def radius(width: int, epsilon: float = 0.1) -> float:
    """A token's radius as peft scales it: epsilon sqrt(width / 2048)."""
    return epsilon * (width / 2048) ** 0.5


def init(tokens: int, width: int) -> np.ndarray:
    """delta = 0: training begins at the context itself."""
    return np.zeros((tokens, width))


def count(tokens: int, width: int) -> int:
    """Trainable parameters: p d."""
    return tokens * width
