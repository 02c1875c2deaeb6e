"""LoRA whose start is computed: from the layer's inputs, from the weight's gradient, or from what a quantiser loses."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from refpeft.methods import method
from refpeft.methods.lora import LowRank, Split, started
from refpeft.ops import lora_data_init, lora_init
from refpeft.ops._blocks import Blocksize


@method("eva")
class EVA(LowRank):
    """LoRA that starts from the directions in which the layer's inputs vary most; layers share a budget of ranks.

    Attributes
    ----------
    rank : int
        r of each layer in the mean, and in each where rho is 1.
    rho : float
        At least 1: no layer has more than rho r.
    whiten : bool
        Whether a direction is divided by the root of its singular value.
    """

    rho: float = 2.0
    whiten: bool = False

    paper = "arXiv:2410.07170"
    peft = ("LORA: init_lora_weights=eva",)

    def validate(self):
        super().validate()
        self.require("rho", self.rho >= 1, "at least 1")

    def fits(self, o, i):
        self.require("rank", self.rank <= i, f"at most {i}, the inputs of the layer")

    def shared(self, data):
        """Ranks go where they explain most of the variance; alpha goes with them, so that the scaling is everywhere the same."""
        most = round(self.rank * self.rho)
        ranks = lora_data_init.eva_ranks(
            {site: its["inputs"].explained[:most] for site, its in data.items()}, self.rank * len(data)
        )
        return {site: replace(self, rank=r, alpha=self.alpha * r / self.rank) for site, r in ranks.items() if r}

    def init(self, random, weight, inputs):  # type: ignore[override]
        return {
            "a": lora_data_init.eva(inputs, self.rank, whiten=self.whiten),
            "b": lora_init.zeros((len(weight), self.rank)),
        }


@method("corda")
class CorDA(Split):
    """LoRA that starts from the part of the weight which acts most, or least, on the layer's inputs.

    Attributes
    ----------
    mode : str
        ``ipm``: most, to learn what the inputs are of; ``kpm``: least, to keep what is known of it.
    variant : str
        ``paper``: all inputs weigh the same; ``peft``: those of each text are divided by their largest.
    """

    mode: str = "ipm"
    variant: str = "paper"

    paper = "arXiv:2406.05223"
    peft = ("LORA: init_lora_weights=corda",)

    def validate(self):
        super().validate()
        self.require("mode", self.mode in lora_data_init.MODES, "'ipm' or 'kpm'")
        self.require("variant", self.variant in ("paper", "peft"), "'paper' or 'peft'")

    def seen(self, x):
        return lora_data_init.over_largest(x) if self.variant == "peft" else x

    def init(self, random, weight, inputs):  # type: ignore[override]
        return started(lora_data_init.corda(weight, inputs.covariance, self.rank, **self.attributes(), mode=self.mode))


@method("lora_ga")
class LoRAGA(Split):
    """LoRA whose first step is that of full fine-tuning, as far as twice the rank goes.

    Attributes
    ----------
    direction, scale, variant : str
    gamma : float
        See `refpeft.ops.lora_data_init.lora_ga`.
    """

    direction: str = "ArB2r"
    scale: str = "stable"
    gamma: float = 16.0
    variant: str = "authors"

    paper = "arXiv:2407.05000"
    peft = ("LORA: init_lora_weights=lora_ga",)

    def validate(self):
        super().validate()
        for name, domain in lora_data_init.LORA_GA.items():
            self.require(name, getattr(self, name) in domain, f"one of {', '.join(domain)}")
        self.require("gamma", self.gamma > 0, "above 0")

    def fits(self, o, i):
        self.require("rank", 2 * self.rank <= min(o, i), f"at most half of {min(o, i)}, the smaller side of the weight")

    def init(self, random, weight, gradient):  # type: ignore[override]
        options = {name: getattr(self, name) for name in (*lora_data_init.LORA_GA, "gamma")}
        return started(lora_data_init.lora_ga(weight, gradient, self.rank, **self.attributes(), **options))


@method("loftq")
class LoftQ(LowRank):
    """LoRA that starts from what NF4 loses of the weight, over the weight as NF4 has it.

    Attributes
    ----------
    blocksize : int
        NF4's.
    iterations : int
        How often base and factors are fitted to each other in turn.
    """

    blocksize: int = 64
    iterations: int = 1

    paper = "arXiv:2310.08659"
    peft = ("LORA: init_lora_weights=loftq",)
    identity = False
    fits = Split.fits

    def validate(self):
        super().validate()
        self.require(
            "blocksize", self.blocksize in get_args(Blocksize), f"one of {', '.join(map(str, get_args(Blocksize)))}"
        )
        self.require("iterations", self.iterations >= 1, "at least 1")
        self.require("alpha", self.alpha > 0, "above 0")

    def init(self, random, weight):
        options = {"blocksize": self.blocksize, "iterations": self.iterations}
        found = lora_data_init.loftq(weight, self.rank, **self.attributes(), **options)
        return {"a": found.a, "b": found.b, "weight": found.base(weight.shape, self.blocksize)}

    def over(self, arrays, weight):
        """Itself: by what it quantised, the base is off by more than a rank."""
        return self, arrays
