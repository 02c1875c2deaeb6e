"""Arrays that layers of a method share, and those that nobody needs to keep.

All layers share what is drawn once for the largest weight and cut to size where a layer stands, those of one kind of matrix in
several layers what is one array for them. On the model's backend is one array for all sites of a shape; of frozen ones the
whole, which is what is kept of an adapter, stays on the host. One that is trained has one shape for all its sites, and its
gradient is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refpeft.errors import ShapeError
from refpeft.methods import Arrays, Method
from refpeft.models.four_bit import Base

if TYPE_CHECKING:
    from refpeft.models.sites import Sites


def drawn(
    model: Sites, sites: Sequence[str], method: Method, random: np.random.Generator, dtype: np.dtype
) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each site where layers share some, these in the model's dtype; nothing where the method's share none."""
    shapes = {site: tuple(model.places[site].weight.shape) for site in sites}
    largest = np.max([*shapes.values()], axis=0)
    whole = {name: array.astype(dtype) for name, array in method.common(random, tuple(largest.tolist())).items()}
    dealt, own = method.dealt(shapes), {}
    for site in sites if whole else ():
        method.fits(*shapes[site])
        own[site] = method.own(random, model.weight(site))
    return {site: {**whole, **its, **dealt.get(site, {})} for site, its in own.items()}


def joined(method: Method, arrays: Arrays, drawn: bool) -> Arrays:
    """The arrays, one object where layers have one in common: the first one's where they were drawn.

    Raises
    ------
    ShapeError
        If they were not drawn, and differ.
    """
    found = {site: dict(its) for site, its in arrays.items()}
    for name, (first, *others) in method.in_common(arrays):
        for site in (site for site in others if {name} <= found[site].keys() & found[first].keys()):
            if not drawn and not np.array_equal(found[site][name], found[first][name]):
                raise ShapeError(f"{first} and {site} have one {name} under {method!r}, but two came.")
            found[site][name] = found[first][name]
    return found


def corners(model: Sites, method: Method, arrays: Arrays) -> dict[str, dict[str, Any]]:
    """Of what layers share, the corner that stands at each site, on the model's backend."""
    put: dict[tuple, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for site, its in arrays.items():
        shape = tuple(model.places[site].weight.shape)
        whole = {name: its[name] for name in method.corners(shape) if name in its}
        found[site] = {}
        for name, corner in method.unpacked(shape, whole).items():
            key = id(whole[name]), corner.shape
            if key not in put:
                put[key] = model.asarray(corner)
            found[site][name] = put[key]
    return found


def parted(model: Sites, site: str, method: Method, arrays: Mapping[str, Any], drawn: bool) -> tuple[dict, dict]:
    """What a method brings to a site, and what is not kept, since it follows from that or from the weight.

    What would follow from a weight in 4 bits is kept: it is quantised again.
    """
    base = model.places[site].weight
    implied = method.implied(tuple(base.shape), arrays)
    brought = {n: a for n, a in arrays.items() if n not in implied or not np.array_equal(a, implied[n])}
    if drawn and not isinstance(base, Base):
        implied |= {n: brought.pop(n) for n in method.following}
    elif not set(method.following) & set(brought):
        implied |= method.derived(model.weight(site), brought) if method.following else {}
    return brought, implied
