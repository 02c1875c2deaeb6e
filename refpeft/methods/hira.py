"""HiRA, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import hira


@method("hira")
class HiRA(Method):
    """Hadamard high-rank adaptation.

    Attributes
    ----------
    rank : int
        r of what multiplies the weight.
    """

    rank: int = 32

    operation = "hira.linear"
    trainable = ("a", "b")
    paper = "openreview:TwJrTz9cRS"
    peft = ("HIRA",)

    def init(self, random, weight):
        return hira.init(random, *weight.shape, rank=self.rank)

    def count(self, o, i):
        return hira.count(o, i, rank=self.rank)
