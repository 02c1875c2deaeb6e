"""GLoRA: a weight scaled and shifted elementwise, and a bias adapted with it (Chavan et al. 2023, arXiv:2306.07967).

    W' = W + W o A + B      b' = b + b o d + e + W c      A, B (o, i) of rank r,  c (i),  d, e (o)

with o the elementwise product. Here A = Al Ar and B = Bl Br; a vector or a number in place of a matrix, which the paper
searches over, is one of rank one with equal entries. A layer is `glora.linear` with the bias that `glora.bias` gives.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.formats import as_format, store
from refpeft.operation import operation
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform


@update("scale_left[o,r] scale_right[r,i] shift_left[o,r] shift_right[r,i]")
def delta(weight, scale_left, scale_right, shift_left, shift_right):
    """delta = W o (Al Ar) + Bl Br.

    Parameters
    ----------
    scale_left, shift_left : (o, r)
        Al and Bl.
    scale_right, shift_right : (r, i)
        Ar and Br.
    """
    return weight * (scale_left @ scale_right) + shift_left @ shift_right


@delta.vjp
def _(ddelta, weight, scale_left, scale_right, shift_left, shift_right):
    """dA = ddelta o W and dB = ddelta, each the product of a pair; dW = ddelta o A beside the base layer's own."""
    dscale = ddelta * weight
    return (
        ddelta * (scale_left @ scale_right),
        dscale @ scale_right.T,
        scale_left.T @ dscale,
        ddelta @ shift_right.T,
        shift_left.T @ ddelta,
    )


@operation("glora.bias", "bias[o] weight[o,i] c[i] d[o] e[o] -> adapted[o]")
def bias(bias, weight, c, d, e):
    """b' = b + b o d + e + W c.

    Parameters
    ----------
    bias : (o,)
        The base layer's bias b.
    weight : (o, i)
        The base weight W, before anything is merged into it.
    c : (i,)
    d, e : (o,)

    Returns
    -------
    adapted : (o,)
    """
    return bias + bias * d + e + weight @ c


@bias.vjp
def _(dadapted, bias, weight, c, d, e):
    """db = db' + db' o d, dd = db' o b, de = db', dc = Wᵀ db', dW = db' cᵀ."""
    dweight = np.expand_dims(dadapted, 1) * np.expand_dims(c, 0)
    return dadapted + dadapted * d, dweight, weight.T @ dadapted, dadapted * bias, dadapted


linear = delta.linear("glora.linear", sizes={"r": (2, 1, 3)})
merge = delta.merge("glora.merge", sizes={"r": (2, 1, 3)})


def unmerge(merged: np.ndarray, scale_left, scale_right, shift_left, shift_right) -> np.ndarray:
    """W = (W' - Bl Br) / (1 + Al Ar), rounded once to the dtype of ``merged``.

    Raises
    ------
    DomainError
        Where 1 + Al Ar is zero, so that the weight there is lost.
    """
    al, ar, bl, br = (np.asarray(p, np.float64) for p in (scale_left, scale_right, shift_left, shift_right))
    divisor = 1 + al @ ar
    if not np.all(divisor):
        at = tuple(int(k) for k in np.argwhere(divisor == 0)[0])
        raise DomainError(f"glora.unmerge: 1 + A is zero at {at}, so that the weight there is lost.")
    return store((merged.astype(np.float64) - bl @ br) / divisor, as_format(merged.dtype.name))


def init(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """Left factors zero, right ones Kaiming-uniform, as in peft.

    Returns
    -------
    dict of str to float64 array
        scale_left, shift_left (o, rank) and scale_right, shift_right (rank, i).
    """
    return {
        "scale_left": np.zeros((o, rank)),
        "scale_right": kaiming_uniform(random, (rank, i)),
        "shift_left": np.zeros((o, rank)),
        "shift_right": kaiming_uniform(random, (rank, i)),
    }


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters of the weight's part: 2 r (o + i)."""
    return 2 * rank * (o + i)
