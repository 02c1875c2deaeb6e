"""DeLoRA, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import delora


@method("delora")
class DeLoRA(Method):
    """Low-rank adaptation with angles and strength apart.

    Attributes
    ----------
    rank : int
        r.
    boundary : float
        lambda at the start.
    floor : float
        What a norm counts as at least.
    """

    rank: int = 8
    boundary: float = 15.0
    floor: float = 1e-4

    operation = "delora.linear"
    trainable = ("a", "b", "boundary")
    fixed = ("weight", "norms")
    paper = "arXiv:2503.18225"
    peft = ("DELORA",)

    def validate(self):
        super().validate()
        self.require("floor", self.floor > 0, "above 0")

    def attributes(self):
        return {"floor": self.floor}

    def init(self, random, weight):
        return delora.init(random, weight, rank=self.rank, boundary=self.boundary)

    def count(self, o, i):
        return delora.count(o, i, rank=self.rank)
