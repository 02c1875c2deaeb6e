"""(IA)^3, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import ia3


@method("ia3")
class IA3(Method):
    """Learned scales on activations.

    Attributes
    ----------
    side : str
        ``output`` for keys and values, ``input`` for the second matrix of the feed-forward block.
    """

    side: str = "output"

    operation = "ia3.linear"
    trainable = ("scale",)
    paper = "arXiv:2205.05638"
    peft = ("IA3",)
    adapters = ("IA3Config",)

    def validate(self):
        super().validate()
        self.require("side", self.side in ("output", "input"), "'output' or 'input'")

    def attributes(self):
        return {"side": self.side}

    def init(self, random, weight):
        return ia3.init(self.count(*weight.shape))

    def count(self, o, i):
        return ia3.count(o, i, side=self.side)

    def merge_bias(self, bias, parameters):
        return bias if self.side == "input" else self.merge(bias[:, None], parameters)[:, 0]
