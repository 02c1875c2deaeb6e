"""FourierFT, configured."""

from __future__ import annotations

import math

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import fourierft
from refpeft.torch_random import randperm


@method("fourierft")
class FourierFT(Method):
    """A weight's update from a few of its Fourier coefficients.

    Attributes
    ----------
    frequencies : int
        How many coefficients are trained, at most as many as the weight has elements.
    scaling : float
        Multiplies the update. The transform divides by the number of elements, so that it is large.
    start : str
        ``normal``: drawn, as in the paper, so that training does not begin at the base model; or ``zero``.
    seed : int
        Of the places, which are drawn as peft draws them: equal ones for weights of as many elements.
    """

    frequencies: int = 1000
    scaling: float = 150.0
    start: str = "normal"
    seed: int = 777

    operation = "fourierft.linear"
    trainable = ("values",)
    paper = "arXiv:2405.03003"
    peft = ("FOURIERFT",)
    identity = False

    def validate(self):
        super().validate()
        self.require("frequencies", self.frequencies >= 1, "at least 1")
        self.require("start", self.start in ("normal", "zero"), "'normal' or 'zero'")
        self.require("seed", -(2**63) <= self.seed < 2**64, "from -2^63 to 2^64 - 1")

    def attributes(self):
        return {"scaling": self.scaling}

    def fits(self, o, i):
        self.require("frequencies", self.frequencies <= o * i, f"at most the weight's {o * i} elements")

    def init(self, random, weight):
        return fourierft.init(random, *weight.shape, k=self.frequencies, seed=self.seed, start=self.start)

    def implied(self, shape, arrays):
        k = np.asarray(arrays.get("values", ())).size
        return {"places": randperm(math.prod(shape), k, self.seed)}

    def count(self, o, i):
        return fourierft.count(k=self.frequencies)
