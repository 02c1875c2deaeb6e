"""Shadow, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import shadow

INJECT, UPDATE, BACKBONE = "shadow.inject", "shadow.update", "shadow"
"""Where it stands in a model: in each block, behind it, and beside the whole."""
NETWORKS = tuple(f"{net}_{part}" for net in ("candidate", "gate") for part in ("down", "down_bias", "up", "up_bias"))
"""The arrays that move it."""


@method("shadow")
class Shadow(Method):
    """A shadow of the hidden states corrects what goes into each block, and follows what comes out of it (`shadow.update`).

    Attributes
    ----------
    rank : int
        r of the correction.
    alpha : float
        Its strength; not divided by r.
    width : int
        m of the two networks that move the shadow; r where 0.
    depth : int
        How many blocks the small model has that the shadow begins as, in a model; they are like the first ones of it.
    auxiliary : float
        The weight in training of the small model's own loss, as peft adds it; 0 for none.
    dropout : float
        In training, of what the hidden states and the shadow differ by.
    """

    rank: int = 8
    alpha: float = 0.1
    width: int = 0
    depth: int = 1
    auxiliary: float = 0.05
    dropout: float = 0.2

    operation = "shadow.inject"
    trainable = ("down", "up")
    paper = "peft: ShadowConfig"
    peft = ("SHADOW",)
    not_mergeable = "the correction depends on a shadow that each input has for itself."

    def validate(self):
        super().validate()
        self.require("width", self.width >= 0, "at least 0")
        self.require("depth", self.depth >= 1, "at least 1")
        self.require("auxiliary", self.auxiliary >= 0, "0 or more")
        self.require("dropout", 0 <= self.dropout < 1, "from 0 and below 1")

    def attributes(self):
        return {"scaling": self.alpha}

    def learning_rates(self, rate):
        return dict.fromkeys((*self.trainable, *NETWORKS, "weight", "bias"), rate)

    def init(self, random, weight):
        """What is trained at one block of a model as wide as ``weight`` (width, ...)."""
        return shadow.init(random, weight.shape[0], rank=self.rank, width=self.width or self.rank)

    def count(self, width, layers):
        return layers * shadow.count(width, rank=self.rank, width=self.width or self.rank)
