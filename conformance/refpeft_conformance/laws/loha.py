"""Laws of LoHa."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, merged_kernel, update_laws, without
from refpeft_conformance.strategies import is_exact

update_laws("loha", zero="w2_b")
merged_kernel("loha", zero="w2_b")
merged_kernel("loha_core", zero="core2")


@law("loha.linear", "the two products may change places", regime="exact")
def _(subject, problem, observed):
    """The Hadamard product commutes, bit for bit."""
    i = problem.inputs
    swapped = {"w1_a": i["w2_a"], "w1_b": i["w2_b"], "w2_a": i["w1_a"], "w2_b": i["w1_b"]}
    other = problem.replace(inputs=problem.inputs | swapped, cotangents={})
    equal("places changed", subject.run(other)["y"], subject.run(problem.replace(cotangents={}))["y"], observed)


@law("loha_core.conv2d", "the two products may change places", regime="exact")
@law("loha_core.merge", "the two products may change places", regime="exact")
def _(subject, problem, observed):
    """Cores and matrices of one for those of the other, bit for bit."""
    first, second = ("core1", "w1_a", "w1_b"), ("core2", "w2_a", "w2_b")
    swapped = {n: problem.inputs[m] for n, m in zip(first + second, second + first)}
    other = problem.replace(inputs=problem.inputs | swapped, cotangents={})
    (name,) = (output.name for output in problem.operation.outputs)
    equal("places changed", subject.run(other)[name], subject.run(problem.replace(cotangents={}))[name], observed)


@law("loha_core.merge", "a zero core leaves the weight")
def _(subject, problem, observed):
    equal("zero core", subject.run(without(problem, "core1"))["merged"], problem.inputs["weight"], observed)


@law("loha_core.merge", "a core that is one at a point gives the kernel of rank one there", regime="exact")
def _(subject, problem, observed):
    """With T1 = T2 = 1 at (0, 0, 0, 0) only, the update at that point of the kernel is s (W1a[0] W1b[0]) o (W2a[0] W2b[0])."""
    if not problem.inputs["core1"].size:
        return
    core, weight = np.zeros_like(problem.inputs["core1"]), np.zeros_like(problem.inputs["weight"])
    core[0, 0, 0, 0] = 1
    point = problem.replace(inputs=problem.inputs | {"core1": core, "core2": core, "weight": weight}, cotangents={})
    if not is_exact(point, subject.precision(problem.dtype)):
        return
    i = {n: a.astype(np.float64) for n, a in problem.inputs.items()}
    first, second = (np.outer(i[f"w{k}_a"][0], i[f"w{k}_b"][0]) for k in (1, 2))
    expected = np.zeros((*first.shape, core.shape[2] * core.shape[3]))
    expected[..., 0] = problem.attributes["scaling"] * first * second
    merged = subject.run(point)["merged"].astype(np.float64)
    equal("one point", merged, expected.reshape(merged.shape), observed)
