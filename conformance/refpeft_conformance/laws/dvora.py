"""Laws of DVoRA."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.ops.dvora import scaled
from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer

_FACTORS = ("a", "b", "lambda_d", "lambda_b")


@law("dvora.linear", "training begins at the base layer", needs=("nn.linear",))
def _(subject, problem, observed):
    """lambda_b zero and the magnitude the row norms of the weight."""
    inputs = {n: a for n, a in problem.inputs.items() if n != "mask"}
    lengths = np.sqrt(np.sum(inputs["weight"].astype(np.float64) ** 2, axis=1))
    start = {"lambda_b": np.zeros_like(inputs["lambda_b"]), "magnitude": store(lengths, as_format(problem.dtype))}
    adapted = problem.replace(inputs=inputs | start, cotangents={})
    arrays = {n: inputs[n] for n in ("x", "weight", "bias") if n in inputs}
    plain = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    agree("start", subject, (adapted, subject.run(adapted)), (plain, subject.run(plain)), {"y": "y"}, observed)


def _is_dora(operation: str) -> None:
    @law(f"dvora.{operation}", "it is DoRA with the scaled factors", regime="exact", needs=(f"dora.{operation}",))
    def _(subject, problem, observed):
        """Where their products with the vectors are exact."""
        exact = scaled(*(problem.inputs[n].astype(np.float64) for n in _FACTORS))
        q, p = (store(f, as_format(problem.dtype)) for f in exact)
        if not all(np.array_equal(f.astype(np.float64), e) for f, e in zip((q, p), exact)):
            return
        arrays = {n: a for n, a in problem.inputs.items() if n not in _FACTORS} | {"a": q, "b": p}
        other = Problem.of(f"dora.{operation}", arrays, problem.attributes | {"scaling": 1.0}, {}, problem.dtype)
        mine, theirs = subject.run(problem.replace(cotangents={})), subject.run(other)
        for name in mine:
            equal(name, mine[name], theirs[name], observed)


_is_dora("linear")
_is_dora("merge")


@law("dvora.merge", "a zero row stays zero and passes no gradient", gradients=True)
def _(subject, problem, observed):
    """It has no direction; nothing divides by its norm."""
    zero = {n: problem.inputs[n].copy() for n in ("weight", "lambda_b")}
    for array in zero.values():
        array[:1] = 0
    results = subject.run(problem.replace(inputs=problem.inputs | zero))
    for name in ("merged", "dweight", "dlambda_b", "dmagnitude"):
        equal(f"{name} of a zero row", results[name][:1], np.zeros_like(results[name][:1]), observed)


@law("dvora.merge", "the merged layer computes what the adapted layer does", needs=("nn.linear", "dvora.linear"))
def _(subject, problem, observed):
    merged_layer(subject, problem, "dvora.linear", observed)
