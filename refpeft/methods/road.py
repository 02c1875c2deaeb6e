"""RoAd, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import road
from refpeft.ops.road import Variant


@method("road")
class RoAd(Method):
    """Rotations of pairs of features, with scales.

    Attributes
    ----------
    variant : str
        ``road_1``, ``road_2`` or ``road_4``: how many parameters a feature has.
    group : int
        Features that are paired half a group apart; even, a divisor of o. 2 pairs neighbours.
    """

    variant: Variant = "road_1"
    group: int = 16

    operation = "road.linear"
    trainable = ("theta", "alpha")
    paper = "arXiv:2409.00119"
    peft = ("ROAD",)

    def validate(self):
        super().validate()
        self.require("variant", self.variant in ("road_1", "road_2", "road_4"), "'road_1', 'road_2' or 'road_4'")
        self.require("group", self.group >= 2 and self.group % 2 == 0, "even and at least 2")

    def attributes(self):
        return {"group": self.group, "variant": self.variant}

    def fits(self, o, i):
        self.divides("group", outputs=o)

    def init(self, random, weight):
        return road.init(len(weight), variant=self.variant)

    def count(self, o, i):
        return road.count(o, variant=self.variant)

    def merge_bias(self, bias, parameters):
        return self.merge(bias[:, None], parameters)[:, 0]
