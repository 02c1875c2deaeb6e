"""Golden values: what a problem's outputs and gradients are, and how far a correct implementation may lie from them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refpeft.errors import DomainError, RefpeftError
from refpeft.numerics.formats import as_format, round_to_format, store, ulp
from refpeft.numerics.interpretations import Bounded, DoubleDouble
from refpeft.numerics.perturbed import spread
from refpeft.numerics.precision import Precision, RoundingModel, rounding_model, standard_precision
from refpeft.problem import Problem
from refpeft.provenance import guard

VACUOUS_SHARE = 0.1


class BudgetError(RefpeftError):
    """An error budget is infinite, negative or NaN, so that nothing can be said."""


@dataclass(frozen=True, eq=False)
class Golden:
    """The golden value of one output or gradient.

    Attributes
    ----------
    value : float64 array
    rest : float64 array
        What ``value`` lacks of the double-double value; zero elsewhere.
    budget : float64 array
        Largest admissible distance, zero for exact and discrete outputs.
    kind : str
        exact, proven, perturbed or discrete.
    dtype : str
        The output's dtype.
    """

    value: np.ndarray
    rest: np.ndarray
    budget: np.ndarray
    kind: str
    dtype: str

    def distance(self, got) -> np.ndarray:
        """|got - value|, float64; infinite where exactly one of the two is NaN, or infinities differ."""
        got = np.asarray(got).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs((got - self.value) - self.rest)
        same = (got == self.value) | (np.isnan(got) & np.isnan(self.value))
        return np.where(same & (self.rest == 0), 0.0, np.where(np.isnan(apart), np.where(same, 0.0, np.inf), apart))

    def ulps(self, got) -> np.ndarray:
        """The distance in ulps of the output's format at the golden value."""
        return (
            self.distance(got) / ulp(self.value, as_format(self.dtype))
            if self.dtype in _FLOATING
            else self.distance(got)
        )

    @property
    def vacuous(self) -> np.ndarray:
        """Where the budget exceeds a tenth of the output's largest magnitude, and so says nothing.

        A smallest normal number counts among the magnitudes: of zeros, a budget far below it says all there is to say.
        """
        if self.kind not in ("proven", "perturbed"):
            return np.zeros(self.value.shape, bool)
        return self.budget > VACUOUS_SHARE * np.max(np.abs(self.value), initial=as_format(self.dtype).tiny)


_FLOATING = ("float64", "float32", "bfloat16", "float16")


def interpret(problem: Problem, array: Callable, scalar: Callable) -> dict:
    """Run a problem's source, and its vjp if it has cotangents, on one interpretation.

    Parameters
    ----------
    problem : Problem
    array : callable
        Brings a floating-point array into the interpretation; integer and boolean arrays stay as they are.
    scalar : callable
        Brings a float attribute in.

    Returns
    -------
    dict
        Outputs and gradients by name, as the interpretation gives them.
    """
    operation = problem.operation

    def bring(x):
        return x if x is None or x.dtype.kind in "iub" else array(x)

    inputs = [bring(x) for x in problem.positional]
    attributes = {n: scalar(v) if isinstance(v, float) else v for n, v in problem.attributes.items()}
    guard(operation.name, problem.positional)
    outputs = operation.forward(*inputs, **attributes)
    results = dict(zip((o.name for o in operation.outputs), outputs if isinstance(outputs, tuple) else (outputs,)))
    if problem.cotangents:
        cotangents = [bring(problem.cotangents[n]) for n in operation.cotangents]
        gradients = operation.backward(*cotangents, *inputs, **attributes)
        results |= {"d" + a.name: g for a, g in zip(operation.differentiable, gradients) if a.name in problem.inputs}
    return results


def evaluate(problem: Problem) -> dict[str, np.ndarray]:
    """Outputs and gradients in plain float64."""
    with np.errstate(all="ignore"):
        results = interpret(problem, lambda a: a.astype(np.float64), float)
    return {name: np.asarray(r) for name, r in results.items()}


def stored(problem: Problem) -> dict[str, np.ndarray]:
    """Outputs and gradients as the reference gives them in their storage dtypes: computed in float64, rounded once.

    An operation whose definition says more (the correctly rounded merge) gives its outputs itself.
    """
    results = evaluate(problem)
    operation = problem.operation
    if operation._stored is not None:
        outputs = operation._stored(as_format(problem.dtype), *problem.positional, **problem.attributes)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        results |= dict(zip((o.name for o in operation.outputs), outputs))
    return {name: _in_dtype(results[name], shape, dtype) for name, (shape, dtype) in problem.result_specs.items()}


def _in_dtype(value, shape, dtype: str) -> np.ndarray:
    value = np.broadcast_to(np.asarray(value), shape)
    return store(value, as_format(dtype)) if dtype in _FLOATING else value.astype(dtype)


def answer(problem: Problem, precision: Precision | None = None, *, finite: bool = True) -> dict[str, Golden]:
    """Golden value and error budget of every output and gradient.

    Parameters
    ----------
    problem : Problem
    precision : Precision, optional
        What the subject declares; `standard_precision` of the problem's dtype where not given.
    finite : bool
        Whether budgets must be finite. False only where non-finite inputs are the subject.

    Raises
    ------
    BudgetError
        If a budget is not a finite number (results may overflow the dtype, or a division may meet zero).
    """
    precision = precision or standard_precision(problem.dtype)
    known = _ANSWERS.setdefault(problem, {})
    if precision not in known:
        known[precision] = _answer(problem, precision)
    if finite:
        for name, golden in known[precision].items():
            _require_finite(problem, name, golden)
    return dict(known[precision])


_ANSWERS: weakref.WeakKeyDictionary[Problem, dict[Precision, dict[str, Golden]]] = weakref.WeakKeyDictionary()
"""Answers of the problems that are alive: a check draws, filters, judges and explains with the same one."""


def _answer(problem: Problem, precision: Precision) -> dict[str, Golden]:
    kinds = problem.operation.kinds
    specs = problem.result_specs
    needs = {kinds.get(name, "proven") for name in specs}
    golden: dict[str, Golden] = {}
    if "proven" in needs:
        model = rounding_model(precision)
        try:
            with np.errstate(all="ignore"):
                bounded = interpret(problem, lambda a: Bounded.input(a, model), lambda s: Bounded.scalar(s, model))
        except DomainError as undecided:
            raise BudgetError(
                f"{problem.operation.name}: no error budget exists in {problem.dtype}: {undecided}"
            ) from undecided
    if "perturbed" in needs:
        perturbed = spread(lambda array, scalar: interpret(problem, array, scalar), precision)
    if needs & {"exact", "discrete"}:
        definite = stored(problem)
    for name, (shape, dtype) in specs.items():
        kind = kinds.get(name, "proven")
        if kind == "proven":
            golden[name] = _proven(bounded[name], shape, dtype, model)
        elif kind == "perturbed":
            value, budget = perturbed[name]
            golden[name] = Golden(value, np.zeros(shape), budget, kind, dtype)
        elif kind in ("exact", "discrete"):
            value = definite[name].astype(np.float64)
            golden[name] = Golden(value, np.zeros(shape), np.zeros(shape), kind, dtype)
    return golden


def _proven(result, shape, dtype: str, model: RoundingModel) -> Golden:
    if not isinstance(result, Bounded):
        result = Bounded(np.asarray(result, np.float64), np.zeros(np.shape(result)), model)
    if isinstance(result.value, DoubleDouble):
        value, rest = result.value.hi, result.value.lo
    else:
        value, rest = np.asarray(result.value), np.zeros(shape)
    budget = result.error
    if as_format(dtype) != model.precision.storage:
        budget = budget + np.abs(round_to_format(value, as_format(dtype)) - value)
    value, rest, budget = (np.broadcast_to(part, shape) for part in (value, rest, budget))
    return Golden(value, rest, budget, "proven", dtype)


def _require_finite(problem: Problem, name: str, golden: Golden) -> None:
    bad = ~(np.isfinite(golden.budget) & (golden.budget >= 0))
    if golden.kind in ("proven", "perturbed") and np.any(bad):
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BudgetError(
            f"{problem.operation.name}: no finite error budget exists for {name}{list(at)} in {problem.dtype} "
            f"(value {golden.value[at]:g}): a result may overflow, or a division may meet zero."
        )
