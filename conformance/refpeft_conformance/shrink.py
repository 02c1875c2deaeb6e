"""Shrinking: the smallest problem that still fails.

A problem is *minimal* when none of these leaves one that still fails:

- an optional input left out;
- one index, or a block of them, of a dim or an integer attribute removed, down to one, and what is computed from it with it
  (`refpeft_conformance.resize`);
- one index of a batch axis removed, or the axis;
- a number of a tuple (stride, padding) made 0 or 1, an attribute 1 or 2;
- one non-zero made zero, or, in small arrays, one or a power of two.

Each is tried by itself: two that only together leave a failure are not found. Entries of arrays that pack several values go
whole. Hypothesis shrinks what it drew (shapes, attributes, a seed); this works on the arrays themselves.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Set

import numpy as np

from refpeft.errors import RefpeftError
from refpeft.problem import Problem
from refpeft_conformance.resize import free_dims, with_attribute, without, without_batch

Candidates = Iterator[Callable[[], Problem]]


def shrink(
    problem: Problem, fails: Callable[[Problem], bool], tries: int = 2000, seconds: float = 60.0
) -> tuple[Problem, bool]:
    """Reduce ``problem`` as long as ``fails`` holds.

    Parameters
    ----------
    problem : Problem
        One that fails.
    fails : callable
        Whether a problem still fails; must not raise.
    tries : int
        How many candidates to examine at most.
    seconds : float
        After how long to begin no other.

    Returns
    -------
    problem : Problem
    minimal : bool
        Whether every single reduction was tried in vain; False where tries or time ran out.
    """
    deadline = time.monotonic() + seconds
    changed = True
    while changed:
        changed = False
        for reductions in (_optional, _dimensions, _batches, _tuples, _elements, _simpler_values):
            candidates = reductions(problem)
            while candidate := next(candidates, None):
                if tries == 0 or time.monotonic() > deadline:
                    return problem, False
                try:
                    smaller = candidate()
                except RefpeftError:
                    continue
                tries -= 1
                if fails(smaller):
                    problem, changed = smaller, True
                    candidates = reductions(problem)
    return problem, True


def _optional(problem: Problem) -> Candidates:
    """Leave out an optional input."""
    for argument in problem.operation.signature.inputs:
        if argument.optional and argument.name in problem.inputs:
            yield lambda name=argument.name: problem.replace(
                inputs={n: a for n, a in problem.inputs.items() if n != name}
            )


def _dimensions(problem: Problem) -> Candidates:
    """Remove a block of indices of one dim, the largest share of any dim first."""
    sizes = free_dims(problem)
    blocks = [(name, *block) for name, size in sizes.items() for block in _blocks(size, _units(problem, name))]
    blocks.sort(key=lambda block: (block[1] - block[2]) / sizes[block[0]])
    for name, start, stop in blocks:
        yield lambda name=name, start=start, stop=stop: without(problem, name, start, stop)


def _units(problem: Problem, name: str) -> Set[int]:
    """How many indices of a dim belong together: the numbers and integer attributes in what is computed from it."""
    signature = problem.operation.signature
    expressions = [d for a in (*signature.inputs, *signature.outputs) for d in a.dims]
    expressions += [side for c in signature.constraints for side in (c.left, c.right)]
    dependent = [e for e in expressions if name in e.names]
    numbers = {int(n) for e in dependent for n in re.findall(r"\b\d+\b", e.text)}
    attributes = {v for e in dependent for n in e.names - {name} if isinstance(v := problem.attributes.get(n), int)}
    return {unit for unit in numbers | attributes if unit > 1}


def _blocks(size: int, units: Set[int] = frozenset()) -> Iterator[tuple[int, int]]:
    """Blocks of one half, a quarter, ... of the indices, down to one, and of all, half, ... the whole units; large ones first."""
    lengths = {size >> k for k in range(1, size.bit_length())}
    lengths |= {u * (size // u >> k) for u in units for k in range(size.bit_length())}
    for length in sorted(lengths - {0, size}, reverse=True):
        yield from ((start, start + length) for start in range(0, size - length + 1, length))


def _batches(problem: Problem) -> Candidates:
    """Remove a block of one batch axis, or the whole axis but one index."""
    for star in [d[1:] for d in problem.operation.signature.dims if d.startswith("*")]:
        for axis, size in enumerate(problem.dims[star]):
            for index in range(size):
                yield lambda star=star, axis=axis, index=index: without_batch(problem, star, axis, index, None)
            for start, stop in _blocks(size):
                yield lambda star=star, axis=axis, start=start, stop=stop: without_batch(
                    problem, star, axis, start, stop
                )


def _tuples(problem: Problem) -> Candidates:
    """Make one number of a tuple of integers 0 or 1."""
    for name, numbers in problem.attributes.items():
        if isinstance(numbers, tuple):
            for k, number in enumerate(numbers):
                for smaller in (s for s in (0, 1) if s < number):
                    changed = (*numbers[:k], smaller, *numbers[k + 1 :])
                    yield lambda name=name, changed=changed: with_attribute(problem, name, changed)


def _elements(problem: Problem) -> Candidates:
    """Set blocks of non-zero elements to zero, large blocks first."""
    for name, array, kind in _named(problem):
        at = np.flatnonzero(array)
        length = len(at)
        while length >= 1:
            for start in range(0, len(at), length):
                yield lambda n=name, k=kind, where=at[start : start + length]: _set(problem, n, k, where, 0)
            length //= 2


def _simpler_values(problem: Problem) -> Candidates:
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


def _named(problem: Problem) -> Iterator[tuple[str, np.ndarray, str]]:
    yield from ((n, a, "inputs") for n, a in problem.inputs.items())
    yield from ((n, a, "cotangents") for n, a in problem.cotangents.items())


def _set(problem: Problem, name: str, kind: str, where, value) -> Problem:
    arrays = getattr(problem, kind)
    changed = arrays[name].copy()
    changed.reshape(-1)[where] = value
    return problem.replace(**{kind: arrays | {name: changed}})
