"""OFT: orthogonal finetuning (Qiu et al. 2023, arXiv:2306.07280).

The neurons of a layer, the rows of W, are turned together, which leaves all angles between them as they are:

    W' = W Rᵀ        R = diag(R_1, ..., R_m), each (b, b) a rotation through a skew-symmetric K

or, on the input's side, y = (x R) Wᵀ + bias. ``skew`` holds the strict upper triangle of each K, or of one that all blocks
share. It is zero at the start, so that training begins at the base model. How K gives R: `refpeft.ops._rotation`.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows, turned
from refpeft.ops._kernels import merged_first
from refpeft.ops._rotation import Variant, rotation, to_rotation, to_skew, turn

_SKEW = "skew[1+(i//block-1)*(1-share),block*(block-1)//2]"
_BLOCKS = "block >= 1, terms >= 1, i//block*block = i"
_SIZES = {"block": (2, 4, 1, 3), "terms": (5, 4, 2, 1, 6, 3), "i": (4, 8, 12, 2, 3, 6, 16, 1)}
LARGEST = 1.0


@operation(
    "oft.linear",
    f"x[*n,i] weight[o,i] {_SKEW} bias?[o] -> y[*n,o] where {_BLOCKS}",
    sizes=_SIZES,
    nonfinite=("x", "weight", "bias"),
)
def linear(x, weight, skew, bias=None, *, block: int, share: bool = False, variant: Variant = "paper", terms: int = 5):
    """y = (x R) Wᵀ + bias.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    skew : (m, b (b - 1) / 2)
        Strict upper triangle of K, row by row, for each of the m = i / b blocks, or for all (m = 1).
    bias : (o,), optional
    block : int
        b, a divisor of i.
    share : bool
        Whether one K serves all blocks.
    variant : "paper", "peft" or "neumann"
        How K gives R.
    terms : int
        Terms of the series; used by ``neumann`` only.

    Returns
    -------
    y : (*n, o)
    """
    return plus(turn(x, rotation(skew, variant, terms)) @ weight.T, bias)


@linear.vjp
def _(dy, x, weight, skew, bias=None, *, block, share=False, variant="paper", terms=5):
    """With z = x R and dz = dy W: dx = dz Rᵀ, dW = dyᵀ z, dR = xᵀ dz block by block."""
    r = rotation(skew, variant, terms)
    z, dz = turn(x, r), dy @ weight
    dskew = to_skew(to_rotation(x, dz, r), skew, variant, terms)
    return turn(dz, turned(r)), rows(dy).T @ rows(z), dskew, rows(dy).sum(axis=0)


@operation("oft.merge", f"weight[o,i] {_SKEW} -> merged[o,i] where {_BLOCKS}", sizes=_SIZES, nonfinite=("weight",))
def merge(weight, skew, *, block: int, share: bool = False, variant: Variant = "paper", terms: int = 5):
    """merged = W Rᵀ.

    Parameters
    ----------
    weight : (o, i)
        Base weight W; a convolution's kernel as (o, c / groups kh kw).
    skew : (m, b (b - 1) / 2)
    block, share, variant, terms
        As in `linear`.

    Returns
    -------
    merged : (o, i)
    """
    return turn(weight, turned(rotation(skew, variant, terms)))


@merge.vjp
def _(dmerged, weight, skew, *, block, share=False, variant="paper", terms=5):
    """dW = dM R, and d(Rᵀ) = Wᵀ dM block by block."""
    r = rotation(skew, variant, terms)
    dr = turned(to_rotation(weight, dmerged, r))
    return turn(dmerged, r), to_skew(dr, skew, variant, terms)


conv2d = merged_first("oft.conv2d", merge, _SKEW, _BLOCKS, _SIZES)


@linear.makes_valid
@merge.makes_valid
@conv2d.makes_valid
def _(random, arrays, attributes):
    """Angles up to a quarter turn: elements of K at most 1."""
    return {"skew": arrays["skew"] / max(1.0, float(np.max(np.abs(arrays["skew"]), initial=0.0)))}


@linear.problems
@merge.problems
@conv2d.problems
def early_training(random, arrays, attributes):
    """K just off zero, as after the first steps."""
    return {"skew": arrays["skew"] * 2.0**-8}


@linear.anchors
@merge.anchors
@conv2d.anchors
def _(random, arrays, attributes):
    """Quarter turns in planes that share no axis."""
    return {"skew": np.stack([quarter_turns(random, attributes["block"]) for _ in arrays["skew"]])}


def quarter_turns(random: np.random.Generator, block: int) -> np.ndarray:
    """The strict upper triangle of a K that turns some pairs of axes by a quarter, one way or the other."""
    k = np.zeros((block, block))
    axes = random.permutation(block)
    for one, other in zip(axes[0::2], axes[1::2]):
        k[min(one, other), max(one, other)] = random.integers(-1, 2)
    return k[np.triu_indices(block, 1)]


def unmerge(
    merged: np.ndarray, skew: np.ndarray, *, block: int, share: bool = False, variant: Variant = "paper", terms: int = 5
) -> np.ndarray:
    """The weight (o, i) that ``merged`` came from, up to the merge's rounding: merged R^-T, rounded once to its dtype."""
    back = np.linalg.inv(turned(rotation(skew.astype(np.float64), variant, terms)))
    return store(turn(merged.astype(np.float64), back), as_format(merged.dtype.name))


def init(o: int, i: int, *, block: int, share: bool = False) -> dict[str, np.ndarray]:
    """K = 0: no rotation.

    Returns
    -------
    dict of str to float64 array
        skew (i / block, block (block - 1) / 2), or one row where it is shared.
    """
    return {"skew": np.zeros((1 if share else i // block, block * (block - 1) // 2))}


def count(o: int, i: int, *, block: int, share: bool = False) -> int:
    """Trainable parameters: i (b - 1) / 2, or b (b - 1) / 2 where they are shared."""
    return (1 if share else i // block) * (block * (block - 1) // 2)
