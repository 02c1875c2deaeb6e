"""Arrow, configured: nothing is trained, adapters that were trained before are routed by what they amplify."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import arrow


@method("arrow")
class Arrow(Method):
    """LoRA of several tasks, trained before, among which each token finds its own.

    Attributes
    ----------
    rank : int
        r of each adapter.
    alpha : float
        Each is scaled by alpha / r.
    experts : int
        How many adapters there are.
    chosen : int
        How many a token takes.
    temperature : float
        Of the softmax over these.
    """

    rank: int = 8
    alpha: float = 8.0
    experts: int = 4
    chosen: int = 3
    temperature: float = 1.0

    operation = "arrow.linear"
    trainable = ()
    fixed = ("weight", "a", "b", "prototypes")
    paper = "arXiv:2405.11157"
    peft = ("LORA: arrow_config",)
    not_mergeable = "each token takes adapters of its own."

    def validate(self):
        super().validate()
        self.require("experts", self.experts >= 1, "at least 1")
        self.require("chosen", 1 <= self.chosen <= self.experts, f"from 1 to experts = {self.experts}")
        self.require("temperature", self.temperature > 0, "above 0")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "chosen": self.chosen, "temperature": self.temperature}

    def init(self, random, weight):
        return arrow.init(random, *weight.shape, rank=self.rank, adapters=self.experts)

    def count(self):
        """None."""
        return 0
