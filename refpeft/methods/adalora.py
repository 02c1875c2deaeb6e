"""AdaLoRA and KaSA, configured: both put a diagonal between LoRA's factors."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import adalora, kasa


@method("adalora")
class AdaLoRA(Method):
    """LoRA in the form of a singular value decomposition, with a budget of triplets.

    Attributes
    ----------
    rank : int
        r at the start, before anything is pruned.
    alpha : float
        The update is scaled by alpha / r.
    variant : str
        ``paper``; or ``peft``, where the scaling is alpha / (r + 1e-5).
    """

    rank: int = 12
    alpha: float = 12.0
    variant: str = "paper"

    operation = "adalora.linear"
    trainable = ("a", "e", "b")
    paper = "arXiv:2303.10512"
    peft = ("ADALORA",)

    def validate(self):
        super().validate()
        self.require("variant", self.variant in ("paper", "peft"), "'paper' or 'peft'")

    def attributes(self):
        return {"scaling": self.alpha / (self.rank if self.variant == "paper" else self.rank + 1e-5)}

    def init(self, random, weight):
        return adalora.init(random, *weight.shape, rank=self.rank)

    def count(self, o, i):
        return adalora.count(o, i, rank=self.rank)


@method("kasa")
class KaSA(Method):
    """Knowledge-aware singular-value adaptation: the smallest singular values of the weight give way to trained ones.

    Attributes
    ----------
    rank : int
        r, of what is taken out and of what is trained.
    alpha : float
        The update is scaled by alpha / r.
    """

    rank: int = 8
    alpha: float = 8.0

    operation = "adalora.linear"
    trainable = ("a", "e", "b")
    paper = "arXiv:2412.06071"
    peft = ("LORA: kasa_config",)
    identity = False

    def attributes(self):
        return {"scaling": self.alpha / self.rank}

    def fits(self, o, i):
        self.require("rank", self.rank < min(o, i), f"below {min(o, i)}, the smaller side of the weight")

    def init(self, random, weight) -> dict[str, np.ndarray]:
        return kasa.init(random, weight, rank=self.rank)

    def count(self, o, i):
        return adalora.count(o, i, rank=self.rank)
