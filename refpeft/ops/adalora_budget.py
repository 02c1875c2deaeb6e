"""AdaLoRA's budget: how important triplets are, how many may stay, and which (Zhang et al. 2023, arXiv:2303.10512, section 3).

Of every entry p of A, e and B with gradient g, smoothed over the steps,

    I = |p g|        I' <- b1 I' + (1 - b1) I        U <- b2 U + (1 - b2) |I - I'|        s(p) = I' U

and triplet k scores s(e_k) + mean s(A_k) + mean s(B_k). All triplets of all layers compete for the budget, which falls by a
cubic from the initial to the final number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from refpeft.errors import AttributeValueError
from refpeft.operation import operation


@operation("adalora.importance", "p[*n] grad[*n] smoothed[*n] spread[*n] -> sensitivity[*n] uncertainty[*n] score[*n]")
def importance(p, grad, smoothed, spread, *, beta1: float = 0.85, beta2: float = 0.85):
    """One step of the smoothed sensitivity I', its uncertainty U, and the score I' U.

    Parameters
    ----------
    p, grad : (*n)
        A parameter and its gradient.
    smoothed, spread : (*n)
        I' and U of the step before; zero at first.
    beta1, beta2 : float
        How much of each is kept.

    Returns
    -------
    sensitivity, uncertainty, score : (*n)
    """
    now = np.absolute(p * grad)
    sensitivity = beta1 * smoothed + (1 - beta1) * now
    uncertainty = beta2 * spread + (1 - beta2) * np.absolute(now - sensitivity)
    return sensitivity, uncertainty, sensitivity * uncertainty


def triplet_scores(a: np.ndarray, e: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scores of the triplets of one layer from the scores of the entries of A (r, i), e (r) and B (o, r)."""
    return e + a.mean(axis=1) + b.mean(axis=0)


def budget(step: int, *, initial: int, final: int, total: int, warmup: int = 0, settle: int = 0) -> int:
    """How many triplets may stay after ``step`` of ``total`` steps.

    The initial number for the first ``warmup`` steps, the final one in the last ``settle``, and between them
    final + (initial - final) (1 - t)³, rounded down, with t from 0 to 1.

    Raises
    ------
    AttributeValueError
        If the numbers are not 0 <= final <= initial, or warmup and settle leave no steps between them.
    """
    if not 0 <= final <= initial:
        raise AttributeValueError(f"adalora budget: 0 <= final <= initial is needed, but {final} and {initial} came.")
    if warmup < 0 or settle < 0 or warmup + settle >= total:
        raise AttributeValueError(
            f"adalora budget: warmup + settle must be below total, but {warmup}, {settle} and {total} came."
        )
    if step <= warmup:
        return initial
    if step > total - settle:
        return final
    return int((initial - final) * (1 - (step - warmup) / (total - settle - warmup)) ** 3 + final)


def allocate(scores: Sequence[np.ndarray], kept: int, *, ties: Literal["first", "none"] = "first") -> list[np.ndarray]:
    """Which triplets stay: the ``kept`` best of all layers, as one boolean array per layer.

    Parameters
    ----------
    scores : sequence of (r,) arrays
        One per layer.
    kept : int
        The budget, from 0 to the number of triplets.
    ties : "first" or "none"
        Of triplets that tie at the border, the first stay so that the budget is used; or, as in peft, none does.

    Raises
    ------
    AttributeValueError
        If ``kept`` is negative or more than there are.
    """
    flat = np.concatenate([np.asarray(s, np.float64).reshape(-1) for s in scores])
    if not 0 <= kept <= flat.size:
        raise AttributeValueError(f"adalora allocate: kept must be from 0 to {flat.size}, but {kept} came.")
    order = np.argsort(-flat, kind="stable")
    stay = np.zeros(flat.size, bool)
    stay[order[:kept]] = True
    if ties == "none" and kept < flat.size:
        stay &= flat > flat[order[kept]]
    return np.split(stay, np.cumsum([len(s) for s in scores])[:-1])


def prune(e: np.ndarray, stay: np.ndarray) -> np.ndarray:
    """The singular values that stay, the others zero: the vectors are kept, so that a triplet can come back."""
    return np.where(stay, e, np.zeros_like(e))
