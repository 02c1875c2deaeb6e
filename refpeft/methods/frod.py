"""FRoD, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import frod


@method("frod")
class FRoD(Method):
    """A diagonal and some elements beside it, between frozen bases. ``init`` takes the basis of one layer for that of all of its
    kind; see `refpeft.ops.frod.basis`.

    Attributes
    ----------
    rate : float
        Share of the elements beside the diagonal that are trained.
    ridge : float
        What keeps the basis stable where layers are alike.
    """

    rate: float = 0.01
    ridge: float = 1e-3

    operation = "frod.linear"
    trainable = ("diagonal", "sparse")
    fixed = ("u", "v")
    following = ("u",)
    paper = "doi:10.1609/aaai.v40i31.39813"
    peft = ("FROD",)
    not_unmergeable = "the merged weight is made without the base weight; keep that, or the diagonal at the start."

    def validate(self):
        super().validate()
        self.require("rate", 0 <= self.rate <= 1, "from 0 to 1")
        self.require("ridge", self.ridge >= 0, "at least 0")

    def init(self, random, weight):
        return frod.init(random, weight, rate=self.rate, basis=frod.basis([weight], ridge=self.ridge))

    def derived(self, weight, arrays):
        return {"u": frod.written(weight, np.asarray(arrays["v"], np.float64))[0]} if "v" in arrays else {}

    def count(self, i):
        return frod.count(i, rate=self.rate)
