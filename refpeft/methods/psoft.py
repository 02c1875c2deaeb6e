"""PSOFT, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import psoft
from refpeft.ops.psoft import Variant


@method("psoft")
class PSOFT(Method):
    """Orthogonal finetuning in the principal subspace.

    Attributes
    ----------
    rank : int
        r, the dimension of the subspace that is turned.
    alpha : float
        s = alpha / r cancels between the factors and the update.
    variant : str
        How a skew-symmetric matrix gives a rotation: ``paper`` or ``neumann``.
    terms : int
        Terms of the series; used by ``neumann`` only.
    """

    rank: int = 8
    alpha: float = 8.0
    variant: Variant = "paper"
    terms: int = 5

    operation = "psoft.linear"
    trainable = ("skew", "alpha", "beta")
    fixed = ("weight", "a", "b")
    paper = "arXiv:2505.11235"
    peft = ("PSOFT",)

    def validate(self):
        super().validate()
        self.require("alpha", self.alpha != 0, "other than zero")
        self.require("variant", self.variant in ("paper", "neumann"), "'paper' or 'neumann'")
        self.require("terms", self.terms >= 1, "at least 1")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "variant": self.variant, "terms": self.terms}

    def fits(self, o, i):
        self.require("rank", self.rank <= min(o, i), f"at most {min(o, i)}, the smaller side of the weight")

    def init(self, random, weight):
        return psoft.init(weight, rank=self.rank, scaling=self.alpha / self.rank)

    def count(self, o, i):
        return psoft.count(rank=self.rank)
