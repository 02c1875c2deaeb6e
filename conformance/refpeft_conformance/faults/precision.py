"""Arithmetic weaker than declared."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, TF32, as_format, round_to_format
from refpeft.operation import Operation
from refpeft_conformance.faults import fault, wide

_FLOATS = ("float64", "float32")


def _operands(problem, format):
    """Every floating operand rounded to ``format`` first."""
    return problem.replace(
        inputs={n: _rounded(a, format) for n, a in problem.inputs.items()},
        cotangents={n: _rounded(a, format) for n, a in problem.cotangents.items()},
    )


def _rounded(array, format):
    if array.dtype.kind in "iub":
        return array
    return round_to_format(wide(array), format).astype(array.dtype)


@fault("precision", "silent TF32", "x", "weight", dtypes=_FLOATS, explains=False)
def _(problem, run):
    return run(_operands(problem, TF32))


@fault("precision", "operands in bfloat16", "x", "weight", dtypes=(*_FLOATS, "float16"), explains=False)
def _(problem, run):
    return run(_operands(problem, BFLOAT16))


@fault("precision", "operands in float16", "x", "weight", dtypes=_FLOATS, explains=False)
def _(problem, run):
    return run(_operands(problem, FLOAT16))


@fault("precision", "adapters in bfloat16", "a", "b", dtypes=(*_FLOATS, "float16"), explains=False)
def _(problem, run):
    adapters = {n: _rounded(problem.inputs[n], BFLOAT16) for n in ("a", "b")}
    return run(problem.replace(inputs=problem.inputs | adapters))


@fault("precision", "float64 computed in float32", "x", "weight", dtypes=("float64",), explains=False)
def _(problem, run):
    return run(_operands(problem, FLOAT32))


@fault(
    "precision",
    "results rounded toward zero twice over",
    "y",
    explains=False,
    equivalent={"mxfp4.dequantize": "its results have two significant bits"},
)
def _(problem, run):
    """Each result loses its last two bits."""
    unit = 4 * as_format(problem.dtype).unit

    def truncated(array):
        values = wide(array)
        exponent = np.frexp(np.where(values == 0, 1.0, values))[1]
        quantum = np.ldexp(2 * unit, exponent)
        return np.trunc(values / quantum) * quantum

    return {n: truncated(a) if a.dtype.kind not in "iub" else a for n, a in run(problem).items()}


_SUMS = (
    *("nn", "lora", "adalora", "adamss", "alora", "deft", "glora", "hira", "loha", "mtl_lora", "osf", "peanut", "road"),
    *("trainable_tokens", "unilora", "vera", "xlora"),
)
"""Families whose ``linear`` gives a sum over columns of x, each with its column of every input that has one."""


def _adds_up(operation: Operation) -> bool:
    return operation.name.removesuffix(".linear") in _SUMS


def _summed_in(format, name, dtypes):
    @fault("precision", name, "x", "y", dtypes=dtypes, explains=False, operations="*.linear", where=_adds_up)
    def _(problem, run):
        """The contraction in pieces, each partial sum rounded to ``format``."""
        honest = run(problem)
        last = {a.name: [d.text for d in a.dims][-1:] for a in problem.operation.signature.inputs}
        columns = {n: a for n, a in problem.inputs.items() if last[n] == last["x"]}
        size = problem.inputs["x"].shape[-1]
        if size < 2:
            return honest
        total = None
        step = max(1, size // 8)
        for start in range(0, size, step):
            cut = {n: np.ascontiguousarray(a[..., start : start + step]) for n, a in columns.items()}
            kept = {n: a for n, a in problem.inputs.items() if n not in cut and not (start and n.endswith("bias"))}
            partial = wide(run(problem.replace(inputs=kept | cut, cotangents={}))["y"])
            total = round_to_format(partial if total is None else total + partial, format)
        return honest | {"y": total}


_summed_in(BFLOAT16, "partial sums in bfloat16", ("float64", "float32", "bfloat16", "float16"))
_summed_in(FLOAT16, "partial sums in float16", ("float64", "float32"))


def _row_by_row(operation: Operation) -> bool:
    """Whether each row of x, with its row of the mask, is a problem of its own."""
    x = next(a for a in operation.signature.inputs if a.name == "x")
    return len(x.dims) == 1 and {a.name for a in operation.signature.inputs if a.star} <= {"x", "mask"}


@fault(
    "precision",
    "batch accumulated in the storage dtype",
    "x",
    "y",
    "dweight",
    "[*n]",
    dtypes=("bfloat16", "float16"),
    explains=False,
    where=_row_by_row,
)
def _(problem, run):
    """dW grows row by row in the storage dtype instead of float32."""
    honest = run(problem)
    if "dweight" not in honest:
        return honest
    rows = problem.inputs["x"].reshape(-1, problem.inputs["x"].shape[-1])
    cotangents = problem.cotangents["dy"].reshape(len(rows), -1)
    masks = problem.inputs["mask"].reshape(rows.shape) if "mask" in problem.inputs else None
    total = np.zeros(honest["dweight"].shape)
    for j in range(len(rows)):
        inputs = problem.inputs | {"x": rows[j]} | ({} if masks is None else {"mask": masks[j]})
        one = run(problem.replace(inputs=inputs, cotangents={"dy": cotangents[j]}))["dweight"]
        total = round_to_format(total + wide(one), as_format(problem.dtype))
    return honest | {"dweight": total}
