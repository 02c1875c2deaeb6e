"""Prompts at the input embeddings, configured. ``weight`` is the embedding table (v, d)."""

from __future__ import annotations

from typing import ClassVar

from refpeft.methods import Method, method
from refpeft.ops import cpt, multitask_prompt, prompt

INPUT = "a prompt is input to the model, not a part of a weight."


@method("prompt")
class PromptTuning(Method):
    """Prompt tuning.

    Attributes
    ----------
    tokens : int
        Virtual tokens.
    start : str
        ``sampled`` rows of the table, ``uniform`` as in the paper, or ``gaussian`` as in peft. In a model, a prompt
        can start from a text, see `refpeft.models.read_text`.
    """

    tokens: int = 20
    start: str = "sampled"

    operation = "prompt.embed"
    trainable = ("prompt",)
    paper = "arXiv:2104.08691"
    peft = ("PROMPT_TUNING",)
    adapters: ClassVar[tuple[str, ...]] = ("PromptTuningConfig",)
    not_mergeable = INPUT
    identity = False

    def validate(self):
        super().validate()
        self.require("tokens", self.tokens >= 1, "at least 1")
        self.require("start", self.start in _STARTS, "'sampled', 'uniform' or 'gaussian'")

    def init(self, random, weight):
        return {"prompt": _STARTS[self.start](random, weight, self.tokens)}

    def count(self, width):
        return prompt.count(self.tokens, width)


_STARTS = {
    "sampled": prompt.sampled,
    "uniform": lambda random, table, tokens: prompt.uniform(random, tokens, table.shape[1]),
    "gaussian": lambda random, table, tokens: prompt.gaussian(random, tokens, table.shape[1]),
}


@method("cpt")
class CPT(Method):
    """Context-aware prompt tuning: begins at the embedded context, whose tokens ``init`` draws where none are given.

    Attributes
    ----------
    tokens : int
        Tokens of the context.
    epsilon : float
        How far each may move, times sqrt(width / 2048).
    """

    tokens: int = 20
    epsilon: float = 0.1

    operation = "cpt.embed"
    trainable = ("delta",)
    fixed = ("tokens",)
    paper = "arXiv:2410.17222"
    peft = ("CPT",)
    not_mergeable = INPUT
    identity = False

    def validate(self):
        super().validate()
        self.require("tokens", self.tokens >= 1, "at least 1")
        self.require("epsilon", self.epsilon > 0, "above 0")

    def init(self, random, weight):
        context = prompt.sampled(random, weight, self.tokens)
        return {"tokens": context, "delta": cpt.init(self.tokens, weight.shape[1])}

    def count(self, width):
        return cpt.count(self.tokens, width)


@method("multitask_prompt")
class MultitaskPromptTuning(Method):
    """Multitask prompt tuning.

    Attributes
    ----------
    tokens : int
        Virtual tokens.
    tasks : int
    rank : int
        r of each task's matrix; 1 in the paper.
    """

    tokens: int = 20
    tasks: int = 1
    rank: int = 1

    operation = "multitask_prompt.embed"
    trainable = ("prompt", "u", "v")
    paper = "arXiv:2303.02861"
    peft = ("MULTITASK_PROMPT_TUNING",)
    not_mergeable = INPUT
    identity = False

    def validate(self):
        super().validate()
        for field in ("tokens", "tasks"):
            self.require(field, getattr(self, field) >= 1, "at least 1")

    def init(self, random, weight):
        return multitask_prompt.init(random, self.tokens, weight.shape[1], tasks=self.tasks, rank=self.rank)

    def count(self, width):
        return multitask_prompt.count(self.tokens, width, tasks=self.tasks, rank=self.rank)
