"""X-LoRA, configured: what is trained is the classifier that gates adapters, which were trained before."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import xlora

GATES = "gates"
"""Where the classifier's head stands in a model, and what it gives to the layers; its layers below are ``gates.0`` and so on."""


@method("xlora")
class XLoRA(Method):
    """Several LoRA under gates of each token's own. The layers are `xlora.linear`.

    Attributes
    ----------
    experts : int
        How many adapters there are.
    temperature : float
        Of the gates' softmax.
    scaling : float
        Of every LoRA: alpha over its rank, times the global weight of the gates.
    depth : int
        Layers of the classifier, its head among them, with a ReLU between.
    size : int
        As wide the layers below the head are, where there are any.
    layerwise : bool
        Whether each layer, which is a matrix, has gates of its own: from rows of the head of its own, in the model's order.
    softmax : bool
        Whether the gates are the softmax of the head's logits, or the logits themselves.
    top : int
        How many gates of a token are kept, the largest; all where 0. See `xlora.top`.
    renormalised : bool
        Whether those that are kept and not zero go through a softmax again.
    first_pass : float
        The gate of every adapter in the first pass, from which the classifier reads; where 0, that is the model without them.
    classifier_dropout : float
        In training, of what leaves each layer of the classifier below its head.
    """

    experts: int = 4
    temperature: float = 1.0
    scaling: float = 1.0
    depth: int = 1
    size: int = 2048
    layerwise: bool = False
    softmax: bool = True
    top: int = 0
    renormalised: bool = False
    first_pass: float = 0.0
    classifier_dropout: float = 0.2

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
        self.require("depth", self.depth >= 1, "at least 1")
        self.require("size", self.size >= 1, "at least 1")
        self.require("top", 0 <= self.top <= self.experts, f"from 0 to the {self.experts} adapters")
        self.require("classifier_dropout", 0 <= self.classifier_dropout < 1, "from 0 and below 1")

    def attributes(self):
        return {"temperature": self.temperature}

    def learning_rates(self, rate):
        return dict.fromkeys((*self.trainable, "weight", "bias"), rate)

    def rows(self, layers):
        """Of the head, where it makes gates for so many layers."""
        return self.experts * (layers if self.layerwise else 1)

    def init(self, random, weight):
        """The head over hidden states as wide as ``weight`` (o, width), where nothing is below it."""
        return xlora.init(random, weight.shape[1], adapters=self.experts)

    def layers(self, random, width, layers):
        """The classifier's layers, head last, by site: over hidden states of a width, for so many layers."""
        widths = [width, *[self.size] * (self.depth - 1)]
        below = [xlora.init(random, i, adapters=self.size) for i in widths[:-1]]
        found = {f"{GATES}.{j}": {"weight": its["head"], "bias": its["head_bias"]} for j, its in enumerate(below)}
        return found | {GATES: xlora.init(random, widths[-1], adapters=self.rows(layers))}

    def count(self, width, layers):
        widths = [width, *[self.size] * (self.depth - 1)]
        below = sum(xlora.count(i, adapters=self.size) for i in widths[:-1])
        return below + xlora.count(widths[-1], adapters=self.rows(layers))
