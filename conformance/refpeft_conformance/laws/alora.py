"""Laws of aLoRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


def _with_offsets(problem, offset: int):
    offsets = np.full(problem.inputs["x"].shape[:-2], offset)
    return problem.replace(inputs=problem.inputs | {"offsets": offsets})


@law("alora.linear", "an adapter on all tokens is LoRA", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    whole = _with_offsets(problem.replace(cotangents={}), problem.dims["t"])
    arrays = {n: a for n, a in problem.inputs.items() if n != "offsets"}
    lora = Problem.of("lora.linear", arrays, {"scaling": problem.attributes["scaling"]}, {}, problem.dtype)
    equal("all tokens", subject.run(whole)["y"], subject.run(lora)["y"], observed)


@law("alora.linear", "tokens before the invocation are the base layer's", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """So that what was computed for them without the adapter can be used again."""
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    base = subject.run(Problem.of("nn.linear", arrays, {}, {}, problem.dtype))["y"]
    y, t = subject.run(problem.replace(cotangents={}))["y"], problem.dims["t"]
    offsets = problem.inputs.get("offsets", np.zeros(y.shape[:-2], int))
    before = np.arange(t) < t - offsets[..., None]
    equal("tokens before", y[before], base[before], observed)


@law("alora.linear", "an adapter on no token learns nothing", regime="exact", gradients=True)
def _(subject, problem, observed):
    results = subject.run(_with_offsets(problem, 0))
    for name in ("da", "db"):
        equal(name, results[name], np.zeros_like(results[name]), observed)
