"""SHiRA and super-tuning, configured: which elements of the weight are trained."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import shira
from refpeft.ops._places import counted, rows_and_columns


@method("shira")
class SHiRA(Method):
    """Sparse high-rank adapters.

    Attributes
    ----------
    rank : int
        As many elements are trained as LoRA of this rank has.
    mask : str
        ``random``, or ``magnitude`` for the largest elements.
    """

    rank: int = 32
    mask: str = "random"

    operation = "shira.linear"
    trainable = ("values",)
    paper = "arXiv:2406.13175"
    peft = ("SHIRA",)

    def validate(self):
        super().validate()
        self.require("mask", self.mask in ("random", "magnitude"), "'random' or 'magnitude'")

    def init(self, random, weight):
        return shira.init(random, weight, rank=self.rank, mask=self.mask)

    def packed(self, shape, arrays):
        """Places as rows and columns, ``indices`` (2, k)."""
        rest = {name: array for name, array in arrays.items() if name != "places"}
        return rest | {"indices": rows_and_columns(arrays["places"], shape)}

    def unpacked(self, shape, arrays):
        if "indices" not in arrays:
            return dict(arrays)
        rest = {name: array for name, array in arrays.items() if name != "indices"}
        return rest | {"places": counted(arrays["indices"], shape)}

    def count(self, o, i):
        return shira.count(o, i, rank=self.rank)
