"""GLoRA, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import glora


@method("glora")
class GLoRA(Method):
    """The weight scaled and shifted elementwise by low-rank matrices; the bias has an operation of its own.

    Attributes
    ----------
    rank : int
        r of both matrices.
    """

    rank: int = 8

    operation = "glora.linear"
    trainable = ("scale_left", "scale_right", "shift_left", "shift_right")
    paper = "arXiv:2306.07967"
    peft = ("GLORA",)

    def init(self, random, weight):
        return glora.init(random, *weight.shape, rank=self.rank)

    def count(self, o, i):
        return glora.count(o, i, rank=self.rank)
