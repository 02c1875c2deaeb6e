"""Trainable tokens, configured. ``weight`` is the embedding table (v, d)."""

from __future__ import annotations

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import trainable_tokens


@method("trainable_tokens")
class TrainableTokens(Method):
    """Some rows of an embedding table are trained, and of an output layer that is tied to it.

    Attributes
    ----------
    tokens : tuple of int
        Ids of the tokens, none twice.
    """

    tokens: tuple[int, ...] = (0,)

    operation = "trainable_tokens.embedding"
    trainable = ("trained",)
    paper = "peft: TrainableTokensConfig"
    peft = ("TRAINABLE_TOKENS",)
    not_unmergeable = "the merged table no longer has the rows that were replaced; keep them, and merge them back."

    def validate(self):
        super().validate()
        integers = all(type(t) is int and t >= 0 for t in self.tokens)
        some = 0 < len(self.tokens) == len(set(self.tokens))
        self.require("tokens", integers and some, "ids from 0 on, none of them twice, and one at least")

    def fits(self, rows, *_):
        self.require("tokens", max(self.tokens) < rows, f"below the table's {rows} rows")

    def init(self, random, weight):
        return trainable_tokens.init(weight, self.tokens)

    def implied(self, shape, arrays):
        self.fits(*shape)
        return {"tokens": np.array(self.tokens, np.int64)}

    def count(self, width):
        return trainable_tokens.count(width, tokens=len(self.tokens))
