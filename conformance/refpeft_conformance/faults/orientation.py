"""Transpositions that no shape check sees, because something is square."""

from __future__ import annotations

from refpeft_conformance.faults import fault, with_inputs


def _transposed(name: str):
    @fault("orientation", f"{name} transposed when square", name, operations="*linear")
    def _(problem, run):
        matrix = problem.inputs[name]
        if matrix.shape[0] != matrix.shape[-1]:
            return run(problem)
        results = run(with_inputs(problem, **{name: matrix.T.copy()}))
        return results | ({"d" + name: results["d" + name].T} if "d" + name in results else {})


for _name in ("weight", "a", "b"):
    _transposed(_name)


def _gradient_transposed(gradient: str):
    @fault("orientation", f"{gradient} transposed when square", gradient, operations="*linear")
    def _(problem, run):
        results = run(problem)
        if gradient in results and results[gradient].shape[0] == results[gradient].shape[-1]:
            return results | {gradient: results[gradient].T}
        return results


for _gradient in ("dweight", "da", "db"):
    _gradient_transposed(_gradient)


@fault("orientation", "batch axes swapped when equal", "x", "y", operations="*linear")
def _(problem, run):
    results = run(problem)
    shape = problem.inputs["x"].shape
    if len(shape) >= 3 and shape[0] == shape[1]:
        return results | {"y": results["y"].swapaxes(0, 1)}
    return results
