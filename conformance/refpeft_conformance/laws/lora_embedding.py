"""Laws of LoRA on an embedding table."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law


@law("lora.embedding", "a zero b leaves the table's rows")
def _(subject, problem, observed):
    looked_up = problem.replace(inputs=problem.inputs | {"b": np.zeros_like(problem.inputs["b"])}, cotangents={})
    equal("zero b", subject.run(looked_up)["y"], problem.inputs["weight"][problem.inputs["ids"]], observed)


@law("lora.embedding", "tokens that do not occur get no gradient", gradients=True)
def _(subject, problem, observed):
    results = subject.run(problem)
    absent = np.setdiff1d(np.arange(problem.dims["v"]), problem.inputs["ids"])
    equal("rows of absent tokens", results["dweight"][absent], np.zeros_like(results["dweight"][absent]), observed)
    equal("columns of absent tokens", results["da"][:, absent], np.zeros_like(results["da"][:, absent]), observed)
