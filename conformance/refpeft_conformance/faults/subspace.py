"""Mistakes with a rotation inside a subspace."""

from __future__ import annotations

from refpeft_conformance.faults import fault, wide, with_inputs


@fault("subspace", "the identity not taken from the rotation", "skew", "alpha", "beta")
def _(problem, run):
    """delta = s B R A, which counts the principal part twice."""
    i, s = {n: wide(a) for n, a in problem.inputs.items()}, problem.attributes["scaling"]
    principal, results = s * i["b"] @ i["a"], run(problem)
    if "merged" in results:
        return results | {"merged": wide(results["merged"]) + principal}
    return results | {"y": wide(results["y"]) + i["x"] @ principal.T}


@fault("subspace", "the magnitudes exchanged", "skew", "alpha", "beta")
def _(problem, run):
    """diag(alpha) Q diag(beta)."""
    results = run(with_inputs(problem, alpha=problem.inputs["beta"], beta=problem.inputs["alpha"]))
    if "dalpha" in results:
        results = results | {"dalpha": results["dbeta"], "dbeta": results["dalpha"]}
    return results


@fault("subspace", "the magnitudes forgotten in the gradient to K", "dskew", "alpha", "beta")
def _(problem, run):
    """dQ = dR."""
    ones = run(
        with_inputs(problem, alpha=0 * wide(problem.inputs["alpha"]) + 1, beta=0 * wide(problem.inputs["beta"]) + 1)
    )
    results = run(problem)
    return results | ({"dskew": ones["dskew"]} if "dskew" in results else {})
