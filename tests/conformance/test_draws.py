"""What a check examines: problems of its own, and of a law those that it says something of."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from refpeft import plugins
from refpeft.golden import BudgetError
from refpeft.numerics.formats import FORMATS
from refpeft.operation import catalogue, find
from refpeft_conformance.checks import checks_of
from refpeft_conformance.draws import draw
from refpeft_conformance.laws import doubled, laws_of
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation, Violation

REFERENCE = Subject(plugins.backend("reference"))


def seen(check, seed=0):
    """Dims of the problems that a check examines."""
    dims = []

    def examine(subject, problem, observed):
        dims.append(problem.dims)
        check.examine(subject, problem, observed)

    assert run(replace(check, examine=examine), REFERENCE, profile="quick", random_seed=seed).verdict == "PASS"
    return dims


def of(claim, operation="nn.linear"):
    """The check in float32."""
    return next(c for c in checks_of(find(operation), "float32") if c.claim == claim)


def test_checks_of_an_operation_see_shapes_of_their_own_and_the_same_when_run_again():
    """And other ones by another seed."""
    random, sparse = (of(f"outputs within budget on {regime} inputs") for regime in ("random", "sparse"))
    assert seen(random) == seen(random)
    assert seen(random) != seen(sparse)
    assert seen(random) != seen(random, seed=1)


def test_draws_follow_from_the_seed_alone(tmp_path, monkeypatch):
    """Not from the numbers in a module that happens to be loaded, which Hypothesis draws from in other tests as before."""
    numbers, own = st.integers(10**12, 10**12 + 10**6), set(range(10**12 + 123_456, 10**12 + 123_466))
    (tmp_path / "numbers_of_ours.py").write_text(f"NUMBERS = {own}")
    monkeypatch.syspath_prepend(tmp_path)

    def drawn():
        draw(numbers, (found := []).append, 200, 0)
        return found

    before = drawn()
    importlib.import_module("numbers_of_ours")
    elsewhere = []

    @seed(0)
    @settings(max_examples=200, database=None)
    @given(numbers)
    def draw_as_usual(number):
        elsewhere.append(number)

    draw_as_usual()
    assert own & set(elsewhere)
    assert drawn() == before
    assert not own & set(before)


def test_a_law_draws_until_it_has_something_to_say_and_never_passes_in_silence():
    """What it is silent on does not count; one that is silent on all, or that no problem has a budget for, could not be drawn."""
    law = next(c for c in checks_of(find("nn.linear"), "float32") if c.kind == "laws")

    def speaks(subject, problem, observed):
        observed.elements += problem.dims["o"] > 4

    found = run(replace(law, examine=speaks), REFERENCE, profile="quick")
    assert (found.verdict, found.observation.examples) == ("PASS", found.observation.elements)
    assert found.observation.examples >= 8

    def silent(subject, problem, observed):
        """Nothing."""

    def without_budget(subject, problem, observed):
        raise BudgetError("none")

    for examine in (silent, without_budget):
        found = run(replace(law, examine=examine), REFERENCE, profile="quick")
        assert (found.verdict, found.observation.examples) == ("ERROR", 0)


def test_a_law_is_only_where_it_says_something():
    """Weights of 16 bits that were decoded have other maxima, of which no format's law speaks."""
    claims = {dtype: {c.claim for c in checks_of(find("q8_0.quantize"), dtype)} for dtype in ("float32", "float16")}
    assert "what was decoded decodes to the same again" in claims["float32"] - claims["float16"]
    for operation in catalogue().values():
        for law in laws_of(operation):
            assert set(law.dtypes) & set(operation.dtypes), law
            assert set(law.dtypes) <= set(FORMATS)


def test_doubling_is_held_to_normal_numbers():
    """Half of an ulp is lost below them; above, one bit too many is found."""
    once = np.array([1.5, 2.0**-14, 2.0**-24], np.float16)
    twice = once * np.float16(2)
    twice[2] = 0
    doubled(once, twice, observed := Observation())
    assert observed.elements == 2
    twice[1] = np.nextafter(twice[1], np.float16(1))
    with pytest.raises(Violation, match="doubled"):
        doubled(once, twice, observed)
