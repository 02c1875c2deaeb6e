"""Small problems of every operation, for tests of more than one part: drawn once, for drawing takes longer than most judging."""

from __future__ import annotations

import functools

from hypothesis import HealthCheck, given, settings

from refpeft import Problem
from refpeft.operation import find
from refpeft_conformance.strategies import problems


@functools.cache
def drawn(name: str) -> tuple[Problem, ...]:
    """Eight problems of an operation, in float64 if it has that; always the same."""
    dtypes, found = find(name).dtypes, []

    @given(problem=problems(name, dtype="float64" if "float64" in dtypes else dtypes[0]))
    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def collect(problem):
        found.append(problem)

    collect()
    return tuple(found)
