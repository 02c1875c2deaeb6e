"""Bottleneck adapters, configured, with the defaults of AdapterHub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import adapter, compacter, fusion
from refpeft.ops._activations import Name

_ACTIVATIONS, _STARTS = get_args(Name), ("bert", "houlsby", "mam")


@dataclass(frozen=True, kw_only=True)
class _Bottleneck(Method):
    """What they share.

    Attributes
    ----------
    reduction : int
        The model's width over the adapter's.
    activation : str
    scaling : float
        Of what the adapter adds.
    start : str
        ``houlsby`` and ``bert`` begin near the base model, ``mam`` at it.
    """

    reduction: int = 16
    activation: str = "relu"
    scaling: float = 1.0
    start: str = "houlsby"

    operation = "adapter.sublayer"
    trainable: ClassVar[tuple[str, ...]] = ("down", "up", "down_bias", "up_bias")
    not_mergeable = "an activation function lies between its two matrices, so that no weight does the same."
    identity = False

    placement = ""
    places = 1
    sites = "*"
    reads = "output"
    """What it reads in a model: a sublayer's output, its input, or the sum of both."""

    def validate(self):
        super().validate()
        self.require("reduction", self.reduction >= 1, "at least 1")
        self.require("activation", self.activation in _ACTIVATIONS, f"one of {', '.join(_ACTIVATIONS)}")
        self.require("start", self.start in _STARTS, f"one of {', '.join(_STARTS)}")

    def bottleneck(self, width: int) -> int:
        """The adapter's width in a model of that width, at least 1."""
        return max(1, width // self.reduction)

    def attributes(self):
        chosen = {"activation": self.activation, "scaling": self.scaling}
        return chosen | ({"placement": self.placement} if self.placement else {})

    def init(self, random, weight):
        """One adapter for a sublayer whose last matrix is ``weight`` (width, ...)."""
        d = weight.shape[0]
        return adapter.init(random, d, d, width=self.bottleneck(d), start=self.start)

    def count(self, width, layers):
        return layers * self.places * adapter.count(width, width, width=self.bottleneck(width))


@method("houlsby")
class Houlsby(_Bottleneck):
    """Adapters after attention and after the feed-forward block."""

    activation: str = "silu"

    paper = "arXiv:1902.00751"
    adapters = ("DoubleSeqBnConfig",)
    placement = "houlsby"
    places = 2


@method("pfeiffer")
class Pfeiffer(_Bottleneck):
    """An adapter after the feed-forward block, between two passes through its layer norm."""

    paper = "arXiv:2005.00247"
    adapters: ClassVar[tuple[str, ...]] = ("SeqBnConfig",)
    placement = "pfeiffer"
    sites = "layers.*.mlp.out"
    reads = "sum"


@method("parallel_adapter")
class ParallelAdapter(_Bottleneck):
    """An adapter beside the feed-forward block."""

    reduction: int = 2
    scaling: float = 4.0
    start: str = "mam"

    paper = "arXiv:2110.04366"
    adapters = ("ParBnConfig",)
    placement = "parallel"
    sites = "layers.*.mlp.out"
    reads = "input"
    identity = True


class _Gained(_Bottleneck):
    """With a learned scaling, one for the layer or one for each channel."""

    operation = "adapter.bottleneck"
    trainable = ("down", "up", "down_bias", "up_bias", "gain")
    per = "layer"

    def attributes(self):
        return super().attributes() | {"per": self.per}

    def init(self, random, weight):
        return super().init(random, weight) | {"gain": np.ones(self._gains(weight.shape[0]))}

    def count(self, width, layers):
        return super().count(width, layers) + layers * self.places * self._gains(width)

    def _gains(self, width):
        return width if self.per == "channel" else 1


@method("scaled_parallel_adapter")
class ScaledParallelAdapter(_Gained):
    """A parallel adapter whose scaling is learned."""

    reduction: int = 2
    start: str = "mam"

    paper = "arXiv:2110.04366"
    adapters = ("ParBnConfig: scaling=learned",)
    sites = "layers.*.mlp.out"
    reads = "input"
    identity = True


@method("adapter_plus")
class AdapterPlus(_Gained):
    """An adapter after the feed-forward block and what it is added to, with a learned scaling for each channel."""

    reduction: int = 96
    activation: str = "gelu"

    paper = "arXiv:2406.06820"
    adapters = ("AdapterPlusConfig",)
    sites = "layers.*.mlp.out"
    reads = "sum"
    per = "channel"


@method("compacter")
class Compacter(Method):
    """Adapters after attention and after the feed-forward block whose matrices are sums of Kronecker products of low rank.

    Attributes
    ----------
    reduction : int
        The model's width over the adapter's.
    m : int
        Number of Kronecker products, and size of the rules, which all layers share; divides both widths.
    rank : int
        Of each W_i.
    """

    reduction: int = 32
    m: int = 4
    rank: int = 1

    operation = "compacter.linear"
    trainable = ("rule", "left", "right", "bias")
    paper = "arXiv:2106.04647"
    adapters: ClassVar[tuple[str, ...]] = ("CompacterConfig",)
    not_mergeable = "an activation function lies between its two matrices, so that no weight does the same."
    identity = False

    places = 2

    def validate(self):
        super().validate()
        for field in ("reduction", "m"):
            self.require(field, getattr(self, field) >= 1, "at least 1")

    def fits(self, width, *_):
        r = width // self.reduction
        self.require("reduction", r >= 1, f"at most the width of {width}")
        self.require("m", width % self.m == r % self.m == 0, f"a divisor of the widths {width} and {r}")

    def init(self, random, weight):
        """The down-projection of one adapter, for a sublayer whose last matrix is ``weight`` (width, ...)."""
        d = weight.shape[0]
        return compacter.init(random, d, d // self.reduction, m=self.m, rank=self.rank)

    def count(self, width, layers):
        self.fits(width)
        r = width // self.reduction
        one = compacter.count(width, r, rank=self.rank) + compacter.count(r, width, rank=self.rank)
        return self.m**3 + layers * self.places * one


@method("compacter_plus_plus")
class CompacterPlusPlus(Compacter):
    """Compacter with its adapters after the feed-forward block only."""

    adapters = ("CompacterPlusPlusConfig",)
    places = 1


@method("adapter_fusion")
class AdapterFusion(Method):
    """Attention over the outputs of adapters that were trained before.

    Attributes
    ----------
    temperature : float
        The scores are divided by it.
    """

    temperature: float = 1.0

    operation = "adapter.fusion"
    trainable = ("query", "key", "value", "query_bias")
    paper = "arXiv:2005.00247"
    adapters = ("AdapterFusionConfig",)
    not_mergeable = "its weights depend on the input."
    identity = False

    def validate(self):
        super().validate()
        self.require("temperature", self.temperature > 0, "above 0")

    def attributes(self):
        return {"temperature": self.temperature}

    def init(self, random, weight):
        """Query, key and value for a sublayer whose last matrix is ``weight`` (width, ...)."""
        return fusion.init(random, weight.shape[0])

    def count(self, width, layers):
        return layers * (3 * width * width + width)
