"""HRA: Householder reflection adaptation (Yuan, Liu and Xu 2024, arXiv:2405.17484).

A chain of r reflections turns the rows of W,

    W' = W P        P = H_1 H_2 ... H_r        H_j = I - 2 q_j q_jᵀ        q_j = u_j / ||u_j||

or, on the input's side, y = (x H_r ... H_1) Wᵀ + bias. ``variant="gram_schmidt"`` first takes from each u_j what lies along the
q before it; orthonormal reflections commute, and P = I - 2 Q Qᵀ, the paper's strictly orthogonal case. In the chain reflections
come in equal pairs at the start, H H = I, so that training begins at the base model; P = I - 2 Q Qᵀ never is the identity.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.formats import as_format, store
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._kernels import merged_first
from refpeft.ops.lora_init import kaiming_uniform

Variant = Literal["chain", "gram_schmidt"]
_RANK = "r+is(variant,gram_schmidt) <= i, r >= 1"
_SIZES = {"i": (3, 2, 5, 4, 8, 7, 13, 16), "r": (2, 1, 3, 4)}


def _along(v, q):
    """(v qᵀ) q: the part of v, a vector or rows of them, along the unit vector q."""
    return np.expand_dims(v @ q, -1) * q


def _stages(u, variant):
    """The q_j, and for each what u_j became on the way: itself, then without its part along q_1, q_2, ..."""
    units: list = []
    stages: list = []
    for j in range(u.shape[1]):
        stage = [u[:, j]]
        for q in units if variant == "gram_schmidt" else ():
            stage.append(stage[-1] - _along(stage[-1], q))
        stages.append(stage)
        units.append(stage[-1] / np.sqrt(np.sum(stage[-1] * stage[-1])))
    return units, stages


def _to_vectors(dunits, units, stages):
    """The adjoint of `_stages`, from the last vector back: dv = (dq - (dq qᵀ) q) / ||v||, then through each subtraction."""
    dunits, du = list(dunits), list(dunits[:0])
    for j in reversed(range(len(units))):
        *before, v = stages[j]
        d = (dunits[j] - _along(dunits[j], units[j])) / np.sqrt(np.sum(v * v))
        for k in reversed(range(len(before))):
            q, w = units[k], before[k]
            dunits[k] = dunits[k] - (np.expand_dims(w @ q, -1) * d + np.expand_dims(d @ q, -1) * w)
            d = d - _along(d, q)
        du.insert(0, d)
    return np.stack(du, axis=-1)


def _turn(x, units, variant):
    """x H H ... in the order of ``units``, or x (I - 2 Q Qᵀ)."""
    if variant == "gram_schmidt":
        q = np.stack(units, axis=-1)
        return x - 2.0 * ((x @ q) @ q.T)
    for q in units:
        x = x - 2.0 * _along(x, q)
    return x


def _to_units(dz, x, units, variant):
    """The adjoint of `_turn` in the units: dq = -2 sum ((x q) dz + (dz q) x) over the rows, from the last reflection back."""
    x, dz = rows(x), rows(dz)
    if variant == "gram_schmidt":
        q = np.stack(units, axis=-1)
        dq = -2.0 * (x.T @ (dz @ q) + dz.T @ (x @ q))
        return [dq[:, j] for j in range(len(units))]
    before, dunits = [x], list(units[:0])
    for q in units[:-1]:
        before.append(_turn(before[-1], [q], variant))
    for v, q in zip(reversed(before), reversed(units)):
        dunits.insert(0, -2.0 * ((v @ q) @ dz + (dz @ q) @ v))
        dz = _turn(dz, [q], variant)
    return dunits


@operation(
    "hra.linear",
    f"x[*n,i] weight[o,i] u[i,r] bias?[o] -> y[*n,o] where {_RANK}",
    sizes=_SIZES,
    nonfinite=("bias",),
)
def linear(x, weight, u, bias=None, *, variant: Variant = "chain"):
    """y = (x Pᵀ) Wᵀ + bias.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    u : (i, r)
        The vectors u_j as columns, none zero; with Gram-Schmidt, linearly independent.
    bias : (o,), optional
    variant : "chain" or "gram_schmidt"

    Returns
    -------
    y : (*n, o)

    Raises
    ------
    DomainError
        If a column of u is zero: it has no direction.
    """
    units, _ = _stages(u, variant)
    return plus(_turn(x, units[::-1], variant) @ weight.T, bias)


@linear.vjp
def _(dy, x, weight, u, bias=None, *, variant="chain"):
    """With z = x Pᵀ and dz = dy W: dx = dz P, dW = dyᵀ z, and du through the reflections and what made them."""
    units, stages = _stages(u, variant)
    z, dz = _turn(x, units[::-1], variant), dy @ weight
    du = _to_vectors(_to_units(dz, x, units[::-1], variant)[::-1], units, stages)
    return _turn(dz, units, variant), rows(dy).T @ rows(z), du, rows(dy).sum(axis=0)


@operation(
    "hra.merge",
    f"weight[o,i] u[i,r] -> merged[o,i] where {_RANK}",
    sizes=_SIZES,
    nonfinite=(),
)
def merge(weight, u, *, variant: Variant = "chain"):
    """merged = W P.

    Parameters
    ----------
    weight : (o, i)
        Base weight W; a convolution's kernel as (o, c / groups kh kw).
    u : (i, r)
        The vectors u_j as columns, none zero.
    variant : "chain" or "gram_schmidt"

    Returns
    -------
    merged : (o, i)

    Raises
    ------
    DomainError
        If a column of u is zero.
    """
    return _turn(weight, _stages(u, variant)[0], variant)


@merge.vjp
def _(dmerged, weight, u, *, variant="chain"):
    """dW = dM Pᵀ, and du as in the layer."""
    units, stages = _stages(u, variant)
    du = _to_vectors(_to_units(dmerged, weight, units, variant), units, stages)
    return _turn(dmerged, units[::-1], variant), du


# A filter has two numbers at least: with one there is nowhere to turn.
conv2d = merged_first("hra.conv2d", merge, "u[i,r]", _RANK, _SIZES | {"kh": (2, 3)})


@linear.refuses
def _(x, weight, u, bias=None, **attributes):
    _require_directions("hra.linear", u)


@conv2d.refuses
def _(x, weight, u, bias=None, **attributes):
    _require_directions("hra.conv2d", u)


@merge.refuses
def _(weight, u, **attributes):
    _require_directions("hra.merge", u)


def _require_directions(name: str, u: np.ndarray) -> None:
    zero = np.flatnonzero(~np.any(u.astype(np.float64) != 0, axis=0))
    if zero.size:
        raise DomainError(f"{name}: column {zero[0]} of u is zero, but a reflection needs a direction.")


@linear.makes_valid
@merge.makes_valid
@conv2d.makes_valid
def _(random, arrays, attributes):
    """Columns that are not zero, of lengths around 1; for Gram-Schmidt far from linearly dependent."""
    u = arrays["u"]
    u = np.where(np.any(u != 0, axis=0), u, np.eye(*u.shape))
    largest = np.exp2(np.floor(np.log2(np.max(np.abs(u), axis=0))))
    u = u / np.where((largest < 0.25) | (largest > 8), largest, 1.0)
    if attributes["variant"] == "gram_schmidt" and np.linalg.cond(u / np.linalg.norm(u, axis=0)) > 4:
        u = np.linalg.qr(random.normal(size=u.shape))[0] + random.normal(size=u.shape) / (4 * np.sqrt(u.size))
    return {"u": u}


@linear.anchors
@merge.anchors
@conv2d.anchors
def _(random, arrays, attributes):
    """Norms that are powers of two: one entry, or four of them; for Gram-Schmidt an entry each, and parts along earlier ones."""
    u = np.zeros(arrays["u"].shape)
    places = random.permutation(len(u))
    for j, column in enumerate(u.T):
        if attributes["variant"] == "gram_schmidt":
            column[places[:j]] = random.integers(-2, 3, j)
            column[places[j]] = random.choice([-2.0, -1.0, 1.0, 2.0])
        else:
            chosen = random.permutation(len(u))[: 4 if len(u) >= 4 and random.random() < 0.5 else 1]
            column[chosen] = random.choice([-1.0, 1.0], len(chosen)) * random.choice([0.5, 1.0, 2.0])
    return {"u": u}


def unmerge(merged: np.ndarray, u: np.ndarray, *, variant: Variant = "chain") -> np.ndarray:
    """The weight (o, i) that ``merged`` came from, up to the merge's rounding: merged Pᵀ, rounded once to its dtype."""
    units, _ = _stages(u.astype(np.float64), variant)
    return store(_turn(merged.astype(np.float64), units[::-1], variant), as_format(merged.dtype.name))


def init(random: np.random.Generator, i: int, *, rank: int, variant: Variant = "chain") -> dict[str, np.ndarray]:
    """Vectors at the start, Kaiming-uniform: in equal pairs, whose reflections undo each other; single ones for Gram-Schmidt.

    Returns
    -------
    dict of str to float64 array
        u (i, rank).
    """
    if variant == "gram_schmidt":
        return {"u": kaiming_uniform(random, (i, rank))}
    return {"u": np.repeat(kaiming_uniform(random, (i, rank // 2)), 2, axis=1)}


def count(i: int, *, rank: int) -> int:
    """Trainable parameters: r i."""
    return rank * i
