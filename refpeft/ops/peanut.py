"""PEANuT: the update of a weight as a small network's answer to the weight (PEANuT, arXiv:2410.01870).

Each column of W goes through a tower of ReLU layers of width r, as many on the way up as down, with a shortcut from each
level of the one side to the other:

    h_0 = relu(Wᵀ Fᵀ)            h_j = relu(h_(j-1) E_jᵀ)                   j = 1 .. l
    g_0 = h_l                    g_j = relu(g_(j-1) D_jᵀ) + h_(l-j)         j = 1 .. l
    delta = s (g_l Gᵀ)ᵀ          F (r, o),  E_j, D_j (r, r),  G (o, r)

so that the update depends on the weight, not linearly. G is zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._activations import relu, relu_vjp
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform

SIZES = {"depth": (1, 0, 2), "r": (2, 1, 3)}


@update("first[r,o] encoders[depth,r,r] decoders[depth,r,r] last[o,r]", where="r >= 1")
def delta(weight, first, encoders, decoders, last, *, scaling: float):
    """delta = s (g_l Gᵀ)ᵀ.

    Parameters
    ----------
    first : (r, o)
        F.
    encoders, decoders : (l, r, r)
        E_j and D_j; l = 0 for none.
    last : (o, r)
        G.
    scaling : float
        s.
    """
    return scaling * (last @ _tower(weight, first, encoders, decoders)[-1][-1].T)


@delta.vjp
def _(ddelta, weight, first, encoders, decoders, last, *, scaling):
    """Down the tower and up again; a level's activation gets a gradient from the next one and from its shortcut."""
    before, up, between, down = _tower(weight, first, encoders, decoders)
    depth, u = encoders.shape[0], scaling * ddelta
    dlast, d = u @ down[-1], u.T @ last
    shortcuts = [d * 0.0] * (depth + 1)
    dencoders: list = []
    ddecoders: list = []
    for j in reversed(range(depth)):
        shortcuts[depth - 1 - j] = d
        d = relu_vjp(d, between[j])
        ddecoders.insert(0, d.T @ down[j])
        d = d @ decoders[j]
    for j in reversed(range(depth)):
        d = relu_vjp(d + shortcuts[j + 1] if j + 1 < depth else d, before[j + 1])
        dencoders.insert(0, d.T @ up[j])
        d = d @ encoders[j]
    d = relu_vjp(d + shortcuts[0] if depth else d, before[0])
    stacked = [np.stack(g) if g else encoders for g in (dencoders, ddecoders)]
    return first.T @ d.T, d.T @ weight.T, *stacked, dlast


def _tower(weight, first, encoders, decoders):
    """What enters each ReLU on the way up, h_j, what enters each on the way down, and g_j."""
    depth = encoders.shape[0]
    before = [weight.T @ first.T]
    up = [relu(before[0])]
    for j in range(depth):
        before.append(up[-1] @ encoders[j].T)
        up.append(relu(before[-1]))
    between, down = [], [up[-1]]
    for j in range(depth):
        between.append(down[-1] @ decoders[j].T)
        down.append(relu(between[-1]) + up[depth - 1 - j])
    return before, up, between, down


linear = delta.linear("peanut.linear", sizes=SIZES, nonfinite=("x", "last", "bias"))
merge = delta.merge("peanut.merge", sizes=SIZES, nonfinite=("last",))


def init(random: np.random.Generator, o: int, i: int, *, rank: int, depth: int) -> dict[str, np.ndarray]:
    """G zero, all other matrices Kaiming-uniform.

    Returns
    -------
    dict of str to float64 array
        first (rank, o), encoders and decoders (depth, rank, rank) and last (o, rank).
    """
    levels = [kaiming_uniform(random, (rank, rank)) for _ in range(2 * depth)]
    square = np.array(levels).reshape(2, depth, rank, rank)
    return {
        "first": kaiming_uniform(random, (rank, o)),
        "encoders": square[0],
        "decoders": square[1],
        "last": np.zeros((o, rank)),
    }


def count(o: int, i: int, *, rank: int, depth: int) -> int:
    """Trainable parameters: 2 r o + 2 l r r, whatever i is."""
    return 2 * rank * (o + depth * rank)
