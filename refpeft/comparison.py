"""The oracle: golden value and error budget for given inputs, and the one-line assertion for other people's tests."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refpeft import plugins
from refpeft.arrays import to_numpy
from refpeft.errors import AttributeValueError
from refpeft.numerics.precision import Precision
from refpeft.operation import find
from refpeft.problem import Problem

if typing.TYPE_CHECKING:
    from refpeft.golden import Golden


@dataclass(frozen=True)
class Comparison:
    """How one output of a subject stands to its golden value.

    Attributes
    ----------
    name : str
    share : float64 array
        Distance over budget for each element; infinite where the budget is zero and the distance is not.
    near : int
        Discrete elements that were accepted because the input lies within its budget of a boundary.
    got : array
    golden : Golden
    """

    name: str
    share: np.ndarray
    near: int
    got: np.ndarray
    golden: Golden

    @classmethod
    def of(cls, name: str, golden: Golden, got: np.ndarray) -> Comparison:
        """By distance alone."""
        distance = golden.distance(got)
        unbounded = np.isfinite(golden.value) & np.isinf(golden.budget)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where((distance == 0) | unbounded, 0.0, distance / golden.budget)
        share = np.where(np.isinf(distance) & ~unbounded, np.inf, share)
        return cls(name, share, 0, np.asarray(got), golden)

    @property
    def conforms(self) -> bool:
        """Whether every element lies within its budget."""
        return not np.any(self.share > 1)

    @property
    def worst(self) -> tuple[int, ...]:
        """Index of the largest share."""
        return tuple(int(i) for i in np.unravel_index(int(np.argmax(self.share)), self.share.shape))

    def __str__(self) -> str:
        at = self.worst
        expected, budget = self.golden.value[at], self.golden.budget[at]
        got = float(self.got[at]) if self.golden.kind != "discrete" else int(self.got[at])
        outside = int(np.sum(self.share > 1))
        where = f"{self.name}[{', '.join(map(str, at))}]"
        distance = float(self.golden.distance(self.got)[at])
        return (
            f"{where}: expected {expected:.17g}, got {got:.17g}; off by {distance:.3g} = "
            f"{float(self.golden.ulps(self.got)[at]):.3g} ulps of {self.golden.dtype}, "
            f"but the {self.golden.kind} budget is {budget:.3g} ({outside} of {self.share.size} elements outside)"
        )


def compare(problem: Problem, name: str, golden: Golden, got: np.ndarray, model=None) -> Comparison:
    """Hold one output against its golden value, element by element."""
    accepts = problem.operation._accepts.get(name)
    if golden.kind == "discrete" and accepts is not None:
        from refpeft.numerics.precision import rounding_model, standard_precision

        model = model or rounding_model(standard_precision(problem.dtype))
        admissible, close = accepts(
            got, golden.value.astype(got.dtype), model, *problem.positional, **problem.attributes
        )
        return Comparison(name, np.where(admissible, 0.0, np.inf), int(np.sum(close)), np.asarray(got), golden)
    return Comparison.of(name, golden, got)


def oracle(operation, /, *, dtype=None, precision: Precision | None = None, **arguments) -> dict[str, Golden]:
    """Golden value and error budget of every output, and of every gradient if cotangents are given.

    Parameters
    ----------
    operation : str
        ``"lora.linear"``.
    dtype : str, optional
        Needed only where no input has the problem's floating-point dtype.
    precision : Precision, optional
        What the implementation in question promises; the dtype's standard where not given.
    **arguments
        Inputs (arrays of any library), attributes, and cotangents (``dy=...``) by name.

    Returns
    -------
    dict of str to Golden
        ``y``, ``dx``, ...: ``.value`` and ``.budget`` are float64 arrays.

    Raises
    ------
    RefpeftError
        If the arguments do not fit the signature, or no finite budget exists.

    Examples
    --------
    >>> import numpy as np, refpeft
    >>> ones = np.ones((2, 2), np.float32)
    >>> golden = refpeft.oracle("nn.linear", x=ones, weight=ones)
    >>> golden["y"].value
    array([[2., 2.],
           [2., 2.]])
    """
    return _answer(_problem(operation, dtype, arguments), precision)


def assert_conforms(operation, outputs, /, *, dtype=None, precision: Precision | None = None, **arguments) -> None:
    """Raise AssertionError unless ``outputs`` lie within the error budget.

    Parameters
    ----------
    operation : str
    outputs : array or mapping of name to array
        A bare array stands for the only output; a mapping may hold outputs and gradients (``{"y": y, "da": da}``). What is
        not handed in is not checked.
    dtype, precision, **arguments
        As for `oracle`.

    Raises
    ------
    AssertionError
        Naming the worst element of each output that does not conform, and the known fault that explains it, if exactly one does.
    RefpeftError
        If the arguments or the outputs' shapes and dtypes do not fit the signature.

    Examples
    --------
    >>> import numpy as np, refpeft
    >>> x, w = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    >>> refpeft.assert_conforms("nn.linear", x @ w.T, x=x, weight=w)
    """
    problem = _problem(operation, dtype, arguments)
    if not isinstance(outputs, Mapping) and len(problem.operation.outputs) > 1:
        names = ", ".join(o.name for o in problem.operation.outputs)
        raise AttributeValueError(f"{problem.operation.name} has several outputs ({names}): hand them in by name.")
    if not isinstance(outputs, Mapping):
        outputs = {problem.operation.outputs[0].name: outputs}
    specs = problem.result_specs
    if not outputs:
        raise AttributeValueError(f"{problem.operation.name}: no output came; the problem has {', '.join(specs)}.")
    golden = _answer(problem, precision)
    arrays, failures = {}, []
    for name, output in outputs.items():
        if name not in specs:
            raise AttributeValueError(
                f"{problem.operation.name}: unknown output {name!r}; the problem has {', '.join(specs)}."
            )
        got = to_numpy(output)
        shape, wanted = specs[name]
        if got.shape != shape or got.dtype.name != wanted:
            failures.append(f"{name} is {got.dtype.name}{list(got.shape)} but must be {wanted}{list(shape)}")
            continue
        arrays[name] = got
        comparison = compare(problem, name, golden[name], got)
        if not comparison.conforms:
            failures.append(str(comparison))
    if failures:
        found = [f"{problem.operation.name} ({problem.dtype}) does not conform:", *failures]
        raise Nonconformance("\n".join(found), problem, arrays)


class Nonconformance(AssertionError):
    """What `assert_conforms` raises. Its text ends with the fault that explains the outputs, which is looked for when the text is
    first asked for: a property test that is being shrunk fails a thousand times, and tells of the last.
    """

    def __init__(self, found: str, problem: Problem, outputs: Mapping[str, np.ndarray]):
        super().__init__(found)
        self._problem, self._outputs = problem, outputs

    def __str__(self) -> str:
        return self._text

    def __reduce__(self):
        return AssertionError, (str(self),)

    @functools.cached_property
    def _text(self) -> str:
        return "\n".join([self.args[0], *_explanation(self._problem, self._outputs)])


def explain(problem: Problem, outputs: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the kit's faults whose results these outputs are, within budget."""
    found = [
        name for _, names in plugins.call("refpeft_diagnose", problem=problem, outputs=outputs) for name in names or []
    ]
    return sorted(set(found))


def _explanation(problem, arrays) -> list[str]:
    faults = explain(problem, arrays) if arrays else []
    return [f"the output lies within the budget of fault {faults[0]!r}, and of no other"] if len(faults) == 1 else []


def _answer(problem: Problem, precision: Precision | None) -> dict[str, Golden]:
    """What `golden.answer` gives; the interpretations behind it are imported by who asks first."""
    from refpeft.golden import answer

    return answer(problem, precision)


def _problem(operation, dtype, arguments) -> Problem:
    operation = find(operation)
    inputs = {a.name for a in operation.signature.inputs}
    given = {n: v for n, v in arguments.items() if v is not None}
    arrays = {n: to_numpy(v) for n, v in given.items() if n in inputs or n in operation.cotangents}
    attributes = {n: _number(v) for n, v in given.items() if n not in arrays}
    cotangents = {n: arrays.pop(n) for n in operation.cotangents if n in arrays}
    return Problem.of(operation, arrays, attributes, cotangents, dtype)


def _number(value):
    """A scaling that is held as an array or tensor without axes, as a number."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
