"""The factor on LoRA's update (Hu et al. 2021, arXiv:2106.09685, section 4.1; Kalajdzievski 2023, arXiv:2312.03732)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.operation import operation


@operation("lora.scaling", "alpha[] -> s[] where rank >= 1, rank//1 = rank")
def scaling(alpha, *, rank: float, variant: Literal["lora", "rslora"] = "lora"):
    """s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.

    Parameters
    ----------
    alpha : ()
        An array, so that the operation has a dtype and a gradient.
    rank : float
        r, an integer of at least 1. It is declared as a real number because it takes part in real arithmetic: it enters
        an interpretation as any other scalar does, and so does its square root.
    variant : "lora" or "rslora"

    Returns
    -------
    s : ()
    """
    return alpha * _share(rank, variant)


@scaling.vjp
def _(ds, alpha, *, rank, variant="lora"):
    """dalpha = ds / r, or ds / sqrt(r)."""
    return ds * _share(rank, variant)


def _share(rank, variant):
    return 1 / rank if variant == "lora" else 1 / np.sqrt(rank)
