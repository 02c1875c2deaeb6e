"""Shrinking: the smallest problem that still fails.

A problem is *minimal* when no optional input can be left out, no index of any dimension removed and no non-zero made zero so that
it still fails. Hypothesis shrinks what it drew (shapes, attributes, a seed); this works on the arrays themselves.

Of a size from which other shapes are computed (n of packed codes), only the end can be cut off: what lies before it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refpeft.errors import RefpeftError
from refpeft.problem import Problem


class _Exhausted(Exception):
    """No more tries are left."""


def shrink(problem: Problem, fails: Callable[[Problem], bool], tries: int = 2000) -> tuple[Problem, bool]:
    """Reduce ``problem`` as long as ``fails`` holds.

    Parameters
    ----------
    problem : Problem
        One that fails.
    fails : callable
        Whether a problem still fails; must not raise.
    tries : int
        How many candidates to examine at most.

    Returns
    -------
    problem : Problem
    minimal : bool
        Whether every single reduction was tried in vain; False where tries ran out.
    """
    left = tries

    def attempt(candidate: Callable[[], Problem]) -> Problem | None:
        nonlocal left
        if left == 0:
            raise _Exhausted
        try:
            smaller = candidate()
        except RefpeftError:
            return None
        left -= 1
        return smaller if fails(smaller) else None

    try:
        changed = True
        while changed:
            changed = False
            for reduce in (_optional, _dimensions, _axes, _elements, _simpler_values):
                problem, reduced = _exhaust(problem, reduce, attempt)
                changed = changed or (reduced and reduce is not _simpler_values)
    except _Exhausted:
        return problem, False
    except _Reduced as partial:
        return partial.problem, False
    return problem, True


class _Reduced(Exception):
    """Tries ran out after some reductions.

    Attributes
    ----------
    problem : Problem
    """

    def __init__(self, problem):
        self.problem = problem


def _exhaust(problem: Problem, reduce, attempt) -> tuple[Problem, bool]:
    """Apply one kind of reduction until none of it succeeds."""
    reduced = False
    while True:
        for candidate in reduce(problem):
            try:
                smaller = attempt(candidate)
            except _Exhausted:
                raise _Reduced(problem) from None
            if smaller is not None:
                problem, reduced = smaller, True
                break
        else:
            return problem, reduced


def _optional(problem: Problem) -> Iterator[Callable[[], Problem]]:
    for argument in problem.operation.signature.inputs:
        if argument.optional and argument.name in problem.inputs:
            yield lambda name=argument.name: problem.replace(
                inputs={n: a for n, a in problem.inputs.items() if n != name}
            )


def _dimensions(problem: Problem) -> Iterator[Callable[[], Problem]]:
    """Remove a block of indices of one dim, large blocks first."""
    signature = problem.operation.signature
    defined = {c.defines for c in signature.constraints}
    attributes = [n for n, v in problem.attributes.items() if isinstance(v, int) and not isinstance(v, bool)]
    names = [d for d in signature.dims if not d.startswith("*") and d not in defined and d not in problem.attributes]
    for name in (*names, *attributes):
        size = problem.dims[name]
        for start, stop in _blocks(size):
            yield lambda name=name, start=start, stop=stop: _without(problem, name, start, stop)


def _axes(problem: Problem) -> Iterator[Callable[[], Problem]]:
    """Remove a block of one batch axis, or the whole axis but one index."""
    for star in [d[1:] for d in problem.operation.signature.dims if d.startswith("*")]:
        sizes = problem.dims[star]
        for axis, size in enumerate(sizes):
            for index in range(size):
                yield lambda star=star, axis=axis, index=index: _batch(problem, star, axis, index, None)
            for start, stop in _blocks(size):
                yield lambda star=star, axis=axis, start=start, stop=stop: _batch(problem, star, axis, start, stop)


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    length = size // 2
    while length >= 1:
        yield from ((start, start + length) for start in range(0, size - length + 1, length) if length < size)
        length //= 2


def _arguments(problem: Problem):
    """(argument, its array, whether it is a cotangent) for every array of the problem."""
    outputs = {"d" + o.name: o for o in problem.operation.outputs}
    yield from (
        (a, problem.inputs[a.name], False) for a in problem.operation.signature.inputs if a.name in problem.inputs
    )
    yield from ((outputs[n], a, True) for n, a in problem.cotangents.items())


def _axis_offset(argument, position: int, star_axes: int) -> int:
    return position + (star_axes if argument.star and argument.star[0] <= position else 0)


def _without(problem: Problem, name: str, start: int, stop: int) -> Problem:
    """The problem with indices start..stop of dim (or integer attribute) ``name`` gone, other arrays cut to what then fits."""
    signature = problem.operation.signature
    known = dict(problem.dims) | {name: problem.dims[name] - (stop - start)}
    for constraint in signature.constraints:
        if constraint.defines and constraint.names <= known.keys() and constraint.defines not in problem.attributes:
            known[constraint.defines] = constraint.right(known)
    inputs, cotangents = {}, {}
    for argument, array, is_cotangent in _arguments(problem):
        for position, dim in enumerate(argument.dims):
            if dim.text == name:
                stars = len(known[argument.star[1]]) if argument.star else 0
                array = np.delete(array, slice(start, stop), axis=_axis_offset(argument, position, stars))
        shape = signature.shape(argument, known)
        array = array[tuple(slice(0, s) for s in shape)]
        (cotangents if is_cotangent else inputs)["d" + argument.name if is_cotangent else argument.name] = np.asarray(
            array, order="C"
        )
    attributes = {n: known[n] if n == name else v for n, v in problem.attributes.items()}
    return Problem.of(problem.operation, inputs, attributes, cotangents, problem.dtype)


def _batch(problem: Problem, star: str, axis: int, start: int, stop: int | None) -> Problem:
    inputs, cotangents = {}, {}
    for argument, array, is_cotangent in _arguments(problem):
        if argument.star and argument.star[1] == star:
            at = argument.star[0] + axis
            array = np.take(array, start, axis=at) if stop is None else np.delete(array, slice(start, stop), axis=at)
        (cotangents if is_cotangent else inputs)["d" + argument.name if is_cotangent else argument.name] = np.asarray(
            array, order="C"
        )
    return Problem.of(problem.operation, inputs, problem.attributes, cotangents, problem.dtype)


def _elements(problem: Problem) -> Iterator[Callable[[], Problem]]:
    """Set blocks of non-zero elements to zero, large blocks first."""
    for name, array, kind in _named(problem):
        at = np.flatnonzero(array)
        length = len(at)
        while length >= 1:
            for start in range(0, len(at), length):
                yield lambda n=name, k=kind, where=at[start : start + length]: _set(problem, n, k, where, 0)
            length //= 2


def _simpler_values(problem: Problem) -> Iterator[Callable[[], Problem]]:
    """Set single elements to one, minus one, or their power of two, and attributes to one or two."""
    for name, value in problem.attributes.items():
        if isinstance(value, float) and value not in (1.0, 2.0):
            for simple in (1.0, 2.0):
                yield lambda n=name, v=simple: problem.replace(attributes=problem.attributes | {n: v})
    for name, array, kind in _named(problem):
        if array.dtype.kind in "biu" or array.size > 64:
            continue
        values = array.astype(np.float64).reshape(-1)
        for i in np.flatnonzero(np.isfinite(values) & (values != 0)):
            power = float(np.copysign(2.0 ** np.floor(np.log2(abs(values[i]))), values[i]))
            for simple in (float(np.sign(values[i])), power):
                if abs(values[i]) != 1.0 and values[i] != simple:
                    yield lambda n=name, k=kind, i=i, v=simple: _set(problem, n, k, i, v)


def _named(problem: Problem):
    yield from ((n, a, "inputs") for n, a in problem.inputs.items())
    yield from ((n, a, "cotangents") for n, a in problem.cotangents.items())


def _set(problem: Problem, name: str, kind: str, where, value) -> Problem:
    arrays = getattr(problem, kind)
    changed = arrays[name].copy()
    changed.reshape(-1)[where] = value
    return problem.replace(**{kind: arrays | {name: changed}})
