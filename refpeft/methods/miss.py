"""MiSS, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import miss, miss_bat


@method("miss")
class MiSS(Method):
    """Matrix shard sharing.

    Attributes
    ----------
    rank : int
        r, the length of a shard of the input.
    mini : int
        How many rows of the update have numbers of their own; 0 for all of them.
    """

    rank: int = 64
    mini: int = 0

    operation = "miss.linear"
    trainable = ("block",)
    paper = "arXiv:2409.15371"
    peft = ("MISS", "MISS: init_weights=mini")

    def validate(self):
        super().validate()
        self.require("mini", self.mini >= 0, "at least 0")

    def fits(self, o, i):
        self.require("mini", self.mini == 0 or o % self.mini == 0, f"0 or a divisor of the {o} outputs")

    def init(self, random, weight):
        return miss.init(random, *weight.shape, rank=self.rank, mini=self.mini or None)

    def count(self, o, i):
        return miss.count(o, i, rank=self.rank, mini=self.mini or None)


@method("miss_bat")
class BatMiSS(Method):
    """Matrix shard sharing with the weight in its update; the rank divides both sides.

    Attributes
    ----------
    rank : int
        r, the side of a block.
    """

    rank: int = 16

    operation = "miss_bat.linear"
    trainable = ("block",)
    paper = "arXiv:2409.15371"
    peft = ("MISS: init_weights=bat",)

    def fits(self, o, i):
        self.divides("rank", outputs=o, inputs=i)

    def init(self, random, weight):
        return miss_bat.init(random, *weight.shape, rank=self.rank)

    def count(self, o, i):
        return miss_bat.count(o, i, rank=self.rank)
