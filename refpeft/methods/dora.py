"""DoRA, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import dora


@method("dora")
class DoRA(Method):
    """Weight-decomposed low-rank adaptation.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update of the direction is scaled by alpha / r.
    norm : str
        ``detached``: the norm is a constant on the way back, as the paper proposes in section 4.3; or ``full``.
    """

    rank: int = 8
    alpha: float = 8.0
    norm: str = "detached"

    operation = "dora.linear"
    trainable = ("a", "b", "magnitude")
    paper = "arXiv:2402.09353"
    peft = ("LORA: use_dora",)
    adapters = ("DoRAConfig",)
    not_unmergeable = "a merged row has lost its norm; keep refpeft.ops.dora.norms and call refpeft.ops.dora.unmerge."

    def validate(self):
        super().validate()
        self.require("norm", self.norm in ("detached", "full"), "'detached' or 'full'")

    def attributes(self):
        return {"scaling": self.alpha / self.rank, "norm": self.norm}

    def init(self, random, weight):
        return dora.init(random, weight, rank=self.rank)

    def count(self, o, i):
        return dora.count(o, i, rank=self.rank)
