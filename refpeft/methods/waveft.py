"""WaveFT, configured."""

from __future__ import annotations

import math

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import waveft
from refpeft.torch_random import randperm


@method("waveft")
class WaveFT(Method):
    """A weight's update from a few of its wavelet coefficients.

    Attributes
    ----------
    coefficients : int
        How many are trained, at most as many as the weight has elements.
    scaling : float
        Multiplies the update.
    wavelet : str
        ``db1`` (Haar) to ``db10``, ``sym2`` to ``sym10``, ``coif1`` to ``coif5``.
    seed : int
        Of the places, which are drawn as peft draws them: equal ones for weights of as many elements.
    """

    coefficients: int = 1024
    scaling: float = 25.0
    wavelet: str = "db1"
    seed: int = 777

    operation = "waveft.linear"
    trainable = ("values",)
    paper = "arXiv:2505.12532"
    peft = ("WAVEFT",)

    def validate(self):
        super().validate()
        self.require("coefficients", self.coefficients >= 1, "at least 1")
        self.require("wavelet", self.wavelet in waveft.LOW, f"one of {', '.join(waveft.LOW)}")
        self.require("seed", -(2**63) <= self.seed < 2**64, "from -2^63 to 2^64 - 1")

    def attributes(self):
        return {"scaling": self.scaling, "wavelet": self.wavelet}

    def fits(self, o, i):
        self.require("coefficients", self.coefficients <= o * i, f"at most the weight's {o * i} elements")

    def init(self, random, weight):
        return waveft.init(random, *weight.shape, k=self.coefficients, seed=self.seed)

    def implied(self, shape, arrays):
        k = np.asarray(arrays.get("values", ())).size
        return {"places": randperm(math.prod(shape), k, self.seed)}

    def count(self, o, i):
        return waveft.count(k=self.coefficients)
