"""Poly and multi-head routing, configured."""

from __future__ import annotations

from refpeft.methods import Method, method
from refpeft.ops import poly


@method("poly")
class Poly(Method):
    """LoRA mixed from an inventory of skills, by task; the task is an input of the layer.

    In a model its gates have no noise, also in training.

    Attributes
    ----------
    rank : int
        r.
    skills : int
        s.
    heads : int
        q, which divides both sides of the weight; above 1 it is multi-head routing.
    tasks : int
    """

    rank: int = 8
    skills: int = 4
    heads: int = 1
    tasks: int = 1

    operation = "poly.linear"
    trainable = ("a", "b", "logits")
    paper = "arXiv:2202.13914"
    peft = ("POLY",)
    not_mergeable = "the update is another for each task."

    def validate(self):
        super().validate()
        for field in ("skills", "heads", "tasks"):
            self.require(field, getattr(self, field) >= 1, "at least 1")

    def attributes(self):
        return {"scaling": 1 / self.rank}

    def fits(self, o, i):
        self.divides("heads", outputs=o, inputs=i)

    def init(self, random, weight):
        shape = {"rank": self.rank, "skills": self.skills, "heads": self.heads, "tasks": self.tasks}
        return poly.init(random, *weight.shape, **shape)

    def count(self, o, i):
        return poly.count(o, i, rank=self.rank, skills=self.skills, heads=self.heads, tasks=self.tasks)
