"""VeRA and PVeRA, configured."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import pvera, vera


@method("vera")
class VeRA(Method):
    """Vector-based random matrix adaptation.

    Attributes
    ----------
    rank : int
        r, of the shared random matrices; large, as it costs little.
    start : float
        What lambda_d is at the start.
    """

    rank: int = 256
    start: float = 0.1

    operation = "vera.linear"
    trainable = ("lambda_d", "lambda_b")
    fixed = ("weight", "a", "b")
    paper = "arXiv:2310.11454"
    peft = ("VERA",)
    adapters: ClassVar[tuple[str, ...]] = ("VeraConfig",)

    def corners(self, shape):
        return vera.shapes(*shape, rank=self.rank)

    def common(self, random, shape):
        return vera.projections(random, *shape, rank=self.rank)

    def own(self, random, weight):
        return vera.init(len(weight), rank=self.rank, start=self.start)

    def count(self, o, i):
        return vera.count(o, rank=self.rank)


@method("pvera")
class PVeRA(VeRA):
    """VeRA with what goes into B drawn from a normal distribution in training; merged, it is its mean."""

    operation = "pvera.linear"
    paper = "arXiv:2512.07703"
    peft = ("PVERA",)
    adapters = ()

    def corners(self, shape):
        return pvera.shapes(*shape, rank=self.rank)

    def common(self, random, shape):
        return pvera.projections(random, *shape, rank=self.rank)

    def own(self, random, weight):
        return pvera.init(len(weight), rank=self.rank, start=self.start)

    def count(self, o, i):
        return pvera.count(o, rank=self.rank)

    def merging(self, weight, parameters):
        return VeRA(rank=self.rank).merging(weight, pvera.mean(parameters))

    def unmerge(self, merged, parameters):
        return VeRA(rank=self.rank).unmerge(merged, pvera.mean(parameters))
