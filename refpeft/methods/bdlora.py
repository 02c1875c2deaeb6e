"""BD-LoRA, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import bdlora


@method("bdlora")
class BDLoRA(Method):
    """LoRA with a block-diagonal factor.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update is scaled by alpha / r.
    blocks : int
        How many blocks; they divide the rank, and the inputs or the outputs.
    side : str
        ``a`` or ``b``: the factor that is block-diagonal.
    """

    rank: int = 8
    alpha: float = 8.0
    blocks: int = 2
    side: str = "a"

    operation = "bdlora.linear"
    trainable = ("a", "b")
    paper = "peft: use_bdlora"
    peft = ("LORA: use_bdlora",)

    def validate(self):
        super().validate()
        self.require("side", self.side in ("a", "b"), "'a' or 'b'")
        self.require("blocks", self.blocks >= 1 and self.rank % self.blocks == 0, f"a divisor of the rank, {self.rank}")

    def _blocks(self):
        return {"blocks_a": self.blocks if self.side == "a" else 1, "blocks_b": self.blocks if self.side == "b" else 1}

    def attributes(self):
        return {"scaling": self.alpha / self.rank} | self._blocks()

    def fits(self, o, i):
        self.divides("blocks", **({"inputs": i} if self.side == "a" else {"outputs": o}))

    def init(self, random, weight):
        return bdlora.init(random, *weight.shape, rank=self.rank, **self._blocks())

    def count(self, o, i):
        return bdlora.count(o, i, rank=self.rank, **self._blocks())
