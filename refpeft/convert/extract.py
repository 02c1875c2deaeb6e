"""What changed in the matrices of a model, as LoRA.

Of all matrices of rank r none is nearer to a change D = U diag(s) Vᵀ, in Frobenius' norm, than

    B A,  B = U_r diag(s_r)^1/2,  A = diag(s_r)^1/2 V_rᵀ,        ||D - B A||² = s_{r+1}² + s_{r+2}² + ...

(Eckart and Young 1936; Mirsky 1960). Where no rank is asked for it is the lowest at which that norm is not beyond u ||W + D||,
the most that a rounding of the changed matrix to its dtype makes: what is left out then is not more than what is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from refpeft.convert.merge import Merge
from refpeft.convert.source import Source, Tensor
from refpeft.errors import AttributeValueError, DomainError, FormatError
from refpeft.formats import peft
from refpeft.formats.adapter import Adapter
from refpeft.formats.names import FAMILIES, family_of
from refpeft.methods.lora import LoRA
from refpeft.numerics.formats import FORMATS, as_format

_UNIT = as_format(np.float32).unit
"""Of the factors, and of matrices that are known to more digits."""


class Changed(NamedTuple):
    """One matrix, before and after.

    Attributes
    ----------
    site : str
    before, after : (o, i) float64
    unit : float
        Unit round-off of the dtype that ``after`` is known in.
    """

    site: str
    before: np.ndarray
    after: np.ndarray
    unit: float


@dataclass(frozen=True)
class Extracted:
    """What LoRA says of a change.

    Attributes
    ----------
    adapter : refpeft.formats.adapter.Adapter
        LoRA with scaling 1, each matrix of its own rank; without the matrices that did not change.
    lost : dict of str to float
        By site, ||D - B A|| / ||D||.
    """

    adapter: Adapter
    lost: dict[str, float]


def factors(change: np.ndarray, rank: int | None = None, known: float = 0.0) -> tuple[np.ndarray, np.ndarray, float]:
    """The nearest product of a rank, or of the lowest rank that is near enough.

    Parameters
    ----------
    change : (o, i) float64
    rank : int, optional
        At most the smaller side is taken.
    known : float
        The norm of what may be left out, where no rank is given.

    Returns
    -------
    a, b : (r, i), (o, r) float64
    off : float
        Frobenius' norm of what is left out.

    Raises
    ------
    AttributeValueError
        If the rank is less than 1, or the norm less than 0.
    """
    if (rank is not None and rank < 1) or not known >= 0:
        raise AttributeValueError(
            f"factors: expected a rank of at least 1 and a norm of at least 0, got {rank} and {known}."
        )
    u, s, vt = np.linalg.svd(change, full_matrices=False)
    beyond = np.append(np.sqrt(np.cumsum(s[::-1] ** 2)[::-1]), 0.0)
    r = int(np.argmax(beyond <= known)) if rank is None else min(rank, len(s))
    root = np.sqrt(s[:r])
    return root[:, None] * vt[:r], u[:, :r] * root, float(beyond[r])


def extract(changes: Iterable[Changed], family: str, rank: int | None = None) -> Extracted:
    """LoRA for the matrices that changed, each by more than its rounding.

    Parameters
    ----------
    changes : iterable of Changed
    family : str
        Of the model, see `refpeft.formats.names`.
    rank : int, optional
        Of every matrix, but at most its smaller side; where it is not given, each has the lowest that says its change.

    Raises
    ------
    AttributeValueError
        If the rank is less than 1.
    DomainError
        If an element of a change is not finite, or nothing changed.
    """
    if rank is not None:
        LoRA(rank=rank)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    lost: dict[str, float] = {}
    for site, before, after, unit in changes:
        change, known = after - before, max(unit, _UNIT) * float(np.linalg.norm(after))
        if not np.isfinite(change).all():
            raise DomainError(f"The change of {site} has an element that is not finite.")
        if (size := float(np.linalg.norm(change))) <= known:
            continue
        a, b, off = factors(change, rank, known)
        arrays[site] = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
        lost[site] = off / size
    if not arrays:
        raise DomainError(
            "No matrix of a block changed by more than the rounding of its elements: there is nothing to extract."
        )
    most = max(len(its["a"]) for its in arrays.values())
    return Extracted(Adapter(LoRA(rank=most, alpha=most), arrays, family=family), lost)


def of_adapter(source: Source, adapter: Adapter, rank: int | None = None, *, matrices_only: bool = False) -> Extracted:
    """What an adapter changes in a model, see `extract` and `by_adapter`; a classifier's head that it has stays as it is."""
    made = extract(by_adapter(source, adapter, matrices_only=matrices_only), adapter.family, rank)
    return replace(made, adapter=replace(made.adapter, head=adapter.head, labels=adapter.labels))


def of_model(source: Source, tuned: Source, rank: int | None = None, *, matrices_only: bool = False) -> Extracted:
    """In what a model differs from the one that it was made of, see `extract` and `by_model`."""
    return extract(by_model(source, tuned, matrices_only=matrices_only), family_in(source), rank)


def by_adapter(source: Source, adapter: Adapter, *, matrices_only: bool = False) -> Iterator[Changed]:
    """The matrices of a model before and after an adapter is merged into them, in float64.

    Parameters
    ----------
    source : Source
    adapter : refpeft.formats.adapter.Adapter
    matrices_only : bool
        Whether to leave out what the adapter changes beside them, which is refused otherwise.

    Raises
    ------
    FormatError
        If the adapter is not for this model, or changes what LoRA has no place for.
    CapabilityError
        If its method cannot be merged.
    """
    work = Merge(adapter)
    source = work.completed(source)
    work.require_fitting(source)
    weights = {site: peft.tensor_of(site, adapter.family) for site in adapter.arrays}
    others = [site for site in weights if not _is_matrix(site, adapter.family)]
    for site, name in weights.items():
        if (bias := f"{name.removesuffix('weight')}bias") in source.tensors:
            before = _wide(source.tensors[bias])
            others += [] if np.array_equal(before, work.merged(bias, before)) else [f"the bias of {site}"]
    _require_matrices("the adapter", others, matrices_only)
    for site, name in weights.items():
        if _is_matrix(site, adapter.family):
            before = _wide(source.tensors[name])
            yield Changed(site, before, work.merged(name, before), _UNIT)


def by_model(source: Source, tuned: Source, *, matrices_only: bool = False) -> Iterator[Changed]:
    """The matrices of a model before and after it was trained, merged or otherwise changed.

    Parameters
    ----------
    source, tuned : Source
    matrices_only : bool
        Whether to leave out what differs beside them, which is refused otherwise. What is nothing but a rounding to the dtype of
        the tuned model does not differ.

    Raises
    ------
    FormatError
        If the two are not of one architecture, or differ in what LoRA has no place for.
    """
    family = family_in(source)
    if not source.tensors.keys() & tuned.tensors.keys():
        raise FormatError("The model and the tuned one have no tensor in common, expected two of one architecture.")
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    others = [f"{name!r}, which one of them lacks" for name in sorted(source.tensors.keys() ^ tuned.tensors.keys())]
    for name in (name for name in source.tensors if name in tuned.tensors):
        before, after = source.tensors[name], tuned.tensors[name]
        if before.shape != after.shape:
            raise FormatError(f"{name} has shape {before.shape} in the model, but {after.shape} in the tuned one.")
        site = FAMILIES[family].site(name.removesuffix(".weight")) or ""
        if _is_matrix(site, family) and name.endswith(".weight"):
            matrices[site] = before, after
        elif not np.array_equal(before.whole(after.dtype), after.whole()):
            others.append(repr(name))
    _require_matrices("the tuned model", others, matrices_only)
    for site, (before, after) in matrices.items():
        unit = as_format(after.dtype).unit if after.dtype.name in FORMATS else _UNIT
        yield Changed(site, _wide(before), _wide(after), unit)


def family_in(source: Source) -> str:
    """The family of a model, by the names of its tensors.

    Raises
    ------
    FormatError
    """
    family = next(filter(None, map(family_of, source.tensors)), None)
    if family is None:
        raise FormatError("The model has no matrix of a block whose name is known, expected a Llama, GPT-2 or BERT.")
    return family


def _is_matrix(site: str, family: str) -> bool:
    """Whether a site is a matrix of a block."""
    return site.partition(".")[2].partition(".")[2] in FAMILIES[family].matrices


def _require_matrices(who: str, others: list[str], matrices_only: bool) -> None:
    """Refuse changes of anything else than matrices of blocks, unless these are to be left out."""
    if others and not matrices_only:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise FormatError(
            f"LoRA stands at matrices of blocks, but {who} also changes {others[0]}{more}, which --matrices-only leaves out."
        )


def _wide(tensor: Tensor) -> np.ndarray:
    """All of a tensor, in float64."""
    return tensor.whole(np.dtype(np.float64))
