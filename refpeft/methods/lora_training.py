"""LoRA trained in another way: LoRA-FA and LoRA+. The layer is LoRA's."""

from __future__ import annotations

from refpeft.methods import method
from refpeft.methods.lora import LoRA, LowRank


@method("lora_fa")
class LoRAFA(LoRA):
    """LoRA with A frozen as it was drawn: of the input only its projection, (*n, r), is kept for the backward pass."""

    trainable = ("b",)
    paper = "arXiv:2308.03303"
    peft = ()
    adapters = ()
    over = LowRank.over

    def count(self, o, i):
        return self.rank * o


@method("lora_plus")
class LoRAPlus(LoRA):
    """LoRA with a higher learning rate for B.

    Attributes
    ----------
    ratio : float
        The learning rate of B by that of A.
    """

    ratio: float = 16.0

    paper = "arXiv:2402.12354"
    peft = ()
    adapters = ()
    over = LowRank.over

    def validate(self):
        super().validate()
        self.require("ratio", self.ratio > 0, "above 0")

    def learning_rates(self, rate: float) -> dict[str, float]:
        """The learning rate of each trained parameter: ``rate`` for A, ``ratio`` times that for B.

        >>> LoRAPlus(ratio=4).learning_rates(0.5)
        {'a': 0.5, 'b': 2.0}
        """
        return {"a": rate, "b": self.ratio * rate}
