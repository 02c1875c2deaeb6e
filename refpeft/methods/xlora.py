"""X-LoRA, configured: what is trained is the classifier that gates adapters, which were trained before."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import xlora

GATES = "gates"
"""Where the classifier stands in a model, and what it gives to the layers."""


@method("xlora")
class XLoRA(Method):
    """Several LoRA under gates of each token's own. The layers are `xlora.linear`; the classifier has no layer below its head,
    and all layers have the same gates.

    Attributes
    ----------
    experts : int
        How many adapters there are.
    temperature : float
        Of the gates' softmax.
    scaling : float
        Of every LoRA: alpha over its rank, times the global weight of the gates.
    """

    experts: int = 4
    temperature: float = 1.0
    scaling: float = 1.0

    operation = "xlora.gates"
    trainable = ("head", "head_bias")
    fixed = ("weight", "a", "b")
    paper = "arXiv:2402.07148"
    peft = ("XLORA",)
    not_mergeable = "the gates are another for each token."
    identity = False

    def validate(self):
        super().validate()
        self.require("experts", self.experts >= 1, "at least 1")
        self.require("temperature", self.temperature > 0, "above 0")

    def attributes(self):
        return {"temperature": self.temperature}

    def init(self, random, weight):
        """The head over hidden states as wide as ``weight`` (o, width)."""
        return xlora.init(random, weight.shape[1], adapters=self.experts)

    def count(self, width):
        return xlora.count(width, adapters=self.experts)
