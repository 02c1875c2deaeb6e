"""DEFT and PaRa, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import deft


@method("deft")
class DEFT(Method):
    """A subspace of the weight taken out and filled anew.

    Attributes
    ----------
    rank : int
        r of the subspace.
    alpha : float
        What fills it is scaled by alpha / r.
    """

    rank: int = 8
    alpha: float = 8.0

    operation = "deft.linear"
    trainable = ("subspace", "fill")
    paper = "DEFT, NeurIPS 2025"
    peft = ("DEFT",)

    def validate(self):
        super().validate()
        self.require("alpha", self.alpha != 0, "other than zero")

    def attributes(self):
        return {"scaling": self.alpha / self.rank}

    def init(self, random, weight):
        return deft.init(random, weight, rank=self.rank, scaling=self.alpha / self.rank)

    def count(self, o, i):
        return deft.count(o, i, rank=self.rank)


@method("para")
class PaRa(Method):
    """A subspace of the weight taken out.

    Attributes
    ----------
    rank : int
        r of the subspace.
    """

    rank: int = 8

    operation = "deft.linear"
    trainable = ("subspace",)
    paper = "arXiv:2406.05641"
    peft = ("DEFT: para",)
    identity = False

    def attributes(self):
        return {"scaling": 1.0, "variant": "para"}

    def init(self, random, weight):
        return deft.init(random, weight, rank=self.rank, scaling=1.0) | self.implied(weight.shape, {})

    def implied(self, shape, arrays):
        """What fills DEFT's subspace, which is nothing here."""
        return {"fill": np.zeros((min(self.rank, shape[0]), shape[1]))}

    def count(self, o, i):
        return min(self.rank, o) * o
