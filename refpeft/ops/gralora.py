"""GraLoRA: LoRA in k by k blocks, each with factors of its own (Jung et al. 2025, arXiv:2505.20355).

W is cut into blocks of o / k rows and i / k columns. A_n (i / k, r) belongs to the n-th stretch of the input, B_m (r, o / k)
to the m-th of the output, and block (m, n) uses its share q = r / k of both:

    delta[m, n] = s (A_n[:, m q : (m + 1) q] B_m[n q : (n + 1) q, :])ᵀ      + s Bg Ag over all,  s = alpha / (r + h)

so that the update has rank up to k r at LoRA's number of parameters. The layer goes through the rank, as LoRA's does: stretch n
becomes h_n = x_n A_n, output m meets the shares h_n[m q : (m + 1) q] of all n side by side, and delta is never formed. The
hybrid part Ag (h, i), Bg (o, h) is an ordinary LoRA of rank h, none where h = 0. B and Bg are zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows, turned
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform

SIZES = {"o": (4, 6, 2, 3, 1), "i": (6, 4, 2, 3, 1), "k": (2, 1, 3), "r": (2, 6, 4, 1, 3), "h": (1, 0, 2)}

PARAMETERS = "block_a[k,c,r] block_b[k,r,d] general_a[h,i] general_b[o,h]"
WHERE = "c = i//k, d = o//k, k >= 1, i//k*k = i, o//k*k = o, r//k*k = r"


@update(PARAMETERS, WHERE)
def delta(block_a, block_b, general_a, general_b, *, scaling: float):
    """delta[m, n] = s (A_n B_m over their share of the rank)ᵀ, and s Bg Ag.

    Parameters
    ----------
    block_a : (k, i / k, r)
        A_n.
    block_b : (k, r, o / k)
        B_m.
    general_a : (h, i)
    general_b : (o, h)
        The hybrid part; h = 0 for none.
    scaling : float
        s; alpha / (r + h).
    """
    a, b = _shares(block_a, block_b)
    (k, c, _), d = block_a.shape, block_b.shape[2]
    blocks = (a @ b).transpose(0, 3, 1, 2).reshape(k * d, k * c)
    return scaling * (blocks + general_b @ general_a)


@delta.vjp
def _(ddelta, block_a, block_b, general_a, general_b, *, scaling):
    """Within a block, with D its cotangent transposed: d(share of A) = D Bᵀ, d(share of B) = Aᵀ D."""
    u = scaling * ddelta
    a, b = _shares(block_a, block_b)
    (k, c, r), d = block_a.shape, block_b.shape[2]
    blocks = u.reshape(k, d, k, c).transpose(0, 2, 3, 1)
    da = (blocks @ b.transpose(0, 1, 3, 2)).transpose(1, 2, 0, 3).reshape(k, c, r)
    db = (a.transpose(0, 1, 3, 2) @ blocks).reshape(k, r, d)
    return da, db, general_b.T @ u, u @ general_a.T


def _shares(block_a, block_b):
    """What block (m, n) uses: (m, n, c, q) of A and (m, n, q, d) of B."""
    (k, c, r), d = block_a.shape, block_b.shape[2]
    q = r // max(1, k)
    return block_a.reshape(k, c, k, q).transpose(2, 0, 1, 3), block_b.reshape(k, k, q, d)


@operation(
    "gralora.linear",
    f"x[*n,i] weight[o,i] {PARAMETERS} bias?[o] -> y[*n,o] where {WHERE}",
    sizes=SIZES,
)
def linear(x, weight, block_a, block_b, general_a, general_b, bias=None, *, scaling: float):
    """y = x Wᵀ + s ([h'_1 B_1, ..., h'_k B_k] + x Agᵀ Bgᵀ) + bias, where h'_m are the shares m of all h_n = x_n A_n.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        Frozen.
    block_a, block_b, general_a, general_b
        As for the update.
    bias : (o,), optional
    scaling : float
        s; alpha / (r + h).

    Returns
    -------
    y : (*n, o)
    """
    shared = _exchange(_stretches(x, len(block_a)) @ block_a)
    blocks = _joined(shared @ block_b).reshape(*x.shape[:-1], len(weight))
    return plus(x @ weight.T + scaling * (blocks + (x @ general_a.T) @ general_b.T), bias)


@linear.vjp
def _(dy, x, weight, block_a, block_b, general_a, general_b, bias=None, *, scaling):
    """With u = s dy, u_m its stretch and dh'_m = u_m B_mᵀ: dB_m = h'_mᵀ u_m, dA_n = x_nᵀ dh_n, dx_n = (dy W)_n + dh_n A_nᵀ."""
    k, u = len(block_a), scaling * dy
    x_n, u_m = _stretches(x, k), _stretches(u, k)
    shared, dh = _exchange(x_n @ block_a), _exchange(u_m @ turned(block_b))
    dblock_a, dblock_b = turned(x_n) @ dh, turned(shared) @ u_m
    dblocks = _joined(dh @ turned(block_a)).reshape(x.shape)
    h, dg = x @ general_a.T, u @ general_b
    dx = dy @ weight + dblocks + dg @ general_a
    dgeneral_a, dgeneral_b = rows(dg).T @ rows(x), rows(u).T @ rows(h)
    return dx, rows(dy).T @ rows(x), dblock_a, dblock_b, dgeneral_a, dgeneral_b, rows(dy).sum(axis=0)


def _stretches(x, k):
    """(*n, k w) as (k, n, w)."""
    flat = rows(x)
    return flat.reshape(flat.shape[0], k, flat.shape[1] // k).transpose(1, 0, 2)


def _joined(stretches):
    """(k, n, w) as (n, k w)."""
    k, n, w = stretches.shape
    return stretches.transpose(1, 0, 2).reshape(n, k * w)


def _exchange(h):
    """Share m of stretch n in the place of share n of stretch m, (k, n, r): from inputs to outputs, and back."""
    k, n, r = h.shape
    return h.reshape(k, n, k, r // k).transpose(2, 1, 0, 3).reshape(k, n, r)


merge = delta.merge("gralora.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(
    random: np.random.Generator, o: int, i: int, *, rank: int, blocks: int, hybrid: int = 0
) -> dict[str, np.ndarray]:
    """A and Ag Kaiming-uniform over their fan-in, B and Bg zero.

    Returns
    -------
    dict of str to float64 array
        block_a (k, i / k, rank), block_b (k, rank, o / k), general_a (hybrid, i) and general_b (o, hybrid).
    """
    columns = [kaiming_uniform(random, (rank, i // blocks)).T for _ in range(blocks)]
    return {
        "block_a": np.stack(columns),
        "block_b": np.zeros((blocks, rank, o // blocks)),
        "general_a": kaiming_uniform(random, (hybrid, i)) if hybrid else np.zeros((0, i)),
        "general_b": np.zeros((o, hybrid)),
    }


def count(o: int, i: int, *, rank: int, hybrid: int = 0) -> int:
    """Trainable parameters: (r + h) (o + i), whatever k."""
    return (rank + hybrid) * (o + i)
