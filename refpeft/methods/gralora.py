"""GraLoRA, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import gralora


@method("gralora")
class GraLoRA(Method):
    """Granular low-rank adaptation: LoRA in blocks.

    Attributes
    ----------
    rank : int
        r of the blocks; a multiple of their number.
    alpha : float
        The update is scaled by alpha / (rank + hybrid).
    blocks : int
        k; both sides of the weight are cut into as many.
    hybrid : int
        h, the rank of an ordinary LoRA beside the blocks; 0 for none.
    """

    rank: int = 32
    alpha: float = 64.0
    blocks: int = 2
    hybrid: int = 0

    operation = "gralora.linear"
    trainable = ("block_a", "block_b", "general_a", "general_b")
    paper = "arXiv:2505.20355"
    peft = ("GRALORA",)

    def validate(self):
        super().validate()
        self.require("blocks", self.blocks >= 1 and self.rank % self.blocks == 0, "a divisor of the rank")
        self.require("hybrid", self.hybrid >= 0, "at least 0")

    def attributes(self):
        return {"scaling": self.alpha / (self.rank + self.hybrid)}

    def fits(self, o, i):
        self.divides("blocks", outputs=o, inputs=i)

    def init(self, random, weight):
        return gralora.init(random, *weight.shape, rank=self.rank, blocks=self.blocks, hybrid=self.hybrid)

    def implied(self, shape, arrays):
        """The ordinary LoRA's factors, where it has no rank."""
        return {} if self.hybrid else {"general_a": np.zeros((0, shape[1])), "general_b": np.zeros((shape[0], 0))}

    def count(self, o, i):
        return gralora.count(o, i, rank=self.rank, hybrid=self.hybrid)
