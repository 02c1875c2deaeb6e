"""Hand-derived gradients against three judges: the complex step, double-double differences, and torch's autograd.

The adjoint identity <dy, J v> = <vjp(dy), v> holds for every v. How far the two sides may lie apart in float64 follows from
the gradients' own float64 budgets and from the magnitudes of what is summed: nothing is set by hand.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
from small_problems import drawn

from refpeft import Problem, catalogue, plugins
from refpeft.golden import BudgetError, answer, evaluate
from refpeft.numerics import FLOAT64, standard_precision
from refpeft.numerics.interpretations import ComplexStep, DoubleDouble
from refpeft.operation import Operation, find

PRECISION = standard_precision("float64")
DIFFERENTIABLE = [name for name, op in catalogue().items() if op.has_vjp]


def directions(problem: Problem, seed: int = 0) -> dict[str, np.ndarray]:
    """A random direction for every input that a gradient exists for."""
    random = np.random.default_rng(seed)
    return {n: random.normal(size=problem.inputs[n].shape) for n in problem.wanted}


def moved(problem: Problem, along) -> dict:
    """Outputs of the source with each differentiable input replaced by what ``along(name, array)`` makes of it."""
    operation = problem.operation
    inputs = [
        along(n, x.astype(np.float64))
        if n in problem.wanted
        else x
        if x is None or x.dtype.kind in "iub"
        else x.astype(np.float64)
        for n, x in zip((a.name for a in operation.signature.inputs), problem.positional)
    ]
    outputs = operation.forward(*inputs, **problem.attributes)
    return dict(zip((o.name for o in operation.outputs), outputs if isinstance(outputs, tuple) else (outputs,)))


def complex_step(problem: Problem, v: dict) -> dict[str, np.ndarray]:
    """J v, exact to rounding."""
    results = moved(problem, lambda n, x: ComplexStep.along(x, v[n]))
    return {n: r.derivative if isinstance(r, ComplexStep) else np.zeros(np.shape(r)) for n, r in results.items()}


@contextmanager
def holding(held: list):
    """DoubleDouble arrays whose detached values are those in ``held``, which the first run of a source fills."""
    filling, left = not held, iter(held)

    def detach(a):
        if filling:
            held.append(a)
        return a if filling else next(left)

    def straight_through(value, surrogate):
        return detach(value) + (surrogate - detach(surrogate))

    ordinary = dict(DoubleDouble.rules)
    DoubleDouble.rules.update(detach=detach, straight_through=straight_through)
    try:
        yield
    finally:
        DoubleDouble.rules.update(ordinary)


def differences(problem: Problem, v: dict) -> dict[str, np.ndarray]:
    """J v by central differences in double-double: with a step of 2**-34, truncation and rounding both lie below
    2**-60. What the source detaches stays as it is at the point.
    """
    step, held, ends = 2.0**-34, [], []
    for s in (0, 1, -1):
        with holding(held):
            ends.append(moved(problem, lambda n, x, s=s: DoubleDouble(x) + DoubleDouble(s * step * v[n])))
    return {n: ((ends[1][n] - ends[2][n]) / (2 * step)).hi for n in ends[0]}


def judge(problem: Problem, jacobian) -> tuple[float, float]:
    """Distance of the two sides of the adjoint identity, and how far rounding in float64 may bring them apart."""
    v = directions(problem)
    golden = answer(problem, PRECISION)
    gradients, products = evaluate(problem), jacobian(problem, v)
    left = [
        problem.cotangents["d" + n].astype(np.float64) * p for n, p in products.items() if "d" + n in problem.cotangents
    ]
    right = [gradients["d" + n] * v[n] for n in v]
    count = sum(t.size for t in left + right)
    summed = sum(float(np.sum(np.abs(t))) for t in left + right)
    budgets = sum(float(np.sum(golden["d" + n].budget * np.abs(v[n]))) for n in v)
    # The forward mode sums the same products of derivatives along the same paths, in complex arithmetic: at most four
    # roundings where the reverse mode has one, so that with the reverse mode's own budget five of them are due.
    admitted = 5 * budgets + count * FLOAT64.unit * summed
    return abs(sum(float(np.sum(t)) for t in left) - sum(float(np.sum(t)) for t in right)), admitted


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_vjp_is_the_adjoint_of_the_complex_step(name):
    """<dy, J v> = <vjp(dy), v>, J v by complex step."""
    for problem in drawn(name):
        distance, admitted = judge(problem, complex_step)
        assert distance <= admitted, problem


def has_kinks(problem: Problem) -> bool:
    """Whether J v jumps within a step of the point."""
    v = directions(problem)
    near = [complex_step(problem.replace(inputs=_shifted(problem, v, s * 2.0**-33)), v) for s in (1, -1)]
    return any(
        np.max(np.abs(near[0][n] - near[1][n]), initial=0) > 2.0**-20 * (1 + np.max(np.abs(near[0][n]), initial=0))
        for n in near[0]
    )


def _shifted(problem: Problem, v: dict, step: float) -> dict:
    return problem.inputs | {n: problem.inputs[n] + step * v[n] for n in v}


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if "float64" in find(n).dtypes])
def test_a_vjp_is_the_adjoint_of_double_double_differences(name):
    """The same identity by a third way, away from kinks: no complex number and no derivative rule is in it."""
    smooth = [problem for problem in drawn(name) if not has_kinks(problem)]
    assert len(smooth) >= 4
    for problem in smooth:
        distance, admitted = judge(problem, differences)
        assert distance <= admitted, problem


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_torch_autograd_agrees_in_float64(name):
    """Outputs and gradients of the torch backend, which derives its own, lie within the proven float64 budget."""
    pytest.importorskip("torch")
    from refpeft_conformance.subject import Subject

    subject = Subject(plugins.backend("torch"))
    if name not in subject.backend.operations():
        pytest.skip("the torch backend does not implement it")
    compared = 0
    for problem in drawn(name):
        with suppress(BudgetError):
            for comparison in subject.compare(problem, subject.run(problem)):
                assert comparison.conforms, str(comparison)
            compared += 1
    assert compared >= 4


def lora_problem() -> Problem:
    random = np.random.default_rng(0)
    shapes = {"x": (3, 5), "weight": (4, 5), "a": (2, 5), "b": (4, 2), "bias": (4,), "lora_bias": (4,)}
    inputs = {n: random.normal(size=s) for n, s in shapes.items()} | {"mask": random.random((3, 5)) < 0.7}
    return Problem.of("lora.linear", inputs, {"scaling": 0.7, "keep": 0.75}, {"dy": random.normal(size=(3, 4))})


def faulty(operation: Operation, change) -> Operation:
    """The operation with gradients that ``change(gradients, inputs)`` makes of the right ones."""
    copy = object.__new__(Operation)
    copy.__dict__ = dict(operation.__dict__)
    right = operation._vjp
    copy._vjp = lambda *args, **attributes: change(list(right(*args, **attributes)), args)
    return copy


FAULTS = {
    "scaling forgotten in dA": lambda g, args: (*g[:2], g[2] / 0.7, *g[3:]),
    "a sign": lambda g, args: (-g[0], *g[1:]),
    "dB off by a millionth": lambda g, args: (*g[:3], g[3] * (1 + 1e-6), *g[4:]),
    "dA off by a part in 10**10": lambda g, args: (*g[:2], g[2] * (1 + 1e-10), *g[3:]),
    "a gradient left out": lambda g, args: (*g[:4], 0.0 * g[4], g[5]),
    "lora_bias not scaled": lambda g, args: (*g[:5], g[5] / 0.7),
    "mask forgotten in dx": lambda g, args: (args[0] @ args[2] + 0.7 * args[0] @ args[4] @ args[3], *g[1:]),
    "rows in reverse": lambda g, args: (g[0][::-1], *g[1:]),
}


@pytest.mark.parametrize("jacobian", [complex_step, differences], ids=["complex step", "differences"])
@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_a_wrong_vjp_is_found(change, jacobian):
    """The test of the test: each fault breaks the identity, and without it the identity holds."""
    problem = lora_problem()
    distance, admitted = judge(problem, jacobian)
    assert distance <= admitted
    distance, admitted = judge(replace(problem, operation=faulty(problem.operation, change)), jacobian)
    assert distance > admitted


def test_the_admitted_distance_is_near_rounding():
    """It is derived, and it is small: a few thousand units of what is summed."""
    problem = lora_problem()
    _, admitted = judge(problem, complex_step)
    v, gradients = directions(problem), evaluate(problem)
    summed = sum(float(np.sum(np.abs(gradients["d" + n] * v[n]))) for n in v)
    assert admitted < 5000 * FLOAT64.unit * summed


def test_a_complex_step_passes_no_derivative_where_the_definition_says_so():
    """detach and round_to stop it, straight_through reroutes it, where and absolute follow the branch taken."""
    from refpeft.numerics.primitives import detach, erf, round_to, straight_through

    x = ComplexStep.along(np.array([-2.0, 3.0]), np.ones(2))
    assert not np.any(detach(x * x).derivative)
    assert not np.any(round_to(x, "bfloat16").derivative)
    np.testing.assert_array_equal(straight_through(round_to(x, "bfloat16"), 5.0 * x).derivative, [5.0, 5.0])
    np.testing.assert_array_equal(np.absolute(x).derivative, [-1.0, 1.0])
    np.testing.assert_array_equal(np.where(x > 0, x * x, 0.0).derivative, [0.0, 6.0])
    np.testing.assert_array_equal(np.maximum(x, 0.0).derivative, [0.0, 1.0])
    np.testing.assert_array_equal(np.max(x, axis=0, keepdims=True).derivative, [1.0])
    slope = 2 / np.sqrt(np.pi) * np.exp(-np.array([4.0, 9.0]))
    assert np.all(np.abs(erf(x).derivative - slope) <= 4 * FLOAT64.unit * slope)
