"""Diagnosis: which fault of the kit's list explains a wrong output."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from refpeft.errors import RefpeftError
from refpeft.golden import answer, evaluate
from refpeft.numerics.precision import Precision
from refpeft.problem import Problem
from refpeft_conformance.faults import faults_of


def diagnose(problem: Problem, outputs: Mapping[str, np.ndarray], precision: Precision | None = None) -> list[str]:
    """Names of the faults that explain ``outputs``.

    A fault explains them if, made to the reference, it gives values within whose budget every output lies, and if these values
    differ from the honest ones by more than the budget somewhere.

    Parameters
    ----------
    problem : Problem
    outputs : mapping of result name to array
    precision : Precision, optional

    Returns
    -------
    list of str
    """
    specs = problem.result_specs
    outputs = {
        n: np.asarray(a).astype(np.float64) for n, a in outputs.items() if n in specs and np.shape(a) == specs[n][0]
    }
    if not outputs:
        return []
    try:
        golden = answer(problem, precision, finite=False)
    except RefpeftError:
        return []
    found = []
    for fault in faults_of(problem.operation, problem.dtype):
        if not fault.explains:
            continue
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                wrong = {
                    n: np.asarray(a, np.float64) for n, a in fault.transform(problem, evaluate).items() if n in outputs
                }
        except Exception:
            continue
        budgets = {n: golden[n].budget for n in wrong}
        if any(wrong[n].shape != outputs[n].shape for n in wrong):
            continue
        with np.errstate(invalid="ignore"):  # of infinities that are equal there is no difference
            within = all(np.all(np.abs(outputs[n] - wrong[n]) <= budgets[n]) for n in wrong)
            differs = any(np.any(~(np.abs(golden[n].value - wrong[n]) <= budgets[n])) for n in wrong)
        if within and differs:
            found.append(fault.name)
    return found
