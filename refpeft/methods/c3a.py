"""C3A, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import c3a


@method("c3a")
class C3A(Method):
    """Circular convolution adaptation.

    Attributes
    ----------
    block : int
        b, which must divide both sides of the weight.
    normalised : bool
        Divide the update by the number of inputs.
    """

    block: int = 16
    normalised: bool = True

    operation = "c3a.linear"
    trainable = ("kernel",)
    paper = "arXiv:2407.19342"
    peft = ("C3A",)
    identity = False

    def validate(self):
        super().validate()
        self.require("block", self.block >= 1, "at least 1")

    def attributes(self):
        return {"normalised": self.normalised}

    def fits(self, o, i):
        self.divides("block", outputs=o, inputs=i)

    def init(self, random, weight):
        return c3a.init(random, *weight.shape, block=self.block)

    def count(self, o, i):
        return c3a.count(o, i, block=self.block)
