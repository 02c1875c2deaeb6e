"""LoReFT and its kin, configured: the hidden states are edited once after every layer."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import reft


@method("loreft")
class LoReFT(Method):
    """Hidden states are edited in a subspace with an orthonormal basis.

    Attributes
    ----------
    rank : int
        r, of the subspace.
    """

    rank: int = 1

    operation = "reft.edit"
    trainable = ("source", "projection", "bias")
    fixed = ()
    paper = "arXiv:2404.03592"
    adapters: ClassVar[tuple[str, ...]] = ("LoReftConfig",)
    not_mergeable = "it edits the hidden states of some tokens only, which no weight does."
    identity = False

    orthonormal, subtract = True, True

    def attributes(self):
        return {"subtract": self.subtract}

    def fits(self, width, *_):
        self.require("rank", self.rank <= width, f"at most the width of {width}")

    def init(self, random, weight):
        """For hidden states as wide as the outputs of ``weight`` (width, ...)."""
        return reft.init(random, weight.shape[0], rank=self.rank, orthonormal=self.orthonormal)

    def count(self, width, layers):
        self.fits(width)
        return layers * reft.count(width, rank=self.rank)


@method("noreft")
class NoReFT(LoReFT):
    """LoReFT without the orthonormal basis."""

    adapters = ("NoReftConfig",)
    orthonormal = False


@method("direft")
class DiReFT(NoReFT):
    """What is learned is added to the hidden states, and nothing subtracted."""

    adapters = ("DiReftConfig",)
    subtract = False
