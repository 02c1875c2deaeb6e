"""Honest implementations raise no alarm, whatever their arithmetic. A sample; `benchmarks/evidence.py alarms` runs all of it."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.numerics import BFLOAT16, FLOAT32, RoundingModel
from refpeft.numerics.interpretations import Bounded
from refpeft.numerics.primitives import round_to
from refpeft.operation import catalogue
from refpeft.problem import Problem
from refpeft_conformance.honest import ORDERS, Arithmetic, Honest, honest_backends
from refpeft_conformance.honest.summation import rounds, total
from refpeft_conformance.honest.trial import ENOUGH, construct, hold, hold_to_checks
from refpeft_conformance.subject import Subject

OPERATIONS = [(name, o.dtypes[i % len(o.dtypes)]) for i, (name, o) in enumerate(catalogue().items())]


@pytest.mark.parametrize(("operation", "dtype"), OPERATIONS)
def test_honest_arithmetic_stays_within_every_budget(operation, dtype):
    """No order of summation and no style leads outside, in whatever regime."""
    trial = hold(operation, dtype, examples=3, long=False)
    assert trial.problems > 1
    assert trial.alarms == []


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("operation", ["nn.linear", "lora.linear", "lora.merge", "lora.scaling"])
def test_a_case_reaches_a_hundredth_of_each_proven_budget(operation, dtype):
    """Every result that is rounded at all uses its budget somewhere: none is needlessly wide."""
    trial = hold(operation, dtype, examples=4, long=False)
    construct(trial)
    rounded = {name for name, budget in trial.widest.items() if budget > 0}
    assert rounded
    assert trial.reached.keys() == rounded
    assert all(share >= ENOUGH for share in trial.reached.values())


def test_honest_arithmetic_passes_every_check_of_the_kit():
    """Not the budgets alone: exact lane, laws and conduct leave room for every order and style too."""
    count, failed = hold_to_checks("lora.linear", "bfloat16", profile="quick")
    assert count > 30
    assert failed == []


def test_honest_implementations_differ():
    """On one problem with sums of 65 terms every order and style gives bits of its own; BLAS has one order only."""
    random = np.random.default_rng(0)
    shapes = {"x": (8, 65), "weight": (8, 65), "a": (65, 65), "b": (8, 65), "bias": (8,)}
    arrays = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    problem = Problem.of("lora.linear", arrays, {"scaling": 1.3})
    backends = [b for b in honest_backends() if b.order != "blas"]
    assert len({Subject(b).run(problem)["y"].tobytes() for b in backends}) == len(backends)


def test_a_budget_that_forgets_the_rounding_of_sums_raises_alarms(monkeypatch):
    """The honest implementations are able to find a budget unsound, for they add one term after another."""
    monkeypatch.setattr(RoundingModel, "accumulate", lambda model, count: 0.0)
    assert hold("nn.linear", "float32", examples=20).alarms


def test_a_budget_that_forgets_the_rounding_of_intermediates_raises_alarms(monkeypatch):
    """They store what lies between two steps, too."""

    def stored(bounded, value, inherited, own=0.0, factor=1.0):
        return bounded.rebuild(value, inherited + own)

    monkeypatch.setattr(Bounded, "stored", stored)
    assert hold("nn.linear", "bfloat16", examples=20).alarms


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_of_summation_adds_every_term_once(order):
    """Integers sum to the same number in every order; no terms sum to zero."""
    terms = np.arange(1.0, 75.0)[:, None] * np.array([1.0, -3.0])
    assert np.array_equal(total(terms, order), terms.sum(axis=0))
    assert np.array_equal(total(terms[:0], order), np.zeros(2))


def test_rounds_send_every_element_to_its_place():
    """Place 0 is met twice, place 1 never, and what is missing points beyond the last element."""
    assert rounds(np.array([2, 0, 0, 3]), 4).tolist() == [[1, 4, 0, 3], [2, 4, 4, 4]]


def test_intermediates_are_stored_in_one_style_only():
    """In bfloat16 1 + 2**-10 is one where it is stored, and itself where it stays wide."""
    small = np.array([2.0**-10])
    for style, kept in (("stored", 1.0), ("fused", 1 + 2.0**-10), ("late", 1 + 2.0**-10)):
        one = Honest(np.ones(1), Arithmetic(BFLOAT16, "sequential", style))
        assert (one + small).value == kept


def test_a_fused_accumulator_takes_products_unrounded():
    """a * a less its rounded value: FMA gives back what the product lost, separate steps leave nothing."""
    a = np.array([1 + 2.0**-12])
    for style, left in (("stored", 0.0), ("fused", 2.0**-24)):
        x = Honest(a, Arithmetic(FLOAT32, "sequential", style))
        assert (x * x - round_to(x * x, "float32")).value == left
