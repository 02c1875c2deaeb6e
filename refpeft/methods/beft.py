"""BitFit and BEFT, configured: only biases are trained."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import beft


@method("bitfit")
class BitFit(Method):
    """The layer's own bias is trained, and nothing else."""

    operation = "nn.linear"
    trainable = ("bias",)
    paper = "arXiv:2106.10199"
    not_mergeable = "it trains the layer's own bias, so that there is nothing to merge."

    def init(self, random, weight):
        """A zero bias, for a layer that has none; another one starts from its own."""
        return {"bias": np.zeros(weight.shape[0])}

    def count(self, o):
        return o


@method("beft")
class BEFT(Method):
    """A bias beside the layer's own is trained."""

    operation = "beft.linear"
    trainable = ("shift",)
    paper = "arXiv:2509.15974"
    peft = ("BEFT",)
    not_mergeable = "its update belongs to the bias, not to the weight: add shift to the layer's bias."

    def init(self, random, weight):
        return beft.init(weight.shape[0])

    def count(self, o):
        return o
