"""Laws of LoRA with an adapter for each sequence."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law
from refpeft_conformance.strategies import is_exact


@law("lora.batched", "a sequence is its own adapter's layer", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """The first sequence alone, under lora.linear with the adapter that it names."""
    if not problem.dims["n"]:
        return
    i, j = problem.inputs, int(problem.inputs["adapter"][0])
    shared = {n: i[n] for n in ("weight", "bias") if n in i}
    alone = Problem.of(
        "lora.linear",
        shared | {"x": i["x"][0], "a": i["a"][j], "b": i["b"][j]},
        {"scaling": float(i["scaling"][j])},
        {},
        problem.dtype,
    )
    whole, precision = problem.replace(cotangents={}), subject.precision(problem.dtype)
    if is_exact(whole, precision) and is_exact(alone, precision):
        equal("the sequence alone", subject.run(whole)["y"][0], subject.run(alone)["y"], observed)


@law("lora.batched", "sequences may change places", regime="exact")
def _(subject, problem, observed):
    turned = {n: x[::-1].copy() if n in ("x", "adapter") else x for n, x in problem.inputs.items()}
    whole = problem.replace(cotangents={})
    equal("in reverse", subject.run(whole.replace(inputs=turned))["y"], subject.run(whole)["y"][::-1], observed)


@law("lora.batched", "adapters that no sequence takes get no gradient", gradients=True)
def _(subject, problem, observed):
    results = subject.run(problem)
    absent = np.setdiff1d(np.arange(problem.dims["k"]), problem.inputs["adapter"])
    for name in ("da", "db", "dscaling"):
        equal(f"{name} of others", results[name][absent], np.zeros_like(results[name][absent]), observed)
