"""LoRA, configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refpeft.methods import Method, method
from refpeft.ops import lora_init
from refpeft.ops.lora_scaling import scaling

STARTS = ("kaiming", "gaussian", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """A layer with LoRA, wherever it starts.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update is scaled by alpha / r.
    """

    rank: int = 8
    alpha: float = 8.0

    operation = "lora.linear"
    trainable: ClassVar[tuple[str, ...]] = ("a", "b")

    def attributes(self):
        return {"scaling": float(scaling(alpha=self.alpha, rank=self.rank, variant="lora"))}

    def count(self, o, i):
        return self.rank * (o + i)

    def over(self, arrays, weight):
        """LoRA: how it started and was trained is not in what it computes."""
        return LoRA(rank=self.rank, alpha=self.alpha), arrays


@method("lora")
class LoRA(LowRank):
    """Low-rank adaptation.

    Attributes
    ----------
    start : str
        How A is drawn: ``kaiming``, as in the authors' code and peft, or ``gaussian``, as in the paper; B is zero then. With
        ``orthogonal`` both are at work, and their product is zero.
    """

    start: str = "kaiming"

    paper = "arXiv:2106.09685"
    peft: ClassVar[tuple[str, ...]] = ("LORA",)
    adapters: ClassVar[tuple[str, ...]] = ("LoRAConfig",)

    def validate(self):
        super().validate()
        self.require("start", self.start in STARTS, "'kaiming', 'gaussian' or 'orthogonal'")
        self.require("rank", self.start != "orthogonal" or self.rank % 2 == 0, "even where start is 'orthogonal'")

    def init(self, random, weight):
        o, i = weight.shape
        if self.start == "orthogonal":
            return dict(zip(("a", "b"), lora_init.orthogonal(random, self.rank, o, i)))
        draw = {"kaiming": lora_init.kaiming_uniform, "gaussian": lora_init.gaussian}[self.start]
        return {"a": draw(random, (self.rank, i)), "b": lora_init.zeros((o, self.rank))}

    def over(self, arrays, weight):
        return self, arrays


@method("rslora")
class RsLoRA(LoRA):
    """Rank-stabilised LoRA: scaled by alpha over the square root of r."""

    paper = "arXiv:2312.03732"
    peft = ("LORA: use_rslora",)
    adapters = ()

    def attributes(self):
        return {"scaling": float(scaling(alpha=self.alpha, rank=self.rank, variant="rslora"))}


@dataclass(frozen=True, kw_only=True)
class Split(LowRank):
    """LoRA that starts from a part of the base weight, which is taken out of the base."""

    def validate(self):
        super().validate()
        self.require("alpha", self.alpha > 0, "above 0")

    def fits(self, o, i):
        self.require("rank", self.rank <= min(o, i), f"at most {min(o, i)}, the smaller side of the weight")

    def over(self, arrays, weight):
        """LoRA of twice the rank: where R = W - s B0 A0 is what was left, R + s B A = W + s [B -B0] [A; A0]."""

        def doubled(site, a, b, left):
            a0, b0 = lora_init.principal(weight(site) - left, self.rank, **self.attributes())
            return {"a": np.concatenate([a, a0.astype(a.dtype)]), "b": np.hstack([b, -b0.astype(b.dtype)])}

        lora = LoRA(rank=2 * self.rank, alpha=2 * self.alpha)
        return lora, {site: doubled(site, its["a"], its["b"], its["weight"]) for site, its in arrays.items()}


def started(factors: lora_init.Factors) -> dict[str, np.ndarray]:
    """What `Method.init` gives, of factors that took a part of the weight over."""
    return {"a": factors.a, "b": factors.b, "weight": factors.residual}


@method("pissa")
class PiSSA(Split):
    """LoRA that starts from the principal singular values and vectors."""

    paper = "arXiv:2404.02948"
    peft = ("LORA: init_lora_weights=pissa",)

    def init(self, random, weight):
        return started(lora_init.pissa(weight, self.rank, **self.attributes()))


@method("olora")
class OLoRA(Split):
    """LoRA that starts from an orthonormal basis of the weight's columns."""

    paper = "arXiv:2406.01775"
    peft = ("LORA: init_lora_weights=olora",)

    def init(self, random, weight):
        return started(lora_init.olora(weight, self.rank, **self.attributes()))


@method("mica")
class MiCA(LowRank):
    """LoRA on the minor singular vectors of the weight: B is frozen at them, A begins at zero."""

    trainable: ClassVar[tuple[str, ...]] = ("a",)
    paper = "arXiv:2604.01694"
    peft = ("LORA: init_lora_weights=mica",)
    fits = Split.fits

    def init(self, random, weight):
        b = lora_init.mica(weight, self.rank)
        return {"a": lora_init.zeros((self.rank, weight.shape[1])), "b": b}

    def count(self, o, i):
        return self.rank * i
