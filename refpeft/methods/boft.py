"""BOFT, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import boft
from refpeft.ops.boft import Variant


@method("boft")
class BOFT(Method):
    """Orthogonal finetuning with butterfly factors.

    Attributes
    ----------
    block : int
        Size of the blocks that are turned; even where there is more than one factor.
    factors : int
        Butterfly factors f; block 2^(f-1) must divide i.
    variant : str
        How a skew-symmetric matrix gives a rotation: ``paper`` or ``peft``.
    """

    block: int = 4
    factors: int = 2
    variant: Variant = "paper"

    operation = "boft.linear"
    trainable = ("q", "scale")
    paper = "arXiv:2311.06243"
    peft = ("BOFT",)

    def validate(self):
        super().validate()
        self.require("block", self.block >= 1, "at least 1")
        self.require("factors", 1 <= self.factors <= 63, "from 1 to 63")
        self.require("block", self.factors == 1 or self.block % 2 == 0, "even where there are several factors")
        self.require("variant", self.variant in ("paper", "peft"), "'paper' or 'peft'")

    def attributes(self):
        return {"block": self.block, "factors": self.factors, "variant": self.variant}

    def fits(self, o, i):
        runs = 2 ** (self.factors - 1)
        self.require("block", i % (runs * self.block) == 0, f"such that {runs} of them divide the {i} inputs")

    def init(self, random, weight):
        return boft.init(*weight.shape, block=self.block, factors=self.factors)

    def count(self, o, i):
        return boft.count(o, i, block=self.block, factors=self.factors)
