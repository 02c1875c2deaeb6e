"""Lily, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import lily


@method("lily")
class Lily(Method):
    """LoRA whose B is mixed by a router from matrices that all layers share; counted with A and B of one layer.

    How they are mixed depends on all tokens of the batch, also those that a decoder has not read yet, as in peft.

    Attributes
    ----------
    rank : int
        r.
    experts : int
        How many B there are, for the matrices of a kind in all layers together.
    scaling : float
        s; there is no alpha.
    stride : int
        How many layers next to each other have an A in common.
    """

    rank: int = 32
    experts: int = 2
    scaling: float = 1.0
    stride: int = 1

    operation = "lily.linear"
    trainable = ("a", "b", "router")
    paper = "arXiv:2407.09946"
    peft = ("LILY",)
    not_mergeable = "how the B are mixed depends on the input."

    def validate(self):
        super().validate()
        for field in ("experts", "stride"):
            self.require(field, getattr(self, field) >= 1, "at least 1")

    def attributes(self):
        return {"scaling": self.scaling}

    def corners(self, shape):
        o, i = shape
        return {"a": (self.rank, i), "b": (self.experts, self.rank, o)}

    def neighbours(self):
        return {"a": self.stride, "b": 0}

    def init(self, random, weight):
        return lily.init(random, *weight.shape, rank=self.rank, experts=self.experts)

    def count(self, o, i):
        return lily.count(o, i, rank=self.rank, experts=self.experts)
