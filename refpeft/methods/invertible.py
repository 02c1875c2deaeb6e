"""MAD-X's adapters, configured: those of the blocks, and an invertible one behind the embeddings."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import method
from refpeft.methods.adapter import Houlsby, Pfeiffer
from refpeft.ops import nice

_TRAINED = ("f_down", "f_up", "g_down", "g_up", "f_down_bias", "f_up_bias", "g_down_bias", "g_up_bias")


@method("pfeiffer_inv")
class PfeifferInvertible(Pfeiffer):
    """Pfeiffer's adapters, and an invertible one behind the embeddings, undone before the output layer.

    Attributes
    ----------
    inner : int
        Width of what a network of the invertible adapter reads over that of its hidden layer.
    """

    inner: int = 2

    operation = "nice.couple"
    trainable: ClassVar[tuple[str, ...]] = _TRAINED
    paper = "arXiv:2005.00052"
    adapters = ("SeqBnInvConfig",)

    def validate(self):
        super().validate()
        self.require("inner", self.inner >= 1, "at least 1")

    def attributes(self):
        return {"activation": self.activation}

    def fits(self, *shape):
        width = shape[-1]
        self.require("inner", self.inner <= width // 2, f"at most half the width of {width}")

    def init(self, random, weight):
        """The invertible adapter of a model with the embeddings ``weight`` (vocabulary, width)."""
        return nice.init(random, weight.shape[1], reduction=self.inner)

    def count(self, width, layers):
        self.fits(width)
        return super().count(width, layers) + nice.count(width, reduction=self.inner)


@method("houlsby_inv")
class HoulsbyInvertible(PfeifferInvertible):
    """Houlsby's adapters, and an invertible one behind the embeddings."""

    activation: str = "silu"

    adapters = ("DoubleSeqBnInvConfig",)
    placement = Houlsby.placement
    places = Houlsby.places
