"""P-tuning, configured. ``weight`` is the embedding table (v, d)."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.methods.prompt import INPUT
from refpeft.ops import ptuning


@method("ptuning")
class PTuning(Method):
    """P-tuning with a perceptron.

    Attributes
    ----------
    tokens : int
        Virtual tokens.
    hidden : int
        h.
    """

    tokens: int = 20
    hidden: int = 128

    operation = "ptuning.mlp"
    trainable: ClassVar[tuple[str, ...]] = ("embedding", "w1", "b1", "w2", "b2", "w3", "b3")
    paper = "arXiv:2103.10385"
    peft = ("P_TUNING",)
    not_mergeable = INPUT
    identity = False

    def validate(self):
        super().validate()
        for field in ("tokens", "hidden"):
            self.require(field, getattr(self, field) >= 1, "at least 1")

    def init(self, random, weight):
        return ptuning.init_mlp(random, self.tokens, weight.shape[1], self.hidden)

    def count(self, width):
        return ptuning.count_mlp(self.tokens, width, self.hidden)


@method("ptuning_lstm")
class PTuningLSTM(PTuning):
    """P-tuning with a bidirectional LSTM, as in the paper."""

    operation = "ptuning.lstm"
    trainable = ("embedding", "w_1", "u_1", "b_1", "w_2", "u_2", "b_2", "w_3", "b_3", "w_4", "b_4")
    peft = ("P_TUNING: encoder_reparameterization_type=LSTM",)

    def validate(self):
        super().validate()
        self.require("tokens", self.tokens <= 64, "at most 64")

    def init(self, random, weight):
        return ptuning.init_lstm(random, self.tokens, weight.shape[1], self.hidden)

    def count(self, width):
        return ptuning.count_lstm(self.tokens, width, self.hidden)
