"""OFT, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import oft


@method("oft")
class OFT(Method):
    """Orthogonal finetuning.

    Attributes
    ----------
    block : int
        Size of the blocks that are turned; a divisor of i.
    share : bool
        Whether one rotation serves all blocks.
    variant : str
        How a skew-symmetric matrix gives a rotation: ``paper``, ``peft`` or ``neumann``.
    terms : int
        Terms of the series; used by ``neumann`` only.
    """

    block: int = 8
    share: bool = False
    variant: str = "paper"
    terms: int = 5

    operation = "oft.linear"
    trainable = ("skew",)
    paper = "arXiv:2306.07280"
    peft = ("OFT",)

    def validate(self):
        super().validate()
        self.require("block", self.block >= 2, "at least 2")
        self.require("variant", self.variant in ("paper", "peft", "neumann"), "'paper', 'peft' or 'neumann'")
        self.require("terms", self.terms >= 1, "at least 1")

    def attributes(self):
        return {"block": self.block, "share": self.share, "variant": self.variant, "terms": self.terms}

    def fits(self, o, i):
        self.divides("block", inputs=i)

    def init(self, random, weight):
        return oft.init(*weight.shape, block=self.block, share=self.share)

    def count(self, o, i):
        return oft.count(o, i, block=self.block, share=self.share)
