"""BOFT: orthogonal finetuning with butterfly factors (Liu et al. 2023, arXiv:2311.06243).

OFT's rotation, made dense by a product of f sparse ones,

    W' = diag(s) W Mᵀ        M = B_(f-1) ... B_1 B_0        B_j = P_j diag(R_j1, ..., R_jm) P_jᵀ

or y = s (x M) Wᵀ + bias. P_0 is the identity. P_j cuts the features into runs of 2^j blocks and pairs half a block from the first
half of a run with half a block from its second half, as the butterflies of a fast Fourier transform do: after f factors each
feature has met 2^(f-1) b others. Each R (b, b) is a rotation through K = (Q - Qᵀ) / 2, Q a free matrix. Q is zero and s one at
the start, so that training begins at the base model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows, turned
from refpeft.ops._kernels import merged_first
from refpeft.ops._rotation import rotation, skew, strict_upper, to_rotation, to_skew, turn
from refpeft.ops.oft import quarter_turns

Variant = Literal["paper", "peft"]

_Q = "q[factors,i//block,block,block]"
_BLOCKS = (
    "factors >= 1, block >= 1, i//(block*pow2(factors-1))*(block*pow2(factors-1)) = i, "
    "(block-block//2*2)*min(factors-1,1) = 0"
)
_SIZES = {"block": (2, 4, 1, 3), "factors": (2, 1, 3), "i": (8, 4, 16, 2, 3, 12, 24, 1)}


def _shuffle(x, block: int, level: int, *, back: bool = False):
    """x P_level, or with ``back`` x P_levelᵀ, along the last axis."""
    if level == 0:
        return x
    run = 2**level
    axes = (run, 2) if back else (2, run)
    halves = x.reshape(x.size // (block * run), *axes, block // 2)
    return np.transpose(halves, (0, 2, 1, 3)).reshape(x.shape)


def _apply(x, level: int, r):
    """x B, or x Bᵀ with Rᵀ in the place of R."""
    block = r.shape[-1]
    return _shuffle(turn(_shuffle(x, block, level), r), block, level, back=True)


def _triangles(q):
    """K of all blocks of all factors as strict upper triangles, in one stack."""
    f, m, block, _ = q.shape
    return 0.5 * strict_upper(q.reshape(f * m, block, block))


def _factors(q, variant):
    """(level, R) of each factor, in the order in which x meets them: the last level first."""
    r = rotation(_triangles(q), variant, 0).reshape(q.shape)
    return [(j, r[j]) for j in reversed(range(q.shape[0]))]


def _through(x, steps):
    for level, r in steps:
        x = _apply(x, level, r)
    return x


def _reversed(steps):
    """The steps of Mᵀ."""
    return [(level, turned(r)) for level, r in reversed(steps)]


def _to_rotations(dz, x, steps):
    """The adjoint of `_through` in its rotations, in the order of the steps."""
    before, found = [x], list(steps[:0])
    for level, r in steps[:-1]:
        before.append(_apply(before[-1], level, r))
    for v, (level, r) in zip(reversed(before), reversed(steps)):
        block = r.shape[-1]
        found.insert(0, to_rotation(_shuffle(v, block, level), _shuffle(dz, block, level), r))
        dz = _apply(dz, level, turned(r))
    return found


def _to_q(drotations, q, variant):
    """dQ = (dK - dKᵀ) / 2; ``drotations`` from the last level to the first."""
    dr = np.concatenate(drotations[::-1], axis=0)
    return (0.5 * skew(to_skew(dr, _triangles(q), variant, 0))).reshape(q.shape)


@operation(
    "boft.linear",
    f"x[*n,i] weight[o,i] {_Q} scale[o] bias?[o] -> y[*n,o] where {_BLOCKS}",
    sizes=_SIZES,
    nonfinite=("x", "weight", "scale", "bias"),
)
def linear(x, weight, q, scale, bias=None, *, block: int, factors: int = 1, variant: Variant = "paper"):
    """y = s o ((x M) Wᵀ) + bias.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    q : (f, m, b, b)
        Q of each block of each factor, m = i / b; only Q - Qᵀ has an effect.
    scale : (o,)
        s, on each output before the bias.
    bias : (o,), optional
    block : int
        b; even where there is more than one factor.
    factors : int
        f; b 2^(f-1) divides i.
    variant : "paper" or "peft"
        How K gives R, see `refpeft.ops._rotation`.

    Returns
    -------
    y : (*n, o)
    """
    return plus(scale * (_through(x, _factors(q, variant)) @ weight.T), bias)


@linear.vjp
def _(dy, x, weight, q, scale, bias=None, *, block, factors=1, variant="paper"):
    """With z = x M, dh = s o dy and dz = dh W: dx = dz Mᵀ, dW = dhᵀ z, ds = sum dy o z Wᵀ, and dR factor by factor."""
    steps = _factors(q, variant)
    z, dh = _through(x, steps), scale * dy
    dz = dh @ weight
    dq = _to_q(_to_rotations(dz, x, steps), q, variant)
    dscale = np.sum(rows(dy * (z @ weight.T)), axis=0)
    return _through(dz, _reversed(steps)), rows(dh).T @ rows(z), dq, dscale, rows(dy).sum(axis=0)


@operation(
    "boft.merge",
    f"weight[o,i] {_Q} scale[o] -> merged[o,i] where {_BLOCKS}",
    sizes=_SIZES,
    nonfinite=("weight", "scale"),
)
def merge(weight, q, scale, *, block: int, factors: int = 1, variant: Variant = "paper"):
    """merged = diag(s) W Mᵀ.

    Parameters
    ----------
    weight : (o, i)
        Base weight W; a convolution's kernel as (o, c / groups kh kw).
    q : (f, m, b, b)
    scale : (o,)
    block, factors, variant
        As in `linear`.

    Returns
    -------
    merged : (o, i)
    """
    return np.expand_dims(scale, 1) * _through(weight, _reversed(_factors(q, variant)))


@merge.vjp
def _(dmerged, weight, q, scale, *, block, factors=1, variant="paper"):
    """With V = W Mᵀ and dV = diag(s) dM: dW = dV M, ds = sum dM o V along the rows, and dR through Rᵀ."""
    steps = _factors(q, variant)
    back = _reversed(steps)
    dturned = np.expand_dims(scale, 1) * dmerged
    drotations = [turned(dr) for dr in reversed(_to_rotations(dturned, weight, back))]
    dscale = np.sum(dmerged * _through(weight, back), axis=1)
    return _through(dturned, steps), _to_q(drotations, q, variant), dscale


conv2d = merged_first("boft.conv2d", merge, f"{_Q} scale[o]", _BLOCKS, _SIZES | {"cg": (2, 4, 1, 3)})


@linear.makes_valid
@merge.makes_valid
@conv2d.makes_valid
def _(random, arrays, attributes):
    """Angles up to a quarter turn: elements of K at most 1."""
    largest = 0.5 * float(np.max(np.abs(arrays["q"] - np.swapaxes(arrays["q"], -1, -2)), initial=0.0))
    return {"q": arrays["q"] / max(1.0, largest)}


@linear.problems
@merge.problems
@conv2d.problems
def early_training(random, arrays, attributes):
    """Q just off zero and s just off one, as after the first steps."""
    return {"q": arrays["q"] * 2.0**-8, "scale": 1 + arrays["scale"] * 2.0**-8}


@linear.anchors
@merge.anchors
@conv2d.anchors
def _(random, arrays, attributes):
    """Quarter turns in planes that share no axis, and a symmetric part that has no effect."""
    block = attributes["block"]
    q = np.zeros(arrays["q"].shape)
    upper = np.triu_indices(block, 1)
    for matrix in q.reshape(-1, block, block):
        matrix[upper] = quarter_turns(random, block)
        matrix -= matrix.T.copy()
        matrix += np.eye(block) * random.integers(-1, 2)
    return {"q": q}


def unmerge(
    merged: np.ndarray, q: np.ndarray, scale: np.ndarray, *, block: int, factors: int = 1, variant: Variant = "paper"
) -> np.ndarray:
    """The weight (o, i) that ``merged`` came from: (merged / s) M, rounded once to its dtype; a zero scale has lost its row."""
    steps = _factors(q.astype(np.float64), variant)
    rescaled = merged.astype(np.float64) / scale.astype(np.float64)[:, None]
    return store(_through(rescaled, steps), as_format(merged.dtype.name))


def init(o: int, i: int, *, block: int, factors: int = 1) -> dict[str, np.ndarray]:
    """Q = 0 and s = 1.

    Returns
    -------
    dict of str to float64 array
        q (factors, i / block, block, block) and scale (o,).
    """
    return {"q": np.zeros((factors, i // block, block, block)), "scale": np.ones(o)}


def count(o: int, i: int, *, block: int, factors: int = 1) -> int:
    """Trainable parameters as held: f i b + o, of which f i (b - 1) / 2 + o have an effect."""
    return factors * i * block + o
