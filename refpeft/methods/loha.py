"""LoHa, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import loha


@method("loha")
class LoHa(Method):
    """Low-rank Hadamard product.

    Attributes
    ----------
    rank : int
        r of each of the two products.
    alpha : float
        The update is scaled by alpha / r.
    """

    rank: int = 8
    alpha: float = 8.0

    operation = "loha.linear"
    trainable = ("w1_a", "w1_b", "w2_a", "w2_b")
    paper = "arXiv:2108.06098"
    peft = ("LOHA",)

    def attributes(self):
        return {"scaling": self.alpha / self.rank}

    def init(self, random, weight):
        return loha.init(random, *weight.shape, rank=self.rank)

    def count(self, o, i):
        return loha.count(o, i, rank=self.rank)
