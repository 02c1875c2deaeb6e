"""LoRA, configured."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import lora_init
from refpeft.ops.lora_scaling import scaling

STARTS = ("kaiming", "gaussian", "orthogonal")


@method("lora")
class LoRA(Method):
    """Low-rank adaptation.

    Attributes
    ----------
    rank : int
        r.
    alpha : float
        The update is scaled by alpha / r.
    start : str
        How A is drawn: ``kaiming``, as in the authors' code and peft, or ``gaussian``, as in the paper; B is zero then. With
        ``orthogonal`` both are at work, and their product is zero.
    """

    rank: int = 8
    alpha: float = 8.0
    start: str = "kaiming"

    operation = "lora.linear"
    trainable: ClassVar[tuple[str, ...]] = ("a", "b")
    paper = "arXiv:2106.09685"
    peft: ClassVar[tuple[str, ...]] = ("LORA",)
    adapters: ClassVar[tuple[str, ...]] = ("LoRAConfig",)

    def validate(self):
        super().validate()
        self.require("start", self.start in STARTS, "'kaiming', 'gaussian' or 'orthogonal'")
        self.require("rank", self.start != "orthogonal" or self.rank % 2 == 0, "even where start is 'orthogonal'")

    def attributes(self):
        return {"scaling": float(scaling(alpha=self.alpha, rank=self.rank, variant="lora"))}

    def init(self, random, weight):
        o, i = weight.shape
        if self.start == "orthogonal":
            return dict(zip(("a", "b"), lora_init.orthogonal(random, self.rank, o, i)))
        draw = {"kaiming": lora_init.kaiming_uniform, "gaussian": lora_init.gaussian}[self.start]
        return {"a": draw(random, (self.rank, i)), "b": lora_init.zeros((o, self.rank))}

    def count(self, o, i):
        return self.rank * (o + i)


@method("rslora")
class RsLoRA(LoRA):
    """Rank-stabilised LoRA: scaled by alpha over the square root of r."""

    paper = "arXiv:2312.03732"
    peft = ("LORA: use_rslora",)
    adapters = ()

    def attributes(self):
        return {"scaling": float(scaling(alpha=self.alpha, rank=self.rank, variant="rslora"))}


class _Principal(LoRA):
    """LoRA that starts from a part of the base weight, which is taken out of the base."""

    def _split(self, weight) -> lora_init.Factors:
        raise NotImplementedError

    def init(self, random, weight):
        a, b, residual = self._split(weight)
        return {"a": a, "b": b, "weight": residual}


@method("pissa")
class PiSSA(_Principal):
    """LoRA that starts from the principal singular values and vectors."""

    paper = "arXiv:2404.02948"
    peft = ("LORA: init_lora_weights=pissa",)
    adapters = ()

    def _split(self, weight):
        return lora_init.pissa(weight, self.rank, scaling=self.attributes()["scaling"])


@method("olora")
class OLoRA(_Principal):
    """LoRA that starts from an orthonormal basis of the weight's columns."""

    paper = "arXiv:2406.01775"
    peft = ("LORA: init_lora_weights=olora",)
    adapters = ()

    def _split(self, weight):
        return lora_init.olora(weight, self.rank, scaling=self.attributes()["scaling"])


@method("mica")
class MiCA(LoRA):
    """LoRA on the minor singular vectors of the weight: B is frozen at them, A begins at zero."""

    trainable: ClassVar[tuple[str, ...]] = ("a",)
    paper = "arXiv:2604.01694"
    peft = ("LORA: init_lora_weights=mica",)
    adapters = ()

    def init(self, random, weight):
        b = lora_init.mica(weight, self.rank)
        return {"a": lora_init.zeros((self.rank, weight.shape[1])), "b": b}

    def count(self, o, i):
        return self.rank * i
