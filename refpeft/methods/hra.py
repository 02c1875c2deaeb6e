"""HRA, configured."""

from __future__ import annotations

from typing import ClassVar, Literal

from refpeft.methods import Method, method
from refpeft.ops import hra


@method("hra")
class HRA(Method):
    """Householder reflection adaptation, as a chain of reflections.

    Attributes
    ----------
    rank : int
        r, the number of reflections; even, so that they can start in pairs.
    """

    rank: int = 8

    operation = "hra.linear"
    trainable = ("u",)
    paper = "arXiv:2405.17484"
    peft = ("HRA",)
    variant: ClassVar[Literal["chain", "gram_schmidt"]] = "chain"

    def validate(self):
        super().validate()
        self.require("rank", self.variant != "chain" or self.rank % 2 == 0, "even")

    def attributes(self):
        return {"variant": self.variant}

    def fits(self, o, i):
        most = i - (self.variant == "gram_schmidt")
        self.require("rank", self.rank <= most, f"at most {most}, where the layer has {i} inputs")

    def init(self, random, weight):
        return hra.init(random, weight.shape[1], rank=self.rank, variant=self.variant)

    def count(self, o, i):
        return hra.count(i, rank=self.rank)


@method("hra_gram_schmidt")
class HRAGramSchmidt(HRA):
    """Householder reflection adaptation with orthonormal reflections."""

    peft = ("HRA: apply_GS",)
    identity = False
    variant = "gram_schmidt"
