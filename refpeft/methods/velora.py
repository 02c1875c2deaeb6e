"""VeLoRA, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.methods.lora import LoRA
from refpeft.ops.lora_init import kaiming_uniform


@method("velora")
class VeLoRA(Method):
    """LoRA that keeps projections of its inputs for the backward pass. Merged, it is LoRA.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update is scaled by alpha / r.
    groups : int
        How many numbers are kept of an input; it must divide the number of inputs.
    restore : float
        What is put together again is multiplied by it.
    """

    rank: int = 8
    alpha: float = 8.0
    groups: int = 16
    restore: float = 1.0

    operation = "velora.linear"
    trainable = ("a", "b")
    fixed = ("weight", "v")
    paper = "arXiv:2405.17991"
    peft = ("LORA: velora_config",)

    def validate(self):
        super().validate()
        self.require("groups", self.groups >= 1, "at least 1")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "groups": self.groups, "restore": self.restore}

    def fits(self, o, i):
        self.divides("groups", inputs=i)

    def init(self, random, weight):
        """A Kaiming-uniform, B zero, and a random v of norm one; `refpeft.ops.velora.projection` gives one from a batch."""
        o, i = weight.shape
        v = random.normal(size=i // self.groups)
        a, b = kaiming_uniform(random, (self.rank, i)), np.zeros((o, self.rank))
        return {"a": a, "b": b, "v": v / np.linalg.norm(v)}

    def count(self, o, i):
        return self.rank * (o + i)

    def merging(self, weight, parameters):
        return self._lora().merging(weight, _without_v(parameters))

    def unmerge(self, merged, parameters):
        return self._lora().unmerge(merged, _without_v(parameters))

    def _lora(self):
        return LoRA(rank=self.rank, alpha=self.alpha)


def _without_v(parameters):
    """LoRA's: v is in the gradient alone."""
    return {name: array for name, array in parameters.items() if name != "v"}
