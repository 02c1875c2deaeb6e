"""Small problems of any operation, drawn from its signature and a seed: what golden files are made of.

It needs neither the kit nor Hypothesis. Where an operation's constraints leave few shapes, draws are rejected until one
fits.
"""

from __future__ import annotations

import numpy as np

from refpeft.attribute import Attribute
from refpeft.errors import CapabilityError, RefpeftError
from refpeft.golden import Golden, answer
from refpeft.numerics.formats import Format, as_format, store
from refpeft.operation import Operation
from refpeft.problem import Problem
from refpeft.signature import Argument

SIZES = (2, 3, 1)
FLOATS = (1.0, 0.5, 2.0, 1.3, 0.75, 0.1, -0.6)
INTEGERS = (1, 2, 3, 4, 8)
TUPLES = {
    2: ((1, 1), (1, 2), (2, 1), (2, 2), (0, 0), (3, 2)),
    3: ((1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2), (0, 0, 0), (1, 0, 1)),
}
LARGEST = 2048
"""A case's arrays take at most this many bytes, where sizes that fit exist."""
TRIES, CHOICES = 4000, 40


class Unfit(RefpeftError):
    """A draw that breaks a constraint of the signature."""


def case(operation: Operation, dtype: str, seed: int, index: int) -> tuple[Problem, dict[str, Golden]]:
    """The problem number ``index`` of an operation in a dtype, with its golden values.

    Number 0 has every optional input and default attributes, number 1 no optional input, number 2 small integers. Later
    ones go through the operation's structured regimes in turn; odd ones have magnitudes over many binades.

    Raises
    ------
    CapabilityError
        If no draw is a valid problem with finite budgets.
    """
    order = (*operation.name.encode(), *dtype.encode(), index)
    random = np.random.default_rng([seed, *order])
    fitting: list[tuple[int, Problem, dict[str, Golden]]] = []
    last: RefpeftError | None = None
    for _ in range(TRIES):
        try:
            problem = _problem(operation, as_format(dtype), random, index)
            golden = answer(problem)
        except RefpeftError as error:
            last = error if last is None or not isinstance(error, Unfit) else last
            continue
        size = _bytes(problem, golden)
        if size <= LARGEST:
            return problem, golden
        fitting.append((size, problem, golden))
        if len(fitting) == CHOICES:
            break
    if not fitting:
        raise CapabilityError(f"{operation.name}: none of {TRIES} draws in {dtype} is a problem; the last: {last}")
    return min(fitting, key=lambda entry: entry[0])[1:]


def _bytes(problem: Problem, golden: dict[str, Golden]) -> int:
    given = sum(a.nbytes for a in (*problem.inputs.values(), *problem.cotangents.values()))
    return given + sum(g.value.nbytes + g.budget.nbytes for g in golden.values())


def _problem(operation: Operation, format: Format, random: np.random.Generator, index: int) -> Problem:
    attributes = {name: _attribute(operation, a, random, index) for name, a in operation.attributes.items()}
    if "dtype" in attributes:
        attributes["dtype"] = format.name
    dims = _dims(operation, attributes, random, index)
    present = [a for a in operation.signature.inputs if not a.optional or index == 0 or (index > 1 and _coin(random))]
    cotangents = {"d" + o.name: o for o in operation.outputs if o.differentiable} if operation.has_vjp else {}
    named = {a.name: a for a in present} | cotangents
    shapes = {name: operation.signature.shape(argument, dims) for name, argument in named.items()}
    filled = {
        name: _numbers(shape, random, index)
        if named[name].dtype in (None, "float32")
        else _integers(named[name], shape, dims, random)
        for name, shape in shapes.items()
    }
    if index > 2 and operation.structured:
        filled |= operation.structured[(index - 3) % len(operation.structured)](random, filled, attributes)
    if operation._validate is not None:
        filled |= operation._validate(random, filled, attributes)
    arrays = {
        name: store(values, format) if named[name].dtype is None else np.asarray(values).astype(named[name].dtype)
        for name, values in filled.items()
    }
    return Problem.of(
        operation,
        {a.name: arrays[a.name] for a in present},
        attributes,
        {name: arrays[name] for name in cotangents},
        format.name,
    )


def _attribute(operation: Operation, attribute: Attribute, random, index: int):
    if index == 0 and not attribute.required:
        return attribute.default
    floats, tuples = operation.sizes.get(attribute.name, FLOATS), TUPLES.get(attribute.length)
    known = {float: floats, int: INTEGERS, bool: (False, True), tuple: tuples}
    candidates = attribute.choices or known.get(attribute.type, (attribute.default,))
    return _pick(candidates, random)


def _dims(operation: Operation, attributes: dict, random, index: int) -> dict:
    """A size for each dim, equalities solved from right to left, every constraint kept."""
    signature = operation.signature
    defined = {c.defines: c.right for c in signature.constraints if c.defines and c.defines not in attributes}
    names = dict.fromkeys([*signature.dims, *sorted(n for c in signature.constraints for n in c.names)])
    known = dict(attributes)
    for name in names:
        if name.startswith("*"):
            axes = 1 if index == 0 else int(random.integers(3))
            known[name[1:]] = tuple(_pick(SIZES, random) for _ in range(axes))
        elif name not in known and name not in defined:
            known[name] = _pick(operation.sizes.get(name, SIZES), random)
    while waiting := [n for n in defined if n not in known and defined[n].names <= known.keys()]:
        known[waiting[0]] = defined[waiting[0]](known)
    broken = [str(c) for c in signature.constraints if not c.names <= known.keys() or not c.holds(known)]
    if broken:
        raise Unfit(f"{operation.name}: {broken[0]} does not hold.")
    return known


def _numbers(shape, random, index: int) -> np.ndarray:
    if index == 2:
        return random.integers(-3, 4, shape).astype(np.float64)
    values = random.normal(size=shape)
    return values * 2.0 ** random.integers(-4, 5, shape) if index > 2 and index % 2 else values


def _integers(argument: Argument, shape, dims: dict, random) -> np.ndarray:
    if argument.dtype == "bool":
        return random.random(shape) < 0.5
    if argument.below is not None:
        return random.integers(0, argument.below(dims), shape)
    limits = np.iinfo(argument.dtype)
    return random.integers(limits.min, limits.max, shape, endpoint=True)


def _pick(candidates, random):
    return candidates[int(random.integers(len(candidates)))]


def _coin(random) -> bool:
    return bool(random.random() < 0.5)
