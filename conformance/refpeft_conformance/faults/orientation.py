"""Transpositions that no shape check sees, because something is square."""

from __future__ import annotations

from refpeft_conformance.faults import fault, with_inputs


def _square(matrix) -> bool:
    """Whether an array is a square matrix, or several."""
    return matrix.shape[-1] == matrix.shape[-2]


def _transposed(name: str):
    @fault("orientation", f"{name} transposed when square", name, operations="*linear")
    def _(problem, run):
        matrix = problem.inputs[name]
        if not _square(matrix):
            return run(problem)
        results = run(with_inputs(problem, **{name: matrix.swapaxes(-1, -2).copy()}))
        return results | ({"d" + name: results["d" + name].swapaxes(-1, -2)} if "d" + name in results else {})


for _name in ("weight", "a", "b"):
    _transposed(_name)


def _gradient_transposed(gradient: str):
    @fault("orientation", f"{gradient} transposed when square", gradient, operations="*linear")
    def _(problem, run):
        results = run(problem)
        if gradient in results and _square(results[gradient]):
            return results | {gradient: results[gradient].swapaxes(-1, -2)}
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
