"""LoKr, configured: by which of its two Kronecker factors is a product."""

from __future__ import annotations

from dataclasses import dataclass

from refpeft.methods import Method, method
from refpeft.ops import lokr, lokr_both, lokr_dense


@dataclass(frozen=True, kw_only=True)
class _Kronecker(Method):
    """What the three forms share: the scaling, and how the sides of the weight are divided."""

    rank: int = 8
    alpha: float = 8.0
    factor: int = -1

    paper = "arXiv:2309.14859"
    peft = ("LOKR",)

    def validate(self):
        super().validate()
        self.require("factor", self.factor == -1 or self.factor >= 1, "-1 or at least 1")

    def attributes(self):
        return {"scaling": self.alpha / self.rank}


@method("lokr")
class LoKr(_Kronecker):
    """Kronecker product of a dense and a low-rank matrix.

    Attributes
    ----------
    rank : int
        r of the second factor.
    alpha : float
        The update is scaled by alpha / r.
    factor : int
        The first factor's share of each side of the weight where it divides it; -1 for the divisor next to the root.
    start : str
        Which factor is zero: ``"peft"`` the first, ``"lycoris"`` the second.
    """

    start: str = "peft"

    operation = "lokr.linear"
    trainable = ("w1", "w2_a", "w2_b")

    def validate(self):
        super().validate()
        self.require("start", self.start in ("peft", "lycoris"), "'peft' or 'lycoris'")

    def init(self, random, weight):
        return lokr.init(random, *weight.shape, rank=self.rank, factor=self.factor, lycoris=self.start == "lycoris")

    def count(self, o, i):
        return lokr.count(o, i, rank=self.rank, factor=self.factor)


@method("lokr_dense")
class DenseLoKr(_Kronecker):
    """Kronecker product of two dense matrices; rank enters the scaling only."""

    operation = "lokr_dense.linear"
    trainable = ("w1", "w2")
    peft = ("LOKR: r at least half of the second factor",)

    def init(self, random, weight):
        return lokr_dense.init(random, *weight.shape, factor=self.factor)

    def count(self, o, i):
        return lokr_dense.count(o, i, factor=self.factor)


@method("lokr_both")
class LowRankLoKr(_Kronecker):
    """Kronecker product of two low-rank matrices."""

    operation = "lokr_both.linear"
    trainable = ("w1_a", "w1_b", "w2_a", "w2_b")
    peft = ("LOKR: decompose_both",)

    def init(self, random, weight):
        return lokr_both.init(random, *weight.shape, rank=self.rank, factor=self.factor)

    def count(self, o, i):
        return lokr_both.count(o, i, rank=self.rank, factor=self.factor)
