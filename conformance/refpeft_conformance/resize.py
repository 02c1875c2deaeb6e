"""A problem with some indices of a dim gone, and whatever is computed from that dim made to fit.

Let ``size`` be the dim and start to stop what is removed from it. An axis whose length is an expression f(dim) loses
f(size) - f(size - (stop - start)) entries from f(start) on: of packed codes, ``[(n+1)//2]``, and block scales,
``[ceil(n/blocksize)]``, those that belong to the same weights. An axis that is the dim itself is the case f(n) = n. Where f grows
(more blocks of a smaller size) its last entry is repeated. Indices into the dim move along with what they point to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from refpeft.expression import Expression
from refpeft.problem import Problem
from refpeft.signature import Argument


def without(problem: Problem, name: str, start: int, stop: int) -> Problem:
    """The problem without indices ``start`` to ``stop`` of a dim or integer attribute.

    Raises
    ------
    RefpeftError
        If what is left is no problem of the operation.
    """
    left = _derived(problem, {name: free_dims(problem)[name] - (stop - start)})
    return _fitted(problem, left, _derived(problem, {name: start}))


def with_attribute(problem: Problem, name: str, value) -> Problem:
    """The problem with another value of an attribute, arrays cut at their ends to what then fits.

    Raises
    ------
    RefpeftError
        If that is no problem of the operation.
    """
    known = _derived(problem, {name: value})
    return _fitted(problem, known, known)


def without_batch(problem: Problem, star: str, axis: int, start: int, stop: int | None) -> Problem:
    """The problem without indices ``start`` to ``stop`` of a batch axis; without the axis but for ``start`` if stop is None."""
    inputs: dict[str, np.ndarray] = {}
    cotangents: dict[str, np.ndarray] = {}
    for argument, array, is_cotangent in _arguments(problem):
        if argument.star and argument.star[1] == star:
            at = argument.star[0] + axis
            array = np.take(array, start, axis=at) if stop is None else np.delete(array, slice(start, stop), axis=at)
        (cotangents if is_cotangent else inputs)[_key(argument, is_cotangent)] = np.asarray(array, order="C")
    return Problem.of(problem.operation, inputs, problem.attributes, cotangents, problem.dtype)


def free_dims(problem: Problem) -> dict[str, int]:
    """Sizes of the dims and integer attributes that no others determine, by name."""
    known, signature = _known(problem), problem.operation.signature
    determined = {c.defines for c in signature.constraints if c.right.names <= known.keys()} - problem.attributes.keys()
    return {
        name: size
        for name, size in known.items()
        if isinstance(size, int) and not isinstance(size, bool) and name not in determined
    }


def _known(problem: Problem) -> dict:
    """Dims and attributes, and what only constraints name: og, where ``o = og*groups``."""
    known = dict(problem.dims)
    for constraint in problem.operation.signature.constraints:
        size, hidden = known.get(constraint.defines), constraint.right.names - known.keys()
        if size is not None and len(hidden) == 1:
            (name,) = hidden
            known |= next(({name: k} for k in range(1, size + 1) if constraint.right(known | {name: k}) == size), {})
    return known


def _derived(problem: Problem, changes: dict) -> dict:
    """Dims and attributes after some of them changed, with those that constraints define."""
    known = _known(problem) | changes
    for constraint in problem.operation.signature.constraints:
        name = constraint.defines
        if name and name not in problem.attributes and constraint.right.names <= known.keys():
            known[name] = constraint.right(known)
    return known


def _fitted(problem: Problem, known: Mapping, at: Mapping) -> Problem:
    """The problem at new dims ``known``, entries taken out of each axis where it would end if the dims were ``at``."""
    inputs: dict[str, np.ndarray] = {}
    cotangents: dict[str, np.ndarray] = {}
    for argument, array, is_cotangent in _arguments(problem):
        for axis, dim in _axes(argument, known):
            array = _fit(array, axis, dim(known), dim(at))
        if argument.below:
            array = _moved(array, argument.below(problem.dims), argument.below(known), argument.below(at))
        (cotangents if is_cotangent else inputs)[_key(argument, is_cotangent)] = np.asarray(array, order="C")
    attributes = {n: known[n] for n in problem.attributes}
    return Problem.of(problem.operation, inputs, attributes, cotangents, problem.dtype)


def _fit(array: np.ndarray, axis: int, size: int, at: int) -> np.ndarray:
    """The array with ``size`` entries along an axis: surplus ones removed from ``at`` on, missing ones like the last."""
    surplus = array.shape[axis] - size
    if surplus < 0 < array.shape[axis]:
        return np.take(array, np.minimum(np.arange(size), array.shape[axis] - 1), axis=axis)
    at = min(max(at, 0), max(size, 0))
    return np.delete(array, slice(at, at + max(surplus, 0)), axis=axis)


def _moved(indices: np.ndarray, before: int, after: int, at: int) -> np.ndarray:
    """Indices below ``before``, where those from ``at`` to at + before - after are gone; what pointed there points to ``at``."""
    moved = np.where(indices >= at, np.maximum(indices - (before - after), at), indices)
    return np.minimum(moved, max(after - 1, 0)).astype(indices.dtype)


def _axes(argument: Argument, known: Mapping) -> Iterator[tuple[int, Expression]]:
    """(axis, expression) of each dim of an argument that is no batch axis."""
    for position, dim in enumerate(argument.dims):
        before = len(known[argument.star[1]]) if argument.star and argument.star[0] <= position else 0
        yield position + before, dim


def _arguments(problem: Problem) -> Iterator[tuple[Argument, np.ndarray, bool]]:
    """(argument, its array, whether it is a cotangent) for every array of the problem."""
    outputs = {"d" + o.name: o for o in problem.operation.outputs}
    for argument in problem.operation.signature.inputs:
        if argument.name in problem.inputs:
            yield argument, problem.inputs[argument.name], False
    for name, array in problem.cotangents.items():
        yield outputs[name], array, True


def _key(argument: Argument, is_cotangent: bool) -> str:
    return "d" + argument.name if is_cotangent else argument.name
