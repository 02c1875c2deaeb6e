"""PEANuT, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import peanut


@method("peanut")
class PEANuT(Method):
    """A small network that answers the weight with its update.

    Attributes
    ----------
    rank : int
        r, the width of the tower.
    depth : int
        l, levels on each side of it.
    scaling : float
        s.
    """

    rank: int = 32
    depth: int = 0
    scaling: float = 1.0

    operation = "peanut.linear"
    trainable = ("first", "encoders", "decoders", "last")
    paper = "arXiv:2410.01870"
    peft = ("PEANUT",)
    not_unmergeable = (
        "its update is a network's answer to the weight, which the merged weight does not hold; keep the weight."
    )

    def validate(self):
        super().validate()
        self.require("depth", self.depth >= 0, "at least 0")

    def attributes(self):
        return {"scaling": self.scaling}

    def init(self, random, weight):
        return peanut.init(random, *weight.shape, rank=self.rank, depth=self.depth)

    def implied(self, shape, arrays):
        """The levels, where there are none."""
        return {} if self.depth else dict.fromkeys(("encoders", "decoders"), np.zeros((0, self.rank, self.rank)))

    def count(self, o, i):
        return peanut.count(o, i, rank=self.rank, depth=self.depth)
