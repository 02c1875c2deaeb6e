"""Every source of the catalogue stays inside the set of primitives."""

from __future__ import annotations

import numpy as np
import pytest
from small_problems import drawn

from refpeft import catalogue
from refpeft.golden import answer, evaluate
from refpeft.numerics import standard_precision
from refpeft.numerics.interpretations import Strict

OPERATIONS = catalogue()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("number", range(4))
def test_a_source_runs_on_an_array_that_nothing_converts(name, number):
    """Forward and vjp on Strict arrays give what plain NumPy gives, up to the order of BLAS, which depends on the layout."""
    operation, problem = OPERATIONS[name], drawn(name)[number]

    def strict(x):
        return None if x is None else Strict(x.astype(np.float64) if x.dtype.kind not in "iub" else x)

    inputs = [strict(x) for x in problem.positional]
    outputs = operation.forward(*inputs, **problem.attributes)
    results = dict(zip((o.name for o in operation.outputs), outputs if isinstance(outputs, tuple) else (outputs,)))
    if problem.cotangents:
        cotangents = [strict(problem.cotangents[n]) for n in operation.cotangents]
        gradients = operation.backward(*cotangents, *inputs, **problem.attributes)
        results |= {"d" + a.name: g for a, g in zip(operation.differentiable, gradients) if a.name in problem.inputs}
    golden = answer(problem, standard_precision("float64"), finite=False)
    for key in problem.result_specs:
        got = results[key].to_numpy() if isinstance(results[key], Strict) else results[key]
        if golden[key].kind == "proven":
            assert np.all(golden[key].distance(got) <= golden[key].budget), key
        else:
            np.testing.assert_array_equal(got, evaluate(problem)[key], err_msg=key)
