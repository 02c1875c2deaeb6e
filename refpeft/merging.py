"""What merging costs: how far the merged layer lies from the adapted one, and what unmerging leaves of the base weight.

In exact arithmetic nothing and all of it. In a dtype of p bits a merge rounds W + D once, relative to W; an update that is small
beside W is lost in part, and one below 2**-(p + 1) |W| altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refpeft.golden import evaluate
from refpeft.methods import Method, dims_of, methods, needs_of
from refpeft.numerics.formats import as_format, store
from refpeft.operation import find
from refpeft.ops.lora_inputs import Inputs
from refpeft.problem import Problem

SIDE, ROWS, STEP = 128, 64, 0.1
DTYPES = ("float32", "bfloat16", "float16")
"""In which a merge rounds enough to be worth a figure."""


@dataclass(frozen=True)
class Cost:
    """Of one method in one dtype.

    Attributes
    ----------
    update : float
        Norm of the merge's change over that of the weight.
    apart : float
        Norm of what the merged layer's output is off by, over that of the adapted layer's output.
    lost : float
        The same over the norm of what the method adds to the output.
    restored : float or None
        Share of the weights that unmerging gives back bit for bit; None where the method cannot be unmerged.
    residue : float or None
        Norm of what unmerging is off by, over that of the weight.
    """

    update: float
    apart: float
    lost: float
    restored: float | None
    residue: float | None


def merging_methods(family: str) -> dict[str, Method]:
    """The methods of a family that merge into a weight, by name, as they are where nothing is configured."""
    return {
        name: cls()
        for name, cls in methods().items()
        if cls.operation.partition(".")[0] == family and dims_of(cls) == ("o", "i") and not cls.not_mergeable
    }


def merging_cost(method: Method, dtype: str, *, merge: Callable | None = None, seed: int = 0) -> Cost:
    """Merge and unmerge the method on a weight ``SIDE`` by ``SIDE``, N(0, 1 / SIDE), ``STEP`` N(0, 1) away from its start.

    Parameters
    ----------
    method : Method
    dtype : str
    merge : callable, optional
        (weight, parameters) -> merged weight, in place of the reference's correctly rounded one.
    seed : int

    Raises
    ------
    CapabilityError
        If the method cannot be merged.
    """
    random, format = np.random.default_rng(seed), as_format(dtype)
    weight = random.normal(size=(SIDE, SIDE)) / np.sqrt(SIDE)
    started = method.init(random, weight, **stand_in(method, random, weight))
    weight = store(started.pop("weight", weight), format)
    parameters = {n: _moved(random, a, n in method.trainable, format) for n, a in started.items()}
    x = store(random.normal(size=(ROWS, SIDE)), format).astype(np.float64)

    merged = (merge or method.merge)(weight, parameters)
    adapted = _layer(method, weight, parameters, x)
    base, alone = (x @ w.astype(np.float64).T for w in (weight, merged))
    update = np.linalg.norm(merged.astype(np.float64) - weight.astype(np.float64))
    off, size = np.linalg.norm(alone - adapted), np.linalg.norm(weight.astype(np.float64))
    restored = residue = None
    if not method.not_unmergeable:
        back = method.unmerge(merged, parameters)
        restored = float(np.mean(back == weight))
        residue = float(np.linalg.norm(back.astype(np.float64) - weight.astype(np.float64)) / size)
    return Cost(
        float(update / size),
        float(off / np.linalg.norm(adapted)),
        float(off / np.linalg.norm(adapted - base)),
        restored,
        residue,
    )


def stand_in(method: Method, random: np.random.Generator, weight: np.ndarray) -> dict[str, Any]:
    """Normal data of the weight's size, for a method that starts from data."""
    o, i = weight.shape
    normal = {
        "inputs": lambda: Inputs.of(random.normal(size=(2 * i, i))),
        "gradient": lambda: random.normal(size=(o, i)),
    }
    return {name: normal[name]() for name in needs_of(method)}


def _moved(random, array: np.ndarray, trained: bool, format) -> np.ndarray:
    if array.dtype.kind in "iub":
        return array
    return store(array + STEP * random.normal(size=array.shape) if trained else array, format)


def _layer(method: Method, weight, parameters, x) -> np.ndarray:
    """The adapted layer's output in float64, of parameters as they are stored."""
    wide = {
        n: a if a.dtype.kind in "iub" else a.astype(np.float64) for n, a in (parameters | {"weight": weight}).items()
    }
    return evaluate(Problem.of(find(method.operation), wide | {"x": x}, method.attributes()))["y"]
