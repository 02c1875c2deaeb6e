"""MTL-LoRA, configured."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import mtl_lora


@method("mtl_lora")
class MTLLoRA(Method):
    """LoRA that tasks share, with a matrix and an average of several B for each; the task is an input of the layer.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update is scaled by alpha / r.
    tasks : int
    projections : int
        k, how many B there are.
    sharpness : float
        tau, what the weights of the average are divided by.
    form : str
        ``diagonal`` or ``full``: what a task's matrix is.
    """

    rank: int = 8
    alpha: float = 8.0
    tasks: int = 1
    projections: int = 1
    sharpness: float = 0.05
    form: str = "diagonal"

    operation = "mtl_lora.linear"
    trainable: ClassVar[tuple[str, ...]] = ("a", "b", "core", "mixing")
    paper = "arXiv:2410.09437"
    adapters: ClassVar[tuple[str, ...]] = ("MTLLoRAConfig",)
    not_mergeable = "each task has a weight of its own."

    def validate(self):
        super().validate()
        for field in ("tasks", "projections"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("sharpness", self.sharpness > 0, "above 0")
        self.require("form", self.form in ("diagonal", "full"), "'diagonal' or 'full'")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "sharpness": self.sharpness, "form": self.form}

    def init(self, random, weight):
        return mtl_lora.init(random, *weight.shape, **self._sizes())

    def count(self, o, i):
        return mtl_lora.count(o, i, **self._sizes())

    def _sizes(self):
        return {"rank": self.rank, "projections": self.projections, "tasks": self.tasks, "form": self.form}
