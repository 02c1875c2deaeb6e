"""MAM, He et al.'s mix-and-match adapter: a prefix in attention, and an adapter beside every feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.methods.adapter import ParallelAdapter
from refpeft.methods.prefix import PrefixTuning, PTuningV2


@dataclass(frozen=True, kw_only=True)
class _Mixed(Method):
    """What stands beside the prefix.

    Attributes
    ----------
    reduction : int
        The model's width over the adapter's.
    activation : str
    scaling : float
        Of what the adapter adds.
    """

    reduction: int = 2
    activation: str = "relu"
    scaling: float = 4.0

    def validate(self):
        super().validate()
        self.adapter()

    def adapter(self) -> ParallelAdapter:
        """The adapter alone."""
        return ParallelAdapter(reduction=self.reduction, activation=self.activation, scaling=self.scaling)

    def beside(self):
        return {ParallelAdapter.sites: self.adapter()}

    def learning_rates(self, rate):
        return super().learning_rates(rate) | self.adapter().learning_rates(rate)

    def count(self, layers, width, heads, kv_heads):
        return super().count(layers, width, heads, kv_heads) + self.adapter().count(width, layers)


@method("mam_flat")
class FlatMAM(_Mixed, PTuningV2):
    """MAM with a prefix that is trained itself: what is kept of it."""

    tokens: int = 30

    paper = "arXiv:2110.04366"
    peft: ClassVar[tuple[str, ...]] = ()
    adapters = ("MAMConfig: flat",)


@method("mam")
class MAM(_Mixed, PrefixTuning):
    """A prefix, trained through a perceptron, and an adapter beside every feed-forward block."""

    tokens: int = 30
    hidden: int = 800

    paper = "arXiv:2110.04366"
    peft: ClassVar[tuple[str, ...]] = ()  # type: ignore[assignment]
    adapters = ("MAMConfig",)

    def flat(self):
        return FlatMAM(
            tokens=self.tokens,
            size=self.size,
            reduction=self.reduction,
            activation=self.activation,
            scaling=self.scaling,
        )
