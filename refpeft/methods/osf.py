"""OSF, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import osf


@method("osf")
class OSF(Method):
    """The smaller singular triplets of the weight are trained, orthogonally to the larger ones.

    Attributes
    ----------
    preserved : float
        Share of the triplets that stay frozen; from 1 on, their number.
    """

    preserved: float = 0.5

    operation = "osf.linear"
    trainable = ("u", "s", "v")
    fixed = ("weight", "high_u", "high_v")
    following = fixed
    paper = "arXiv:2504.07097"
    peft = ("OSF",)

    def validate(self):
        super().validate()
        held = 0 <= self.preserved < 1 or self.preserved == int(self.preserved) >= 1
        self.require("preserved", held, "at least 0 and below 1, or a whole number")

    def fits(self, o, i):
        least = min(o, i)
        self.require("preserved", self.preserved < least, f"below the {least} triplets of the weight")

    def init(self, random, weight):
        return osf.init(weight, preserved=self.preserved)

    def derived(self, weight, arrays):
        return osf.high(weight, trained=len(arrays["s"])) if "s" in arrays else {}

    def count(self, o, i):
        return osf.count(o, i, preserved=self.preserved)
