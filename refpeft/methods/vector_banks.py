"""Methods that share a bank or a vector among layers, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import adamss, tinylora, unilora, vblora


@method("vblora")
class VBLoRA(Method):
    """Factors assembled from a bank of vectors; counted with the bank of one layer.

    Attributes
    ----------
    rank : int
        r.
    bank : int
        Number of vectors.
    length : int
        Of a vector; divides both sides of the weight.
    chosen : int
        k, how many vectors mix into a stretch.
    """

    rank: int = 4
    bank: int = 256
    length: int = 16
    chosen: int = 2

    operation = "vblora.linear"
    trainable = ("logits_a", "logits_b", "vectors")
    paper = "arXiv:2405.15179"
    peft = ("VBLORA",)
    identity = False

    def validate(self):
        super().validate()
        self.require("length", self.length >= 1, "at least 1")
        self.require("chosen", 1 <= self.chosen <= self.bank, f"from 1 to the {self.bank} vectors of the bank")

    def attributes(self):
        return {"chosen": self.chosen}

    def fits(self, o, i):
        self.divides("length", outputs=o, inputs=i)

    def corners(self, shape):
        return {"vectors": (self.bank, self.length)}

    def common(self, random, shape):
        return vblora.vectors(random, bank=self.bank, length=self.length)

    def own(self, random, weight):
        return vblora.init(random, *weight.shape, rank=self.rank, bank=self.bank, length=self.length)

    def count(self, o, i):
        return vblora.count(o, i, rank=self.rank, bank=self.bank, length=self.length)


@method("tinylora")
class TinyLoRA(Method):
    """A few numbers that mix fixed matrices inside a frozen LoRA.

    Attributes
    ----------
    rank : int
        r of the frozen factors.
    numbers : int
        u, how many matrices are mixed and how many numbers are trained.
    """

    rank: int = 2
    numbers: int = 64

    operation = "tinylora.linear"
    trainable = ("v",)
    fixed = ("weight", "a", "b", "projections")
    paper = "arXiv:2602.04118"
    peft = ("TINYLORA",)
    identity = False

    def validate(self):
        super().validate()
        self.require("numbers", self.numbers >= 1, "at least 1")

    def init(self, random, weight):
        return tinylora.init(random, weight, rank=self.rank, u=self.numbers)

    def count(self):
        return tinylora.count(u=self.numbers)


@method("unilora")
class UniLoRA(Method):
    """Every entry of every factor from one short vector, which all layers share.

    Attributes
    ----------
    rank : int
        r.
    length : int
        d, of the vector.
    seed : int
        Of the indices, which are dealt to the layers in the model's order.
    """

    rank: int = 4
    length: int = 256
    seed: int = 42

    operation = "unilora.linear"
    trainable = ("theta",)
    fixed = ("weight", "scale_a", "scale_b")
    paper = "arXiv:2506.00799"
    peft = ("UNILORA",)
    identity = False

    def validate(self):
        super().validate()
        self.require("length", self.length >= 1, "at least 1")
        self.require("seed", self.seed >= 0, "at least 0")

    def corners(self, shape):
        return {"theta": (self.length,)}

    def common(self, random, shape):
        return {"theta": unilora.vector(random, d=self.length)}

    def own(self, random, weight):
        return self.dealt({"": weight.shape})[""]

    def dealt(self, shapes):
        each = unilora.indices([*shapes.values()], rank=self.rank, d=self.length, seed=self.seed)
        return dict(zip(shapes, each))

    def count(self):
        return unilora.count(d=self.length)


@method("adamss")
class AdaMSS(Method):
    """Low-rank updates in subspaces of the weight's rows.

    Attributes
    ----------
    rank : int
        r of the space that all subspaces lie in; the smaller side of the weight where that is less.
    groups : int
        Number of subspaces.
    directions : int
        q of a subspace.
    """

    rank: int = 16
    groups: int = 5
    directions: int = 1

    operation = "adamss.linear"
    trainable = ("inner", "outer")
    fixed = ("weight", "basis")
    paper = "the authors' package adamss, through peft 0.21"
    peft = ("ADAMSS",)

    def validate(self):
        super().validate()
        self.require("groups", self.groups >= 1, "at least 1")
        self.require("directions", self.directions >= 1, "at least 1")

    def init(self, random, weight):
        return adamss.init(random, weight, rank=self.rank, groups=self.groups, directions=self.directions)

    def count(self, o, i):
        return adamss.count(o, i, rank=self.rank, groups=self.groups, directions=self.directions)
