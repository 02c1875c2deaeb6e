"""UniPELT's three methods, each under its gate, configured. What they are without one is in their own families."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.methods.adapter import Pfeiffer
from refpeft.methods.prefix import PTuningV2
from refpeft.ops import unipelt


@method("gated_lora")
class GatedLoRA(Method):
    """UniPELT's LoRA: a gate of each sequence in the place of its scaling.

    Attributes
    ----------
    rank : int
        r.
    """

    rank: int = 8

    operation = "unipelt.linear"
    trainable: ClassVar[tuple[str, ...]] = ("a", "b", "gate", "gate_bias")
    paper = "arXiv:2110.07577"
    adapters: ClassVar[tuple[str, ...]] = ("LoRAConfig: use_gating",)
    not_mergeable = "its gate depends on the input."

    def init(self, random, weight):
        return unipelt.init_linear(random, *weight.shape, rank=self.rank)

    def count(self, o, i):
        return self.rank * (o + i) + unipelt.count(i)


@method("gated_adapter")
class GatedAdapter(Pfeiffer):
    """UniPELT's adapter after the feed-forward block, under a gate of each sequence."""

    operation = "unipelt.bottleneck"
    trainable = ("down", "up", "down_bias", "up_bias", "gate", "gate_bias")
    paper = "arXiv:2110.07577"
    adapters = ("SeqBnConfig: use_gating",)
    placement = ""

    def init(self, random, weight):
        return super().init(random, weight) | unipelt.init(random, weight.shape[0])

    def count(self, width, layers):
        return super().count(width, layers) + layers * unipelt.count(width)


@method("gated_prefix")
class GatedPrefix(PTuningV2):
    """UniPELT's prefix, its keys and values under a gate of each sequence.

    Attributes
    ----------
    apart : bool
        Whether keys and values have a gate each.
    """

    tokens: int = 10
    apart: bool = False

    operation = "unipelt.attention"
    trainable = ("prefix_k", "prefix_v", "gate", "gate_bias")
    paper = "arXiv:2110.07577"
    peft = ()
    adapters = ("PrefixTuningConfig: flat, use_gating",)

    def init(self, random, weight):
        """One layer's prefix, from its key projection (g d, width), and its gates."""
        return super().init(random, weight) | unipelt.init(random, weight.shape[1], gates=1 + self.apart)

    def count(self, layers, width, heads, kv_heads):
        return super().count(layers, width, heads, kv_heads) + layers * unipelt.count(width, gates=1 + self.apart)
