"""Perturbed: an estimate of what rounding does, where it does something, and never more than an estimate."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.golden import answer, interpret
from refpeft.numerics import rounding_model, standard_precision
from refpeft.numerics.interpretations import Bounded, Perturbed
from refpeft.numerics.perturbed import SAFETY_FACTOR, SAMPLES, spread
from refpeft.operation import CATALOGUE, operation
from refpeft.problem import Problem

FP32 = standard_precision("fp32")


def lora_problem(seed: int = 0, dtype: str = "float32") -> Problem:
    random = np.random.default_rng(seed)
    shapes = {"x": (5, 33), "weight": (7, 33), "a": (4, 33), "b": (7, 4), "bias": (7,)}
    arrays = {n: random.normal(size=s).astype(dtype) for n, s in shapes.items()}
    return Problem.of("lora.linear", arrays, {"scaling": 0.3}, {"dy": random.normal(size=(5, 7)).astype(dtype)})


def budgets(problem: Problem, precision=FP32, **options) -> dict:
    return spread(lambda array, scalar: interpret(problem, array, scalar), precision, **options)


def test_a_spread_is_positive_where_something_is_rounded():
    """Every element of a chain of products moves, and the centre is the undisturbed value."""
    problem = lora_problem()
    golden = answer(problem, FP32)
    for name, (value, budget) in budgets(problem).items():
        assert np.all(budget > 0), name
        assert np.all(budget < SAFETY_FACTOR * golden[name].budget), name
        np.testing.assert_array_equal(value, golden[name].value)


def test_a_spread_is_zero_where_nothing_is_rounded():
    """Moving, selecting and negating are exact, so nothing moves."""
    x = np.arange(6.0).reshape(2, 3)
    found = spread(lambda array, scalar: {"y": np.max(-array(x).T, axis=0), "z": array(x)[:, ::-1]}, FP32)
    assert not np.any(found["y"][1])
    np.testing.assert_array_equal(found["y"][0], [0.0, -3.0])
    assert not np.any(found["z"][1])


def test_a_spread_is_the_same_under_the_same_seed():
    """Budgets are reproducible, and another seed gives others."""
    problem = lora_problem()
    first, again, other = budgets(problem), budgets(problem), budgets(problem, seed=1)
    np.testing.assert_array_equal(first["y"][1], again["y"][1])
    assert np.any(first["y"][1] != other["y"][1])


def test_one_sample_moves_each_result_within_its_own_rounding():
    """A single product stays within the bound of one product; the spread is at most the safety factor of it."""
    model = rounding_model(FP32, probable=True)
    x = np.linspace(1, 2, 50)
    bound = (Bounded.input(x, model) * Bounded.input(x, model)).error
    value, budget = spread(lambda array, scalar: {"y": array(x) * array(x)}, FP32)["y"]
    assert np.all(budget <= SAFETY_FACTOR * bound * (1 + 2.0**-20))
    assert np.all(budget >= SAFETY_FACTOR * bound / SAMPLES)
    np.testing.assert_array_equal(value, x * x)


def test_a_scalar_that_float32_lacks_moves_and_one_that_it_has_does_not():
    """An attribute enters with one rounding at the accumulation precision, or none."""
    found = spread(lambda array, scalar: {"tenth": scalar(0.1), "half": scalar(0.5)}, FP32)
    assert found["tenth"][1] > 0
    assert found["half"][1] == 0


def test_plain_results_beside_perturbed_ones_do_not_move():
    """Indices and constants that a source returns as plain arrays have no spread."""
    x = np.array([1.0, 3.0, 2.0])
    found = spread(lambda array, scalar: {"order": np.array([1, 2]), "mask": array(x) > 2, "y": array(x) * 0.1}, FP32)
    assert not np.any(found["order"][1])
    assert not np.any(found["mask"][1])
    assert np.all(found["y"][1] > 0)


def test_a_perturbed_budget_is_never_called_proven():
    """An output declared perturbed carries that kind into its golden value; the default is proven."""
    try:

        @operation("test.perturbed", "x[n] -> y[n]", budgets={"y": "perturbed"})
        def cube(x):
            return x * x * x

        golden = answer(Problem.of(cube, {"x": np.array([1.1, 2.3], np.float32)}, {}))["y"]
        assert golden.kind == "perturbed"
        assert np.all(golden.budget > 0)
    finally:
        CATALOGUE.pop("test.perturbed", None)
    assert answer(lora_problem())["y"].kind == "proven"


def test_a_model_of_the_probable_case_grows_with_the_root():
    """sqrt(n) units, where the proven model has n."""
    probable, proven = rounding_model(FP32, probable=True), rounding_model(FP32)
    assert probable.accumulate(100) == pytest.approx(10 * probable.accumulate(1))
    assert proven.accumulate(100) > 99 * proven.accumulate(1)
    assert probable.probable
    assert not proven.probable


def test_torch_lies_within_the_perturbed_budget():
    """torch in float32 keeps to the estimate for lora.linear and its gradients, seed after seed."""
    pytest.importorskip("torch")
    from refpeft_conformance.subject import Subject
    from refpeft_torch.backend import TorchBackend

    subject = Subject(TorchBackend())
    for seed in range(4):
        problem = lora_problem(seed)
        results = subject.run(problem)
        for name, (value, budget) in budgets(problem).items():
            assert np.all(np.abs(results[name] - value) <= budget), name


def test_perturbed_arrays_show_their_value():
    """The representation holds the value alone."""
    x = Perturbed.input(np.ones(1), rounding_model(FP32, probable=True), None)
    assert repr(x) == "Perturbed(array([1.]))"
