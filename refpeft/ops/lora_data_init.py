"""Where LoRA starts when it has seen something: the layer's inputs, their covariance, a gradient, or what a quantiser loses.

Plain functions with invariants, like those of `lora_init`, whose `Factors` they give: a residual + s B A = W to within one ulp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refpeft.errors import AttributeValueError, DomainError, ShapeError
from refpeft.ops.lora_init import Factors, matrix, principal, with_residual
from refpeft.ops.lora_inputs import Inputs
from refpeft.problem import Problem

MODES = ("ipm", "kpm")
LORA_GA = {
    "direction": ("ArBr", "A2rBr", "ArB2r"),
    "scale": ("stable", "weight_svd", "gd_scale", "unit"),
    "variant": ("authors", "peft"),
}
"""What each option may be."""


def eva(inputs: Inputs, rank: int, *, whiten: bool = False) -> np.ndarray:
    """A from the directions in which the layer's inputs vary most (Paischer et al. 2024, arXiv:2410.07170); B is zero.

    The first r right singular vectors of the inputs, their mean taken off as in peft.

    Parameters
    ----------
    inputs : Inputs
        t of them, see `refpeft.ops.lora_inputs`.
    rank : int
        r, from 1 to min(t, i).
    whiten : bool
        Divide each vector by the square root of its singular value, as peft does where asked.

    Returns
    -------
    (r, i) float64 array

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If the rank is outside its range, the inputs are not finite, or vary in too few directions to whiten r.
    """
    x, _ = matrix("eva", inputs.spread, rank, "the matrix of inputs")
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    if whiten and s[rank - 1] <= s[0] * np.finfo(np.float64).eps * max(x.shape):
        raise DomainError(f"eva: inputs vary in fewer than {rank} directions, so that whitening would divide by zero.")
    return vt[:rank] / np.sqrt(s[:rank, None]) if whiten else vt[:rank]


def eva_ranks(explained: Mapping[str, np.ndarray], budget: int) -> dict[str, int]:
    """How a budget of ranks is shared among layers: to the ``budget`` largest shares of explained variance of all.

    Parameters
    ----------
    explained : mapping of layer name to 1-d array
        For each direction of a layer its share of the variance, descending.
    budget : int
        Sum of the ranks, unless there are fewer directions.

    Raises
    ------
    AttributeValueError
        If the budget is negative.
    """
    if budget < 0:
        raise AttributeValueError(f"eva_ranks: budget must be at least 0, but {budget!r} came.")
    shares = [(-share, name) for name, of_layer in explained.items() for share in np.asarray(of_layer, np.float64)]
    chosen = [name for _, name in sorted(shares, key=lambda pair: pair[0])[:budget]]
    return {name: chosen.count(name) for name in explained}


def corda(
    weight: np.ndarray, covariance: np.ndarray, rank: int, *, scaling: float, mode: str = "ipm", damp: float = 0.01
) -> Factors:
    """Factors oriented by the inputs' covariance (Yang et al. 2024, arXiv:2406.05223).

    With C' = C + damp mean(diag C) I and W C' = U S Vᵀ: s B A = U_r S_r V_rᵀ C'^-1, both factors with the root of S_r / s.

    Parameters
    ----------
    weight : (o, i)
    covariance : (i, i)
        C = Xᵀ X of the layer's inputs.
    rank : int
    scaling : float
        s, above 0.
    mode : str
        ``"ipm"`` takes the largest singular values, to adapt to the inputs' task; ``"kpm"`` the smallest, to keep what it knows.
    damp : float
        Above 0; doubled, as in peft, until |C' C'^-1 - I| < 0.05.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If an option is outside its domain, or weight or covariance is no matrix of finite numbers that fits.
    """
    w, format = matrix("corda", weight, rank)
    _above_zero("corda", scaling=scaling, damp=damp)
    if mode not in MODES:
        raise AttributeValueError(f"corda: mode must be 'ipm' or 'kpm', but {mode!r} came.")
    c = _square("corda", covariance, w.shape[1])
    while True:
        damped = c + damp * np.mean(np.diag(c)) * np.eye(len(c))
        inverse = np.linalg.inv(damped)
        if np.linalg.norm(damped @ inverse - np.eye(len(c))) < 0.05:
            break
        damp *= 2
    u, s, vt = np.linalg.svd(w @ damped, full_matrices=False)
    taken = slice(0, rank) if mode == "ipm" else slice(len(s) - rank, len(s))
    root = np.sqrt(s[taken] / scaling)
    return with_residual(weight, root[:, None] * (vt[taken] @ inverse), u[:, taken] * root, scaling, format)


def over_largest(x: np.ndarray) -> np.ndarray:
    """Inputs (n, s, i) of n texts, each text's over its largest element, as peft and CorDA's authors' code take them.

    The largest, not the largest in size. Where it is zero nothing is finite, and `corda` refuses that.
    """
    x = np.asarray(x, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return x / np.max(x, axis=(-2, -1), keepdims=True)


def lora_ga(
    weight: np.ndarray,
    gradient: np.ndarray,
    rank: int,
    *,
    scaling: float,
    direction: str = "ArB2r",
    scale: str = "stable",
    gamma: float = 16.0,
    variant: str = "authors",
) -> Factors:
    """Factors whose first step is that of full fine-tuning, as far as rank 2 r goes (Wang, Yu and Li 2024, arXiv:2407.05000).

    With the gradient's decomposition G = U S Vᵀ: A takes r of the first 2 r rows of Vᵀ, B the other r of the columns of U. A step
    of size h down the gradients s Bᵀ G and s G Aᵀ then moves the weight, but for h², by

        -h s² (B Bᵀ G + G Aᵀ A) = -h s² c² G_2r

    where both factors are c times orthonormal ones, and G_2r is G's best approximation of that rank. A row and a column that
    meet in B A are not of one pair, so their signs, which a decomposition leaves open, do not cancel: two libraries may start
    at different weights.

    Parameters
    ----------
    weight, gradient : (o, i)
        W, and the loss's gradient to it, averaged over some batches.
    rank : int
        r; 2 r is at most min(o, i).
    scaling : float
        s, above 0.
    direction : str
        ``"ArB2r"``: A the first r, B the next; ``"A2rBr"``: the other way round; ``"ArBr"``: A every second, B the ones before.
    scale : str
        c is o^(1/4) / sqrt(gamma) (``"stable"``), the mean root of W's first r singular values over s (``"weight_svd"``), 1 / s
        (``"gd_scale"``) or 1 (``"unit"``).
    gamma : float
    variant : str
        ``"authors"``, or ``"peft"``: B is multiplied by its singular values of G, so that the law above does not hold; with
        ``"stable"`` only B is scaled then, and ``"weight_svd"`` makes its longest column as long as W's largest singular value.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If an option is outside its domain, or weight or gradient is no matrix of finite numbers that fits.
    """
    w, format = matrix("lora_ga", weight, rank)
    _above_zero("lora_ga", scaling=scaling, gamma=gamma)
    for name, value in (("direction", direction), ("scale", scale), ("variant", variant)):
        if value not in LORA_GA[name]:
            raise AttributeValueError(f"lora_ga: {name} must be one of {', '.join(LORA_GA[name])}, but {value!r} came.")
    if 2 * rank > min(w.shape):
        raise AttributeValueError(
            f"lora_ga: rank must be at most {min(w.shape) // 2}, half the smaller side, but {rank!r} came."
        )
    g, _ = matrix("lora_ga", gradient, rank, "gradient")
    if g.shape != w.shape:
        raise ShapeError(f"lora_ga: gradient must have weight's shape {w.shape}, but has {g.shape}.")
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    first, second = slice(0, rank), slice(rank, 2 * rank)
    of_a, of_b = {
        "ArB2r": (first, second),
        "A2rBr": (second, first),
        "ArBr": (slice(1, 2 * rank, 2), slice(0, 2 * rank, 2)),
    }[direction]
    lengths = _authors_lengths if variant == "authors" else _pefts_lengths
    of_rows, of_columns = lengths(w, s[of_b], rank, scale, scaling, w.shape[0] ** 0.25 / math.sqrt(gamma))
    return with_residual(weight, vt[of_a] * of_rows, u[:, of_b] * of_columns, scaling, format)


def _authors_lengths(w, s, rank, scale, scaling, stable):
    """Of A's rows and B's columns: all are equal."""
    if scale == "weight_svd":
        c = np.sqrt(np.linalg.svd(w, compute_uv=False)[:rank] / scaling).mean()
    else:
        c = {"stable": stable, "gd_scale": 1 / scaling, "unit": 1.0}[scale]
    return c, c


def _pefts_lengths(w, s, rank, scale, scaling, stable):
    """Of A's rows and B's columns, where B is multiplied by its singular values of the gradient."""
    largest = np.linalg.norm(w, 2) / s[0] if s[0] > 0 else 1.0
    of_columns = {"stable": stable, "weight_svd": largest, "gd_scale": 1 / scaling, "unit": 1.0}[scale]
    return 1 / scaling if scale == "gd_scale" else 1.0, of_columns * s


class Quantised(NamedTuple):
    """A quantised base and the factors that make up for it.

    Attributes
    ----------
    packed : ((o i + 1) // 2,) uint8
    absmax : (ceil(o i / blocksize),) float32
    a : (r, i) float64
    b : (o, r) float64
    """

    packed: np.ndarray
    absmax: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def base(self, shape: tuple[int, ...], blocksize: int = 64) -> np.ndarray:
        """Q as numbers, in float64."""
        from refpeft.golden import stored

        codes = {"packed": self.packed, "absmax": self.absmax}
        options = {"n": math.prod(shape), "blocksize": blocksize, "dtype": "float32"}
        return stored(Problem.of("nf4.dequantize", codes, options))["y"].astype(np.float64).reshape(shape)


def loftq(
    weight: np.ndarray, rank: int, *, scaling: float = 1.0, blocksize: int = 64, iterations: int = 1
) -> Quantised:
    """An NF4 base Q and factors with Q + s B A near W (Li et al. 2023, arXiv:2310.08659, algorithm 1).

    Repeated: Q quantises W - s B A, and s B A is the best approximation of rank r of W - Q, each factor with the root of the
    singular values over s. It begins with B A = 0. peft's is the same at s = 1; for other s it leaves s out.

    Parameters
    ----------
    weight : (o, i)
        Rounded to float32 before it is quantised.
    rank : int
    scaling : float
        s, above 0.
    blocksize : int
    iterations : int
        At least 1.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If an option is outside its domain, or weight is no matrix of finite numbers.
    """
    from refpeft.golden import stored

    w, _ = matrix("loftq", weight, rank)
    _above_zero("loftq", scaling=scaling)
    if not isinstance(iterations, int) or iterations < 1:
        raise AttributeValueError(f"loftq: iterations must be an integer of at least 1, but {iterations!r} came.")
    a, b = np.zeros((rank, w.shape[1])), np.zeros((len(w), rank))
    for _ in range(iterations):
        rest = (w - scaling * b @ a).astype(np.float32).reshape(-1)
        codes = stored(Problem.of("nf4.quantize", {"weight": rest}, {"blocksize": blocksize}))
        found = Quantised(**codes, a=a, b=b)
        a, b = principal(w - found.base(w.shape, blocksize), rank, scaling)
    return found._replace(a=a, b=b)


def _square(name: str, covariance, side: int) -> np.ndarray:
    c = np.asarray(covariance, np.float64)
    if c.shape != (side, side):
        raise ShapeError(
            f"{name}: covariance must be ({side}, {side}), as weight has {side} columns, but has {c.shape}."
        )
    if not np.all(np.isfinite(c)):
        raise DomainError(f"{name}: covariance holds NaN or infinity.")
    if np.trace(c) <= 0:
        raise DomainError(
            f"{name}: covariance must have a trace above 0, but it is {np.trace(c):g}: there were no inputs."
        )
    return c


def _above_zero(name: str, **numbers: float) -> None:
    for what, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise AttributeValueError(f"{name}: {what} must be a finite number above 0, but {value!r} came.")
