"""Several LoRA adapters as one: D = sum_j w_j s_j B_j A_j, or what stands for it.

=====================  ================================================================  ===============================
``how``                the combined adapter                                              D
=====================  ================================================================  ===============================
``cat``                A = [w_j s_j A_j] on top of each other, B = [B_j] side by side     exactly, at rank sum r_j
``svd``                the best approximation of rank r (Eckart and Young 1936)           up to singular value r + 1
``linear``             A = sum_j sgn(w_j s_j) t_j A_j, B = sum_j t_j B_j,                 with cross terms B_j A_k, since
                       t_j = sqrt(|w_j s_j|)                                              B A is not linear in both
``magnitude_prune``    as linear, each factor cut to its largest elements first
``ties``               cut, then of each element the adapters with the elected sign       Yadav et al. 2023,
                       alone, averaged (trim, elect, merge)                               arXiv:2306.01708
``dare_linear``        as linear, each factor thinned at random and rescaled first        Yu et al. 2023, arXiv:2311.03099
``dare_ties``          thinned instead of cut, then elected and averaged
=====================  ================================================================  ===============================

With ``_svd`` behind it, a rule works on the updates s_j B_j A_j with weights w_j, and the result is cut to rank r. These are
plain functions like the starts in `lora_init`: adapters are combined once, outside of training. Rules and names are peft's
(``add_weighted_adapter``), but for what it leaves open: among elements of equal magnitude the first stay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refpeft.errors import AttributeValueError, ShapeError
from refpeft.ops.lora_init import matrix

RULES = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")
HOW = ("cat", "svd", *RULES, *(f"{rule}_svd" for rule in RULES[1:]))


class Adapter(NamedTuple):
    """One adapter.

    Attributes
    ----------
    a : (r, i)
    b : (o, r)
    scaling : float
        s; see `lora.scaling`.
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float = 1.0

    @property
    def update(self) -> np.ndarray:
        """s B A, (o, i), in float64."""
        return self.scaling * (self.b.astype(np.float64) @ self.a.astype(np.float64))


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    how: str = "cat",
    *,
    rank: int | None = None,
    density: float = 1.0,
    elect: str = "total",
    random: np.random.Generator | None = None,
) -> Adapter:
    """One adapter for several, with scaling 1, in float64.

    Parameters
    ----------
    adapters : sequence of Adapter
        For the same layer; of one rank, except for ``cat`` and what ends in ``svd``.
    weights : sequence of float
        w, one for each.
    how : str
        A name of the table above.
    rank : int, optional
        Of the result, where ``how`` ends in ``svd``; the largest of the adapters' where not given.
    density : float
        Share of the elements that pruning keeps, above 0 and at most 1.
    elect : str
        By what an element's sign is elected: ``"total"``, the sum over the adapters, or ``"frequency"``, how many have it. An
        even vote is positive.
    random : numpy.random.Generator, optional
        What thins; needed where ``how`` begins with ``dare``.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If an option is outside its domain, the adapters do not fit each other, or an update to be cut is not finite.
    """
    _require(adapters, weights, how, density, elect, random)
    strengths = [w * adapter.scaling for w, adapter in zip(weights, adapters)]
    if how == "cat":
        a = np.concatenate([t * np.asarray(adapter.a, np.float64) for t, adapter in zip(strengths, adapters)])
        return Adapter(a, np.concatenate([np.asarray(adapter.b, np.float64) for adapter in adapters], axis=1))
    rule = _rule("linear" if how == "svd" else how.removesuffix("_svd"), density, elect, random)
    if how.endswith("svd"):
        update = rule(np.stack([adapter.update for adapter in adapters]), np.asarray(weights, np.float64))
        return truncated(update, max(len(adapter.a) for adapter in adapters) if rank is None else rank)
    if len({len(adapter.a) for adapter in adapters}) > 1:
        ranks = ", ".join(str(len(adapter.a)) for adapter in adapters)
        raise ShapeError(f"combine: {how} adds factors up and needs adapters of one rank, but theirs are {ranks}.")
    roots = np.sqrt(np.abs(strengths))
    a = rule(np.stack([np.asarray(adapter.a, np.float64) for adapter in adapters]), np.copysign(roots, strengths))
    return Adapter(a, rule(np.stack([np.asarray(adapter.b, np.float64) for adapter in adapters]), roots))


def truncated(update: np.ndarray, rank: int) -> Adapter:
    """The nearest update of rank r: B = U_r S_r and A = V_rᵀ of U S Vᵀ.

    Raises
    ------
    AttributeValueError, DomainError, ShapeError
        If the rank is not an integer from 1 to the smaller side, or the update is no matrix of finite numbers.
    """
    update, _ = matrix("combine", update, rank, "the update")
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    return Adapter(vt[:rank], u[:, :rank] * s[:rank])


def weighted(tensors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_j w_j T_j over the first axis."""
    return np.tensordot(weights, tensors, 1)


def pruned(tensors: np.ndarray, density: float) -> np.ndarray:
    """Each tensor with zeros in place of all but its floor(density size) elements of largest magnitude."""
    flat = tensors.reshape(len(tensors), -1)
    order = np.argsort(-np.abs(flat), axis=1, kind="stable")
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, order[:, : int(density * flat.shape[1])], True, axis=1)
    return np.where(kept, flat, 0.0).reshape(tensors.shape)


def thinned(tensors: np.ndarray, density: float, random: np.random.Generator) -> np.ndarray:
    """Each element kept with probability ``density`` and divided by it, so that its mean stays."""
    return np.where(random.random(tensors.shape) < density, tensors / density, 0.0)


def elected(tensors: np.ndarray, weights: np.ndarray, elect: str) -> np.ndarray:
    """Of each element, the weighted mean over the tensors that have the elected sign; zero where none has."""
    signs = np.sign(tensors)
    votes = np.sum(tensors if elect == "total" else signs, axis=0)
    agrees = signs == np.where(votes >= 0, 1.0, -1.0)
    return weighted(np.where(agrees, tensors, 0.0), weights) / np.maximum(np.sum(agrees, axis=0), 1)


def _rule(name: str, density: float, elect: str, random) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """From stacked tensors and their weights to one tensor."""
    merge = functools.partial(elected, elect=elect) if name.endswith("ties") else weighted
    if name.startswith("dare"):
        return lambda tensors, weights: merge(thinned(tensors, density, random), weights)
    if name in ("ties", "magnitude_prune"):
        return lambda tensors, weights: merge(pruned(tensors, density), weights)
    return merge


def _require(adapters, weights, how, density, elect, random) -> None:
    if how not in HOW:
        raise AttributeValueError(f"combine: how must be one of {', '.join(HOW)}, but {how!r} came.")
    if not adapters or len(weights) != len(adapters):
        raise AttributeValueError(
            f"combine: as many weights as adapters are needed, at least one, but {len(weights)} weights and "
            f"{len(adapters)} adapters came."
        )
    if not all(math.isfinite(w) for w in weights):
        raise AttributeValueError(f"combine: weights must be finite numbers, but {list(weights)} came.")
    if not 0 < density <= 1:
        raise AttributeValueError(f"combine: density must be above 0 and at most 1, but {density!r} came.")
    if elect not in ("total", "frequency"):
        raise AttributeValueError(f"combine: elect must be 'total' or 'frequency', but {elect!r} came.")
    if how.startswith("dare") and random is None:
        raise AttributeValueError(f"combine: {how} draws at random and needs random=, a numpy.random.Generator.")
    sides = {(adapter.b.shape[0], adapter.a.shape[1]) for adapter in adapters}
    if len(sides) > 1 or any(adapter.b.shape[1] != adapter.a.shape[0] for adapter in adapters):
        shapes = "; ".join(f"a {adapter.a.shape}, b {adapter.b.shape}" for adapter in adapters)
        raise ShapeError(f"combine: the adapters must be of one layer, a (r, i) and b (o, r), but have {shapes}.")
