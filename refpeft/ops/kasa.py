"""KaSA: knowledge-aware singular-value adaptation (Wang et al. 2024, arXiv:2412.06071).

The r smallest singular values of the weight are taken for noise and left out for good; in their place an update with singular
values of its own is trained. The layer is `refpeft.ops.adalora`'s:

    W = U S Vᵀ        W_kept = sum of the k - r largest triplets, k = min(o, i)        W' = W_kept + s B diag(e) A

B is zero at the start, so that training begins at W_kept, not at the base model.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.ops.adalora import orthogonality
from refpeft.ops.lora_init import finite, kaiming_uniform


def truncate(weight: np.ndarray, rank: int) -> np.ndarray:
    """The weight without its ``rank`` smallest singular values, float64.

    Raises
    ------
    DomainError
        If nothing of the weight would be left.
    """
    least = min(weight.shape)
    if not rank < least:
        raise DomainError(f"KaSA: rank must be below min(o, i) = {least}, but {rank} came.")
    u, s, vt = np.linalg.svd(finite("KaSA", weight), full_matrices=False)
    kept = least - rank
    return (u[:, :kept] * s[:kept]) @ vt[:kept]


def regulariser(a, e, b, *, beta: float = 1e-4, gamma: float = 1e-3) -> float:
    """beta ||e||² + gamma (||Bᵀ B - I|| + ||A Aᵀ - I||), Frobenius norms: what is added to the loss, of one layer."""
    return float(beta * np.sum(e * e) + 2 * gamma * orthogonality(a, b, variant="norm"))


def init(random: np.random.Generator, weight: np.ndarray, *, rank: int) -> dict[str, np.ndarray]:
    """A Kaiming-uniform, e standard normal, B zero, and the truncated weight.

    Returns
    -------
    dict of str to float64 array
        a (rank, i), e (rank,), b (o, rank), weight (o, i).
    """
    o, i = weight.shape
    a, e = kaiming_uniform(random, (rank, i)), random.normal(size=rank)
    return {"a": a, "e": e, "b": np.zeros((o, rank)), "weight": truncate(weight, rank)}
