"""Laws of LoHa."""

from __future__ import annotations

from refpeft_conformance.laws import equal, law, merged_kernel, update_laws

update_laws("loha", zero="w2_b")
merged_kernel("loha", zero="w2_b")


@law("loha.linear", "the two products may change places", regime="exact")
def _(subject, problem, observed):
    """The Hadamard product commutes, bit for bit."""
    i = problem.inputs
    swapped = {"w1_a": i["w2_a"], "w1_b": i["w2_b"], "w2_a": i["w1_a"], "w2_b": i["w1_b"]}
    other = problem.replace(inputs=problem.inputs | swapped, cotangents={})
    equal("places changed", subject.run(other)["y"], subject.run(problem.replace(cotangents={}))["y"], observed)
