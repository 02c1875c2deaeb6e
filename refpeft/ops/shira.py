"""SHiRA: sparse high-rank adapters (Bhardwaj et al. 2024, arXiv:2406.13175).

A fixed set of k elements of W is trained and the others stay:

    delta[p_j] = v_j,  zero elsewhere        p: k places in the (o, i) matrix, counted along its rows

v is zero at the start. The paper's masks, and how many elements they take, are in `init`: k = r (o + i), as many as LoRA of
rank r trains.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.numerics.primitives import scatter_add, take
from refpeft.ops._update import update


@update("values[k] places: index(o*i)[k]", where="k <= o*i")
def delta(weight, values, places):
    """delta = v at the given places.

    Parameters
    ----------
    values : (k,)
    places : (k,) int64
        Row times i plus column; values at a place that comes twice add up.
    """
    o, i = weight.shape
    return scatter_add(values, places, o * i).reshape(o, i)


@delta.vjp
def _(ddelta, weight, values, places):
    """dv_j = ddelta[p_j]."""
    o, i = weight.shape
    return None, take(ddelta.reshape(o * i), places)


linear = delta.linear("shira.linear", sizes={"k": (3, 1, 2, 5, 8)})
merge = delta.merge("shira.merge", sizes={"k": (3, 1, 2, 5, 8)})


def unmerge(merged: np.ndarray, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The weight that ``merged`` came from, up to the merge's rounding."""
    o, i = merged.shape
    wide = scatter_add(values.astype(np.float64), places, o * i).reshape(o, i)
    return store(merged.astype(np.float64) - wide, as_format(merged.dtype.name))


def _drawn(random, arrays, attributes):
    return {"places": random.permutation(arrays["weight"].size)[: arrays["places"].size]}


for _operation in (linear, merge):
    _operation.makes_valid(_drawn)


def init(random: np.random.Generator, weight: np.ndarray, *, rank: int, mask: str = "random") -> dict[str, np.ndarray]:
    """Places and zero values.

    Parameters
    ----------
    random : numpy.random.Generator
    weight : (o, i)
    rank : int
        k = rank (o + i), at most o i.
    mask : "random" or "magnitude"
        Places at random, or those of the largest elements of W (the paper's SHiRA-Rand and SHiRA-WM).
    """
    k = count(*weight.shape, rank=rank)
    places = np.sort(random.permutation(weight.size)[:k]) if mask == "random" else extreme(weight, k)
    return {"values": np.zeros(k), "places": places}


def extreme(weight: np.ndarray, k: int, *, largest: bool = True) -> np.ndarray:
    """Places of the k elements that are largest, or smallest, in magnitude, in ascending order; of equals the first come."""
    magnitude = np.abs(weight).reshape(-1).astype(np.float64)
    return np.sort(np.argsort(-magnitude if largest else magnitude, kind="stable")[:k])


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: r (o + i), at most o i."""
    return min(rank * (o + i), o * i)
