"""Where LoRA starts: the factors A and B, and, where they take a part of W over, what is left of W.

These are plain functions, not operations: some draw at random, others rest on factorisations, unique up to signs
only. What is specified are their invariants: bounds and moments, singular values, orthonormality, and that

    residual + s B A = W

to within one ulp of the residual, because the residual is correctly rounded from the factors as they are stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refpeft.errors import AttributeValueError, DomainError, ShapeError
from refpeft.numerics.formats import as_format, store


class Factors(NamedTuple):
    """A and B that take a part of W over.

    Attributes
    ----------
    a : (r, i)
    b : (o, r)
    residual : (o, i)
        The new base weight, W - s B A correctly rounded. All three have W's dtype.
    """

    a: np.ndarray
    b: np.ndarray
    residual: np.ndarray


def kaiming_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A uniform on [-1/sqrt(f), 1/sqrt(f)), f the fan-in.

    What the LoRA authors' code and peft do, where the paper has a normal distribution: He et al. (2015,
    arXiv:1502.01852) with a = sqrt(5).

    Parameters
    ----------
    random : numpy.random.Generator
    shape : (r, i) or (r, c, kh, kw)
        Of A; the fan-in is the product of all sizes but the first.

    Returns
    -------
    float64 array of that shape
    """
    bound = 1 / math.sqrt(_fan_in(shape))
    return random.uniform(-bound, bound, shape)


def gaussian(random: np.random.Generator, shape: tuple[int, ...], std: float | None = None) -> np.ndarray:
    """A normal with mean 0 (Hu et al. 2021, arXiv:2106.09685, section 4.1, which leaves the deviation open).

    Parameters
    ----------
    random : numpy.random.Generator
    shape : (r, i) or (r, c, kh, kw)
    std : float, optional
        Standard deviation; 1/r where not given, as in peft.

    Returns
    -------
    float64 array of that shape
    """
    _fan_in(shape)
    return random.normal(0.0, 1 / shape[0] if std is None else std, shape)


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """B = 0, so that training starts at the base model (section 4.1)."""
    return np.zeros(shape)


def pissa(weight: np.ndarray, rank: int, *, scaling: float) -> Factors:
    """Principal singular values and vectors (Meng, Wang and Zhang 2024, arXiv:2404.02948).

    With W = U S Vᵀ: A = sqrt(S_r / s) V_rᵀ and B = U_r sqrt(S_r / s), so that s B A is W's best approximation of rank r
    (Eckart and Young 1936). The paper has s = 1.

    Parameters
    ----------
    weight : (o, i)
        W, in float64, float32, bfloat16 or float16.
    rank : int
        r, from 1 to min(o, i).
    scaling : float
        s, above 0.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If the rank or the scaling is outside its domain, or W is no matrix of finite numbers.
    """
    w, format = matrix("pissa", weight, rank)
    if not (math.isfinite(scaling) and scaling > 0):
        raise AttributeValueError(f"pissa: scaling must be a finite number above 0, but {scaling!r} came.")
    return with_residual(weight, *principal(w, rank, scaling), scaling, format)


def principal(w: np.ndarray, rank: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B, equal in length, of which s B A is the best approximation of rank r (Eckart and Young 1936); in float64."""
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    root = np.sqrt(s[:rank] / scaling)
    return root[:, None] * vt[:rank], u[:, :rank] * root


def olora(weight: np.ndarray, rank: int, *, scaling: float) -> Factors:
    """Orthonormal start (Büyükakyüz 2024, arXiv:2406.01775).

    With W = Q R: A = R_r, the first r rows, and B = Q_r, the first r columns, which are orthonormal. Neither is divided
    by s.

    Parameters
    ----------
    weight : (o, i)
        W, in float64, float32, bfloat16 or float16.
    rank : int
        r, from 1 to min(o, i).
    scaling : float
        s, finite.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If the rank or the scaling is outside its domain, or W is no matrix of finite numbers.
    """
    w, format = matrix("olora", weight, rank)
    if not math.isfinite(scaling):
        raise AttributeValueError(f"olora: scaling must be a finite number, but {scaling!r} came.")
    q, r = np.linalg.qr(w)
    return with_residual(weight, r[:rank], q[:, :rank], scaling, format)


def orthogonal(random: np.random.Generator, rank: int, o: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors that are both at work though B A = 0, as in peft (a blog post is its source: "Rethink LoRA initialisation").

    With the rows of a random orthogonal matrix in two halves P and Q, and normal X and Y: A = Pᵀ X / 10 and B = Y Q / 10, so that
    B A = Y Q Pᵀ X / 100 = 0.

    Returns
    -------
    a : (r, i) float64 array
    b : (o, r) float64 array

    Raises
    ------
    AttributeValueError
        If the rank is odd or below 2.
    """
    if rank < 2 or rank % 2:
        raise AttributeValueError(f"orthogonal: rank must be even and at least 2, but {rank!r} came.")
    q, _ = np.linalg.qr(random.normal(size=(rank, rank)))
    x, y = random.normal(size=(rank // 2, i)), random.normal(size=(o, rank // 2))
    return q[0::2].T @ x / 10, y @ q[1::2] / 10


def mica(weight: np.ndarray, rank: int) -> np.ndarray:
    """B as the left singular vectors of W's r smallest singular values, largest first; it is frozen, and A starts at zero.

    Minor component adaptation (arXiv:2604.01694), as in peft.

    Parameters
    ----------
    weight : (o, i)
        W, in float64, float32, bfloat16 or float16.
    rank : int
        r, from 1 to min(o, i).

    Returns
    -------
    (o, r) array of W's dtype

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If the rank is outside its range, or W is no matrix of finite numbers.
    """
    w, format = matrix("mica", weight, rank)
    u, _, _ = np.linalg.svd(w, full_matrices=False)
    return store(u[:, u.shape[1] - rank :], format)


def with_residual(weight, a, b, scaling, format) -> Factors:
    """Factors rounded to a format, and the correctly rounded W - s B A of them as they are stored."""
    from refpeft.numerics.correct import round_update

    a, b = store(a, format), store(b, format)
    return Factors(a, b, round_update(weight, a, b, -scaling, format).astype(format.dtype))


def matrix(name, weight, rank, what="weight"):
    """W in float64 and its format, after checking it and the rank."""
    weight = np.asarray(weight)
    format = as_format(weight.dtype)
    if weight.ndim != 2:
        raise ShapeError(f"{name}: {what} must be a matrix, but has shape {weight.shape}.")
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= min(weight.shape):
        raise AttributeValueError(
            f"{name}: rank must be an integer from 1 to {min(weight.shape)}, the smaller side of {what}, "
            f"but {rank!r} came."
        )
    return finite(name, weight, what), format


def finite(name, weight, what="weight"):
    """W in float64, for a factorisation.

    Raises
    ------
    DomainError
        If it holds NaN or infinity, which have none.
    """
    w = np.asarray(weight).astype(np.float64)
    if not np.all(np.isfinite(w)):
        raise DomainError(f"{name}: {what} holds NaN or infinity, which have no factorisation.")
    return w


def _fan_in(shape) -> int:
    if len(shape) < 2 or min(shape) < 1:
        raise ShapeError(f"the shape of A must be (r, i) or (r, c, kh, kw) without zeros, but is {tuple(shape)}.")
    return math.prod(shape[1:])
