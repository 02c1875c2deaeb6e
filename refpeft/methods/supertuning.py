"""Super-tuning and Supra, configured: a share of the weight's elements is trained, and LoRA beside them."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import supra
from refpeft.ops.lora_scaling import scaling


@method("supertuning")
class Supertuning(Method):
    """The largest elements of the weight are trained, or its smallest; the layer is SHiRA's.

    Attributes
    ----------
    sparsity : float
        Share of the elements that are not trained.
    largest : bool
        Whether the largest elements in magnitude are trained, or the smallest.
    """

    sparsity: float = 0.99
    largest: bool = True

    operation = "shira.linear"
    trainable: ClassVar[tuple[str, ...]] = ("values",)
    paper = "arXiv:2607.09287"
    peft: ClassVar[tuple[str, ...]] = ("SUPERTUNING",)

    def validate(self):
        super().validate()
        self.require("sparsity", 0 <= self.sparsity < 1, "at least 0 and below 1")

    def init(self, random, weight):
        return supra.start(weight, sparsity=self.sparsity, largest=self.largest)

    def count(self, o, i):
        return supra.count(o, i, sparsity=self.sparsity)


@method("supra")
class Supra(Supertuning):
    """Super-tuning with LoRA beside it.

    Attributes
    ----------
    sparsity : float
        Share of the elements that are not trained.
    largest : bool
        Whether the largest elements in magnitude are trained, or the smallest.
    rank : int
        r of LoRA.
    alpha : float
        LoRA is scaled by alpha / r.
    """

    rank: int = 8
    alpha: float = 16.0

    operation = "supra.linear"
    trainable = ("values", "a", "b")
    peft = ("SUPERTUNING: r",)

    def attributes(self):
        return {"scaling": float(scaling(alpha=self.alpha, rank=self.rank, variant="lora"))}

    def init(self, random, weight):
        return supra.init(random, weight, sparsity=self.sparsity, rank=self.rank, largest=self.largest)

    def count(self, o, i):
        return supra.count(o, i, sparsity=self.sparsity, rank=self.rank)
