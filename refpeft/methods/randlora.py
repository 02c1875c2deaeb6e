"""RandLoRA, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import randlora


@method("randlora")
class RandLoRA(Method):
    """Full-rank updates from frozen random bases.

    Attributes
    ----------
    rank : int
        r of one base.
    alpha : float
        The update is scaled by alpha / r.
    variant : str
        How columns of the bases meet rows of the scaled basis: as in the ``"paper"``, or as ``"peft"`` flattens them.
    """

    rank: int = 32
    alpha: float = 640.0
    variant: str = "paper"

    operation = "randlora.linear"
    trainable = ("lambdas", "gammas")
    fixed = ("weight", "base_a", "base_b")
    paper = "arXiv:2502.00987"
    peft = ("RANDLORA",)

    def validate(self):
        super().validate()
        self.require("variant", self.variant in ("paper", "peft"), "'paper' or 'peft'")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "variant": self.variant}

    def corners(self, shape):
        return randlora.shapes(*shape, rank=self.rank)

    def common(self, random, shape):
        return randlora.bases(random, *shape, rank=self.rank)

    def own(self, random, weight):
        return randlora.init(*weight.shape, rank=self.rank)

    def count(self, o, i):
        return randlora.count(o, i, rank=self.rank)
