"""BD-LoRA: LoRA with a block-diagonal factor, for layers that several devices share by blocks (as peft implements it).

    W' = W + s D(B) D(A)        A (r, i / ka), B (o, r / kb)

D puts the ka stacked blocks of A, and the kb of B, on the diagonal of a matrix of zeros: (r, i) and (o, r). Where A has several
blocks a device needs the inputs of its own only, where B has, it gives the outputs of its own; the other factor has one block,
which is LoRA's. B is zero and A random at the start, so that training begins at the base model.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform

_BLOCKS = (
    "blocks_a >= 1, blocks_b >= 1, i = c*blocks_a, r = d*blocks_b, r//blocks_a*blocks_a = r, o//blocks_b*blocks_b = o"
)
_SIZES = {"blocks_a": (1, 2, 3), "blocks_b": (1, 2, 3), "o": (4, 6, 3, 2, 1, 8, 12), "d": (1, 2, 3, 4, 6)}


def _parts(x, blocks, axis):
    """Equal slices along the first or the last axis."""
    size = x.shape[axis] // blocks
    cuts = [slice(j * size, (j + 1) * size) for j in range(blocks)]
    return [x[c] if axis == 0 else x[..., c] for c in cuts]


def _through(x, blocks, count):
    """x D(blocks)ᵀ: each slice of x through its own block."""
    pairs = zip(_parts(x, count, -1), _parts(blocks, count, 0))
    return np.concatenate([part @ block.T for part, block in pairs], axis=-1)


def _back(dy, x, blocks, count):
    """The cotangents of x and of the stacked blocks, from that of x D(blocks)ᵀ."""
    triples = list(zip(_parts(dy, count, -1), _parts(x, count, -1), _parts(blocks, count, 0)))
    dx = np.concatenate([dpart @ block for dpart, _, block in triples], axis=-1)
    return dx, np.concatenate([rows(dpart).T @ rows(part) for dpart, part, _ in triples], axis=0)


@operation("bdlora.linear", f"x[*n,i] weight[o,i] a[r,c] b[o,d] bias?[o] -> y[*n,o] where {_BLOCKS}", sizes=_SIZES)
def linear(x, weight, a, b, bias=None, *, scaling: float, blocks_a: int = 1, blocks_b: int = 1):
    """y = x Wᵀ + bias + s x D(A)ᵀ D(B)ᵀ.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i / blocks_a), (o, r / blocks_b)
        Stacked blocks of the factors.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.
    blocks_a, blocks_b : int
        How many blocks; they divide i and r, and r and o.

    Returns
    -------
    y : (*n, o)
    """
    return plus(x @ weight.T + _through(scaling * _through(x, a, blocks_a), b, blocks_b), bias)


@linear.vjp
def _(dy, x, weight, a, b, bias=None, *, scaling, blocks_a=1, blocks_b=1):
    """With h = x D(A)ᵀ and du = s dy, block by block: dh = du D(B), dB = duᵀ h, dA = dhᵀ x, dx = dy W + dh D(A)."""
    dh, db = _back(scaling * dy, _through(x, a, blocks_a), b, blocks_b)
    dx, da = _back(dh, x, a, blocks_a)
    return dy @ weight + dx, rows(dy).T @ rows(x), da, db, rows(dy).sum(axis=0)


def diagonal(blocks, count: int):
    """D: (p, m) as (p, count m), the blocks of rows on the diagonal and zeros beside them."""
    m = blocks.shape[1]
    parts = enumerate(_parts(blocks, count, 0))
    return np.concatenate([np.pad(part, ((0, 0), (j * m, (count - 1 - j) * m))) for j, part in parts], axis=0)


def _off_diagonal(matrix, count):
    """The adjoint of `diagonal`: the blocks on the diagonal, stacked."""
    return np.concatenate([_parts(part, count, -1)[j] for j, part in enumerate(_parts(matrix, count, 0))], axis=0)


@update("a[r,c] b[o,d]", _BLOCKS)
def delta(a, b, *, scaling: float, blocks_a: int = 1, blocks_b: int = 1):
    """delta = s D(B) D(A).

    Parameters
    ----------
    a, b : (r, i / blocks_a), (o, r / blocks_b)
        Stacked blocks of the factors.
    scaling : float
        s; alpha / r.
    blocks_a, blocks_b : int
        How many blocks.
    """
    return scaling * (diagonal(b, blocks_b) @ diagonal(a, blocks_a))


@delta.vjp
def _(ddelta, a, b, *, scaling, blocks_a=1, blocks_b=1):
    """With u = s ddelta: dD(A) = D(B)ᵀ u and dD(B) = u D(A)ᵀ, of which the blocks on the diagonal count."""
    u = scaling * ddelta
    da, db = diagonal(b, blocks_b).T @ u, u @ diagonal(a, blocks_a).T
    return _off_diagonal(da, blocks_a), _off_diagonal(db, blocks_b)


merge = delta.merge("bdlora.merge", sizes=_SIZES)
unmerge = delta.unmerge


def init(
    random: np.random.Generator, o: int, i: int, *, rank: int, blocks_a: int, blocks_b: int
) -> dict[str, np.ndarray]:
    """A Kaiming-uniform and B zero, stacked blocks; float64.

    Returns
    -------
    dict
        a (rank, i / blocks_a), b (o, rank / blocks_b).
    """
    return {"a": kaiming_uniform(random, (rank, i // blocks_a)), "b": np.zeros((o, rank // blocks_b))}


def count(o: int, i: int, *, rank: int, blocks_a: int, blocks_b: int) -> int:
    """Trainable parameters: r i / ka + o r / kb."""
    return rank * (i // blocks_a) + o * (rank // blocks_b)
