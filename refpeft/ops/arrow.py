"""Arrow: tokens find their adapters by the directions that these amplify most (Ostapenko et al. 2024, arXiv:2405.11157).

Of k adapters, each trained on a task of its own, the prototype p_k is the right singular vector of B_k A_k with the largest
singular value. A token x goes to those whose prototypes it lies along, whichever way these point:

    y = x Wᵀ + s (sum over k of g_k x A_kᵀ B_kᵀ)        g = softmax of |x p_kᵀ| / T over its largest, zero elsewhere

Nothing is trained for it. Before, general knowledge may be taken out of the adapters (`without_general`).
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops import xlora
from refpeft.ops._arrays import rows
from refpeft.ops.lora_init import kaiming_uniform
from refpeft.ops.vblora import apart

MARGIN = 2.0**-5
"""By so much of the largest sum |x| |p| a token's scores differ in a problem, so that no rounding changes their order."""
FLOOR = 2.0**-12
"""And by at least so much, whatever is flushed to zero."""


@operation(
    "arrow.linear",
    "x[*n,i] weight[o,i] a[k,r,i] b[k,o,r] prototypes[k,i] bias?[o] -> y[*n,o] "
    "where chosen >= 1, chosen <= k, temperature > 0",
    sizes={"k": (2, 3, 1, 4), "r": (2, 1, 3), "chosen": (1, 2, 3), "temperature": (1.0, 2.0, 0.5, 4.0, 3.7)},
    nonfinite=("weight", "a", "b", "bias"),
)
def linear(x, weight, a, b, prototypes, bias=None, *, scaling: float, chosen: int, temperature: float = 1.0):
    """y = x Wᵀ + bias + s (sum over k of g_k x A_kᵀ B_kᵀ), g = softmax of the ``chosen`` largest of |x p_kᵀ| / T.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        Frozen base weight W.
    a, b : (k, r, i), (k, o, r)
        The factors of each adapter. Where their scalings differ, they belong to B_k.
    prototypes : (k, i)
        p_k; see `prototype`.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.
    chosen : int
        How many adapters a token takes, from 1 to k; of equal scores the first.
    temperature : float
        T, above 0.

    Returns
    -------
    y : (*n, o)
    """
    g = _gates(x @ prototypes.T, chosen, temperature)
    return xlora.linear.forward(x, weight, a, b, g, bias, scaling=scaling)


@linear.vjp
def _(dy, x, weight, a, b, prototypes, bias=None, *, scaling, chosen, temperature=1.0):
    """The mixture's, as in `xlora.linear`, whose gradient dg to the gates goes on through the softmax and the magnitude:

    dz = sgn(z) o g o (dg - g . dg) / T with z = x Pᵀ, and dx gets dz P, dP = dzᵀ x. Which are chosen has no gradient.
    """
    z = x @ prototypes.T
    g = _gates(z, chosen, temperature)
    dx, dweight, da, db, dg, dbias = xlora.linear.backward(dy, x, weight, a, b, g, bias, scaling=scaling)
    dscores = g * (dg - np.sum(g * dg, axis=-1, keepdims=True)) / temperature
    dz = np.where(z < 0, -dscores, np.where(z > 0, dscores, 0.0))
    return dx + dz @ prototypes, dweight, da, db, rows(dz).T @ rows(x), dbias


def _gates(z, chosen, temperature):
    """(*n, k): the softmax over the largest magnitudes of each token, zero for the others."""
    scores = np.abs(z)
    left = xlora.largest(scores, chosen) if chosen < z.shape[-1] else scores >= 0
    return xlora.softmax_over(scores / temperature, left)


@linear.makes_valid
def decided(random, arrays, attributes):
    """A token whose largest scores lie too close to each other keeps its first element alone, by which prototypes are apart."""
    x, p = arrays["x"], arrays["prototypes"].copy()
    if attributes["chosen"] == len(p) or not x.shape[-1]:
        return {}
    first = np.maximum(np.abs(p[:, 0]), MARGIN)
    p[:, 0] = np.copysign(apart(first), p[:, 0])
    scores, most = np.abs(x @ p.T), np.abs(x) @ np.abs(p).T
    ordered = -np.sort(-scores, axis=-1)[..., : attributes["chosen"] + 1]
    near = ordered[..., :-1] - ordered[..., 1:] <= MARGIN * np.max(most, axis=-1, keepdims=True) + FLOOR
    alone = np.zeros_like(x)
    alone[..., 0] = np.where(np.abs(x[..., 0]) > MARGIN, x[..., 0], 1.0)
    return {"prototypes": p, "x": np.where(np.any(near, axis=-1, keepdims=True), alone, x)}


@linear.anchors
def far_apart(random, arrays, attributes):
    """Prototypes so long that one adapter gets a token whole, or none, where all are chosen: each then gets as much."""
    every = attributes["chosen"] == len(arrays["prototypes"]) and random.random() < 0.5
    return {"prototypes": arrays["prototypes"] * (0.0 if every else 4096.0)}


def prototype(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """p, (i,): the right singular vector of B A with the largest singular value, its largest element positive.

    From the singular values of the small R_b R_aᵀ, where B = Q_b R_b and Aᵀ = Q_a R_a.

    Parameters
    ----------
    a : (r, i)
    b : (o, r)
    """
    (q, r_a), r_b = np.linalg.qr(a.astype(np.float64).T), np.linalg.qr(b.astype(np.float64))[1]
    p = q @ np.linalg.svd(r_b @ r_a.T)[2][0]
    return p * np.copysign(1.0, p[np.argmax(np.abs(p))])


def iterated(a: np.ndarray, b: np.ndarray, start: np.ndarray, *, steps: int = 15, epsilon: float = 1e-8) -> np.ndarray:
    """p as peft finds it, by power iteration on (B A)ᵀ B A from a random ``start``: near `prototype` where gaps are wide."""
    p = start / (np.linalg.norm(start) + epsilon)
    for _ in range(steps):
        p = a.T @ (b.T @ (b @ (a @ p)))
        p = p / (np.linalg.norm(p) + epsilon)
    return p


def without_general(adapters: np.ndarray, general: np.ndarray) -> np.ndarray:
    """General knowledge subtracted, as peft does: A_k, or B_k, less the mean of the general adapters' A, or B.

    Parameters
    ----------
    adapters, general : (k, ...), (g, ...)
        The A of each, or the B. That both are done changes B A by more than the mean of the general updates.
    """
    return adapters - np.mean(general, axis=0)


def init(random: np.random.Generator, o: int, i: int, *, rank: int, adapters: int) -> dict[str, np.ndarray]:
    """Adapters as LoRA starts them, with the prototypes of these; trained ones take their places.

    Returns
    -------
    dict of str to float64 array
    """
    a = np.stack([kaiming_uniform(random, (rank, i)) for _ in range(adapters)])
    b = np.zeros((adapters, o, rank))
    return {"a": a, "b": b, "prototypes": np.stack([prototype(*pair) for pair in zip(a, b)])}
