"""QA-LoRA, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import qalora
from refpeft.ops.lora_init import kaiming_uniform


@method("qalora")
class QALoRA(Method):
    """Low-rank adaptation that sees sums over quantisation groups.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update is scaled by alpha / r.
    group : int
        Quantisation group size; it must divide the number of inputs.
    variant : str
        ``paper``: sums; ``peft``: means times the number of groups.
    """

    rank: int = 8
    alpha: float = 8.0
    group: int = 16
    variant: str = "paper"

    operation = "qalora.linear"
    trainable = ("a", "b")
    paper = "arXiv:2309.14717"
    peft = ("LORA: use_qalora",)

    def validate(self):
        super().validate()
        self.require("group", self.group >= 1, "at least 1")
        self.require("variant", self.variant in ("paper", "peft"), "'paper' or 'peft'")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "group": self.group, "variant": self.variant}

    def fits(self, o, i):
        self.divides("group", inputs=i)

    def init(self, random, weight):
        o, i = weight.shape
        return {"a": kaiming_uniform(random, (self.rank, i // self.group)), "b": np.zeros((o, self.rank))}

    def count(self, o, i):
        return qalora.count(o, i, rank=self.rank, group=self.group)
