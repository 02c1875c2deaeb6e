"""Lily, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import lily


@method("lily")
class Lily(Method):
    """LoRA whose B is mixed by a router from matrices that all layers share; counted with A and B of one layer.

    Attributes
    ----------
    rank : int
        r.
    experts : int
        How many B there are.
    scaling : float
        s; there is no alpha.
    """

    rank: int = 32
    experts: int = 2
    scaling: float = 1.0

    operation = "lily.linear"
    trainable = ("a", "b", "router")
    paper = "arXiv:2407.09946"
    peft = ("LILY",)
    not_mergeable = "how the B are mixed depends on the input."

    def validate(self):
        super().validate()
        self.require("experts", self.experts >= 1, "at least 1")

    def attributes(self):
        return {"scaling": self.scaling}

    def init(self, random, weight):
        return lily.init(random, *weight.shape, rank=self.rank, experts=self.experts)

    def count(self, o, i):
        return lily.count(o, i, rank=self.rank, experts=self.experts)
