"""Prefix tuning and its kin, configured. ``weight`` is a layer's key projection (g d, width)."""

from __future__ import annotations

from typing import ClassVar

from refpeft.errors import ShapeError
from refpeft.methods import Method, method
from refpeft.ops import adaption_prompt, prefix

SOFTMAX = "its keys enter a softmax, which no matrix does."


@method("ptuning_v2")
class PTuningV2(Method):
    """A flat prefix, trained itself.

    Attributes
    ----------
    tokens : int
        Virtual tokens.
    size : int
        d, elements of a head.
    """

    tokens: int = 20
    size: int = 128

    operation = "prefix.attention"
    trainable: ClassVar[tuple[str, ...]] = ("prefix_k", "prefix_v")
    paper = "arXiv:2110.07602"
    peft: ClassVar[tuple[str, ...]] = ("PREFIX_TUNING",)
    adapters: ClassVar[tuple[str, ...]] = ("PrefixTuningConfig: flat",)
    not_mergeable = SOFTMAX
    identity = False

    def validate(self):
        super().validate()
        for field in ("tokens", "size"):
            self.require(field, getattr(self, field) >= 1, "at least 1")

    def fits(self, o, i):
        self.divides("size", outputs=o)

    def init(self, random, weight):
        """Keys and values of one layer, (g, p, d) each."""
        groups = weight.shape[0] // self.size
        keys, values = prefix.cut(prefix.init(random, self.tokens, 1, groups, self.size), l=1, g=groups, d=self.size)
        return {"prefix_k": keys[0], "prefix_v": values[0]}

    def keys(self, width, heads, kv_heads):
        """Elements of a token's keys.

        Raises
        ------
        ShapeError
            If there are not whole heads.
        """
        if width % heads or heads % kv_heads:
            raise ShapeError(
                f"{type(self).__name__}: heads must divide the width of {width} and be a multiple of the kv_heads, "
                f"but heads = {heads} and kv_heads = {kv_heads} came."
            )
        return width // heads * kv_heads

    def count(self, layers, width, heads, kv_heads):
        return prefix.count(self.tokens, layers, self.keys(width, heads, kv_heads))


@method("prefix")
class PrefixTuning(PTuningV2):
    """Prefix tuning, trained through a perceptron. An encoder-decoder has one such prefix for each kind of attention.

    Attributes
    ----------
    hidden : int
        Width of the perceptron's hidden layer.
    """

    hidden: int = 512

    operation = "prefix.encode"
    trainable = ("embedding", "w1", "b1", "w2", "b2")
    paper = "arXiv:2101.00190"
    peft = ("PREFIX_TUNING: prefix_projection",)
    adapters = ("PrefixTuningConfig",)

    def validate(self):
        super().validate()
        self.require("hidden", self.hidden >= 1, "at least 1")

    def flat(self) -> PTuningV2:
        """What is left when the perceptron has gone and only what it gave is kept."""
        return PTuningV2(tokens=self.tokens, size=self.size)

    def init(self, random, weight):
        """The perceptron for a single layer, over embeddings as wide as its keys."""
        width = weight.shape[0]
        return prefix.init_encoder(random, self.tokens, width, self.hidden, 2 * width)

    def count(self, layers, width, heads, kv_heads):
        return prefix.count_encoder(self.tokens, layers, self.keys(width, heads, kv_heads), self.hidden)


@method("cartridge")
class Cartridge(PTuningV2):
    """A flat prefix, the keys and values of a text at the start, whose first tokens stay frozen.

    Attributes
    ----------
    frozen : int
        Tokens at the front that are not trained.
    """

    frozen: int = 1

    paper = "arXiv:2506.06266"
    peft = ("CARTRIDGE",)
    adapters = ()

    def validate(self):
        super().validate()
        self.require("frozen", 0 <= self.frozen <= self.tokens, f"from 0 to tokens = {self.tokens}")

    def count(self, layers, width, heads, kv_heads):
        return prefix.count(self.tokens - self.frozen, layers, self.keys(width, heads, kv_heads))


@method("adaption_prompt")
class AdaptionPrompt(Method):
    """LLaMA-Adapter's gated prompt, in some of the layers.

    Attributes
    ----------
    tokens : int
        Virtual tokens of each layer.
    adapted : int
        How many of the uppermost layers have one.
    size : int
        d, elements of a head; used where each has a gate.
    gates : str
        ``heads``: a gate for each; ``layer``: one for all of a layer's heads, as in peft.
    """

    tokens: int = 10
    adapted: int = 30
    size: int = 128
    gates: str = "heads"

    operation = "adaption_prompt.attention"
    trainable = ("prompt", "gate")
    fixed = ("weight_k", "weight_v")
    paper = "arXiv:2303.16199"
    peft = ("ADAPTION_PROMPT",)
    not_mergeable = "what it adds depends on the queries through a softmax, which no matrix does."

    def validate(self):
        super().validate()
        for field in ("tokens", "adapted", "size"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("gates", self.gates in ("heads", "layer"), "'heads' or 'layer'")

    def fits(self, o, i):
        if self.gates == "heads":
            self.divides("size", outputs=o)

    def shared(self, data):
        """Nothing is left for the lower layers."""
        return dict.fromkeys([*data][-self.adapted :], self)

    def init(self, random, weight):
        """One layer's prompt and gates, from its query projection (h d, width)."""
        gates = 1 if self.gates == "layer" else weight.shape[0] // self.size
        return adaption_prompt.init(random, self.tokens, weight.shape[1], gates)

    def count(self, layers, width, heads):
        gates = 1 if self.gates == "layer" else heads
        return adaption_prompt.count(self.tokens, min(self.adapted, layers), width, gates)
