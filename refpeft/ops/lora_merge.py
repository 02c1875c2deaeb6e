"""LoRA's update as a matrix, put into the base weight and taken out (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    delta = s B A        merged = W + delta        unmerged = M - delta

In storage the reference gives merged and unmerged weights correctly rounded: the exact W + s B A, rounded once. Other
implementations have the budget of the arithmetic they do: s (B A), (s B) A or B (s A), with delta rounded before it is
added or not.
"""

from __future__ import annotations

from refpeft.operation import operation


@operation("lora.delta", "a[r,i] b[o,r] -> delta[o,i]")
def delta(a, b, *, scaling: float):
    """delta = s B A.

    Parameters
    ----------
    a : (r, i)
    b : (o, r)
    scaling : float
        s; see `lora.scaling`.

    Returns
    -------
    delta : (o, i)
    """
    return scaling * (b @ a)


@delta.vjp
def _(ddelta, a, b, *, scaling):
    """With u = s ddelta: dA = Bᵀ u, dB = u Aᵀ."""
    u = scaling * ddelta
    return b.T @ u, u @ a.T


@operation("lora.merge", "weight[o,i] a[r,i] b[o,r] -> merged[o,i]")
def merge(weight, a, b, *, scaling: float):
    """merged = W + s B A.

    Parameters
    ----------
    weight : (o, i)
        Base weight W.
    a : (r, i)
    b : (o, r)
    scaling : float
        s; see `lora.scaling`.

    Returns
    -------
    merged : (o, i)
    """
    return weight + scaling * (b @ a)


@merge.vjp
def _(dmerged, weight, a, b, *, scaling):
    """With u = s dmerged: dW = dmerged, dA = Bᵀ u, dB = u Aᵀ."""
    u = scaling * dmerged
    return dmerged, b.T @ u, u @ a.T


@merge.stored_as
def _(format, weight, a, b, *, scaling):
    """The correctly rounded W + s B A."""
    from refpeft.numerics.correct import round_update

    return round_update(weight, a, b, scaling, format)


@operation("lora.unmerge", "merged[o,i] a[r,i] b[o,r] -> weight[o,i]")
def unmerge(merged, a, b, *, scaling: float):
    """weight = M - s B A.

    The merge's rounding is lost: W comes back to within one ulp of M, not always exactly.

    Parameters
    ----------
    merged : (o, i)
        Merged weight M.
    a : (r, i)
    b : (o, r)
    scaling : float
        s; see `lora.scaling`.

    Returns
    -------
    weight : (o, i)
    """
    return merged - scaling * (b @ a)


@unmerge.vjp
def _(dweight, merged, a, b, *, scaling):
    """With u = -s dweight: dM = dweight, dA = Bᵀ u, dB = u Aᵀ."""
    u = -(scaling * dweight)
    return dweight, b.T @ u, u @ a.T


@unmerge.stored_as
def _(format, merged, a, b, *, scaling):
    """The correctly rounded M - s B A."""
    from refpeft.numerics.correct import round_update

    return round_update(merged, a, b, -scaling, format)
