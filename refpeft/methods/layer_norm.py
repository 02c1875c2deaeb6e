"""LayerNorm tuning, configured."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method


@method("ln_tuning")
class LayerNormTuning(Method):
    """Gain and bias of the layer norms are trained, and nothing else.

    Attributes
    ----------
    eps : float
        The norm's own, which is not trained.
    """

    eps: float = 1e-5

    operation = "nn.layer_norm"
    trainable = ("weight", "bias")
    paper = "arXiv:2312.11420"
    peft = ("LN_TUNING",)
    not_mergeable = "it trains the norm's own gain and bias, so that there is nothing to merge."
    axes = 1

    def validate(self):
        super().validate()
        self.require("eps", self.eps > 0, "above 0")

    def attributes(self):
        return {"eps": self.eps}

    def init(self, random, weight):
        """The norm's own gain ``weight`` (d,), and a zero bias for one that has none."""
        return {"weight": np.asarray(weight, np.float64), "bias": np.zeros(weight.shape[-1])}

    def count(self, width):
        return 2 * width
