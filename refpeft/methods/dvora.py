"""DVoRA, configured."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import dvora, vera


@method("dvora")
class DVoRA(Method):
    """DoRA whose direction is moved by VeRA.

    Attributes
    ----------
    rank : int
        r, of the shared random matrices; large, as it costs little.
    start : float
        What lambda_d is at the start.
    norm : str
        ``detached``: the norm is a constant on the way back, as in DoRA; or ``full``.
    """

    rank: int = 256
    start: float = 0.1
    norm: str = "detached"

    operation = "dvora.linear"
    trainable: ClassVar[tuple[str, ...]] = ("lambda_d", "lambda_b", "magnitude")
    fixed: ClassVar[tuple[str, ...]] = ("weight", "a", "b")
    paper = "arXiv:2402.09353"
    adapters: ClassVar[tuple[str, ...]] = ("DvoRAConfig",)
    not_unmergeable = (
        "a merged row has lost its norm; keep refpeft.ops.dora.norms of refpeft.ops.dvora.scaled, and call "
        "refpeft.ops.dora.unmerge."
    )

    def validate(self):
        super().validate()
        self.require("norm", self.norm in ("detached", "full"), "'detached' or 'full'")

    def attributes(self):
        return {"norm": self.norm}

    def corners(self, shape):
        return vera.shapes(*shape, rank=self.rank)

    def common(self, random, shape):
        return vera.projections(random, *shape, rank=self.rank)

    def own(self, random, weight):
        return dvora.init(weight, rank=self.rank, start=self.start)

    def count(self, o, i):
        return dvora.count(o, rank=self.rank)
