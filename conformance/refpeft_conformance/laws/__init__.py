"""Laws, one file per family. A law takes a subject and a problem, and makes its own calls."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refpeft.numerics.formats import FORMATS, as_format
from refpeft.operation import Operation, find
from refpeft.problem import Problem
from refpeft_conformance.strategies import is_exact
from refpeft_conformance.verdict import Violation


@dataclass(frozen=True)
class Law:
    """A claim between calls.

    Attributes
    ----------
    operation : str
    claim : str
    regime : str
        The regime its problems are drawn in.
    gradients : bool
    needs : tuple of str
        Other operations it calls.
    dtypes : tuple of str
        In which it says anything.
    examine : callable
        (subject, problem, observation) -> None; raises Violation.
    """

    operation: str
    claim: str
    regime: str
    gradients: bool
    needs: tuple[str, ...]
    dtypes: tuple[str, ...]
    examine: Callable


LAWS: list[Law] = []


def law(
    operation: str,
    claim: str,
    *,
    regime: str = "random",
    gradients: bool = False,
    needs: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = tuple(FORMATS),
):
    """Declare the decorated function as a law of ``operation``."""

    def declare(examine):
        LAWS.append(Law(operation, claim, regime, gradients, needs, dtypes, examine))
        return examine

    return declare


def laws_of(operation: Operation) -> list[Law]:
    """All laws of one operation, in order of declaration."""
    _import_families()
    return [one for one in LAWS if one.operation == operation.name]


@functools.cache
def _import_families() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def equal(claim: str, got: np.ndarray, expected: np.ndarray, observed=None) -> None:
    """Equal as numbers, element by element, or a Violation."""
    wrong = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
    if observed is not None:
        observed.elements += wrong.size
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Violation(f"{claim}: element {list(at)} is {got[at]} but must be {expected[at]}", {"got": got})


def doubled(once: np.ndarray, twice: np.ndarray, observed) -> None:
    """Twice one result is the other, where it is a normal number: below, halves are rounded."""
    normal = np.abs(once.astype(np.float64)) >= as_format(once.dtype).tiny
    equal("doubled", twice[normal], once[normal] * once.dtype.type(2), observed)


def agree(claim: str, subject, first, second, pairs, observed=None) -> None:
    """Two runs agree within the sum of their budgets and the distance of their golden values.

    Parameters
    ----------
    claim : str
    subject : Subject
    first, second : (Problem, results)
    pairs : mapping of result name in the first to result name in the second
    """
    (p, one), (q, two) = first, second
    for c, d in zip(subject.compare(p, one, list(pairs)), subject.compare(q, two, list(pairs.values()))):
        room = c.golden.budget + d.golden.budget + np.abs(c.golden.value - d.golden.value)
        apart = np.abs(c.got.astype(np.float64) - d.got.astype(np.float64))
        if observed is not None:
            observed.elements += apart.size
        if np.any(~(apart <= room)):
            at = tuple(int(i) for i in np.argwhere(~(apart <= room))[0])
            raise Violation(
                f"{claim}: {c.name}{list(at)} is {c.got[at]} one way and {d.got[at]} the other, {apart[at]:.3g} apart "
                f"where the budgets leave {room[at]:.3g}",
                one,
            )


def without(problem: Problem, *zeros: str) -> Problem:
    """The problem, forward only, with these parameters zero."""
    return problem.replace(inputs=problem.inputs | {n: np.zeros_like(problem.inputs[n]) for n in zeros}, cotangents={})


def by_hand(subject, problem: Problem, inputs, numbers, expected, observed) -> None:
    """A case of the problem's operation whose every step is exact, with its answers as they are on paper."""
    dtype = next(iter(problem.inputs.values())).dtype
    case = problem.replace(inputs={n: np.array(a, dtype) for n, a in inputs.items()}, attributes=numbers, cotangents={})
    results = subject.run(case)
    for name, value in expected.items():
        equal(name, results[name], np.array(value, dtype), observed)


def scaled(subject, problem: Problem, factors, expected, observed, **attributes) -> None:
    """Inputs multiplied by powers of two or turned, and these attributes, multiply the outputs by just as exact factors."""
    larger = {n: problem.inputs[n] * problem.inputs[n].dtype.type(f) for n, f in factors.items()}
    wanted = subject.run(problem)
    changed = problem.replace(inputs=problem.inputs | larger, attributes=problem.attributes | attributes)
    results = subject.run(changed)
    for name, factor in expected.items():
        equal(name, results[name].astype(np.float64), factor * wanted[name].astype(np.float64), observed)


def still(subject, problem: Problem, zeros: tuple[str, ...], attributes, observed) -> None:
    """With these inputs zero and these attributes, an optimizer leaves the parameter, and what was zero of its state."""
    results = subject.run(without(problem, *zeros).replace(attributes=problem.attributes | attributes))
    equal("next_p", results["next_p"], problem.inputs["p"], observed)
    for name in zeros:
        if f"next_{name}" in results:
            state = results[f"next_{name}"]
            equal(f"next_{name}", state, np.zeros_like(state), observed)


def base_law(operation: str, *zeros: str) -> None:
    """The law of an adapted layer that is the base layer where these of its parameters are zero."""
    what, leaves = "a zero " + " and a zero ".join(zeros), "leaves" if len(zeros) == 1 else "leave"

    @law(operation, f"{what} {leaves} the base layer", needs=("nn.linear",))
    def _(subject, problem, observed):
        arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
        adapted, plain = without(problem, *zeros), Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
        agree(what, subject, (adapted, subject.run(adapted)), (plain, subject.run(plain)), {"y": "y"}, observed)


def update_laws(family: str, zero: str | tuple[str, ...]) -> None:
    """The laws of a method whose update is a function of its parameters, and zero where ``zero``, one or several of them, is."""
    zeros = (zero,) if isinstance(zero, str) else zero
    what, leaves = "a zero " + " and a zero ".join(zeros), "leaves" if len(zeros) == 1 else "leave"
    base_law(f"{family}.linear", *zeros)

    @law(f"{family}.merge", f"{what} {leaves} the weight")
    def _(subject, problem, observed):
        equal(what, subject.run(without(problem, *zeros))["merged"], problem.inputs["weight"], observed)

    needs = ("nn.linear", f"{family}.linear")

    @law(f"{family}.merge", "the merged layer computes what the adapted layer does", regime="exact", needs=needs)
    def _(subject, problem, observed):
        """On an input of small integers: equal where both sides are exact, else within both budgets."""
        merged_layer(subject, problem, f"{family}.linear", observed)


def merged_layer(subject, problem, adapted: str, observed, **others: np.ndarray) -> None:
    """The merge of ``problem`` under nn.linear, and the layer ``adapted`` with the same parameters, on an x of -1, 0 and 1.

    ``others`` are what the layer takes beside them.
    """
    weight = subject.run(problem)["merged"]
    columns = weight.shape[1]
    x = (np.arange(2 * columns).reshape(2, columns) % 3 - 1).astype(weight.dtype)
    layer = Problem.of(adapted, problem.inputs | others | {"x": x}, problem.attributes, {}, problem.dtype)
    merged = Problem.of("nn.linear", {"x": x, "weight": weight}, {}, {}, problem.dtype)
    first, second = subject.run(layer)["y"], subject.run(merged)["y"]
    precision = subject.precision(problem.dtype)
    if is_exact(layer, precision) and is_exact(merged, precision):
        equal("merged layer", second, first, observed)
    else:
        agree("merged layer", subject, (layer, {"y": first}), (merged, {"y": second}), {"y": "y"}, observed)


def merged_kernel(family: str, zero: str) -> None:
    """The law of a convolution whose update is none where ``zero`` is: the kernel that ``family.merge`` gives needs no update."""

    @law(f"{family}.conv2d", "the merged kernel needs no update", regime="exact", needs=(f"{family}.merge",))
    def _(subject, problem, observed):
        kernel, adapted = problem.inputs["weight"], problem.replace(cotangents={})
        merge = find(f"{family}.merge")
        parameters = {a.name: problem.inputs[a.name] for a in merge.signature.inputs if a.name in problem.inputs}
        parameters["weight"] = kernel.reshape(len(kernel), -1)
        own = {n: problem.attributes[n] for n in merge.attributes}
        merging = Problem.of(merge.name, parameters, own, {}, problem.dtype)
        merged = subject.run(merging)["merged"].reshape(kernel.shape)
        plain = without(problem.replace(inputs=problem.inputs | {"weight": merged}), zero)
        precision = subject.precision(problem.dtype)
        if all(is_exact(p, precision) for p in (adapted, merging, plain)):
            equal("merged kernel", subject.run(plain)["y"], subject.run(adapted)["y"], observed)
