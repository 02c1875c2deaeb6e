"""Conduct: what a caller may rely on besides the numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from refpeft.errors import DomainError
from refpeft.golden import BudgetError, answer
from refpeft_conformance.checks import Check
from refpeft_conformance.strategies import LAYOUTS
from refpeft_conformance.subject import require_form
from refpeft_conformance.verdict import Outside, Violation

SHARE = 1 / 3
"""Of a profile's examples: how an implementation behaves depends little on the numbers it is given."""


def checks(operation, dtype):
    """The claims that every operation makes, and two more for those with gradients."""

    def drawn(subject):
        return subject.problems(operation, dtype)

    def forward(subject):
        return subject.problems(operation, dtype, gradients=False)

    def uniform(subject):
        return drawn(subject).map(_uniform).filter(_has_answer(subject))

    def claim(text, examine, source=drawn, gradients=False):
        return Check(operation, dtype, "conduct", text, examine, source, gradients, share=SHARE)

    yield claim("inputs are left as they were", _leaves_inputs)
    yield claim("results stay on the device", _stays_on_device)
    for name, layout in LAYOUTS.items():
        yield claim(f"{name} inputs give the same answer", _accepts_layout(layout))
    yield claim("broadcast inputs give the same answer", _accepts_layout(_broadcast), uniform)
    if operation.signature.dims and operation.signature.dims[0].startswith("*"):
        yield claim("empty batches give empty results", _held, lambda s: drawn(s).map(_emptied))
    if {"proven"} >= set(operation.kinds.values()) and operation.nonfinite:
        yield claim(
            "nan and infinity go where they belong",
            _spreads_nonfinite,
            lambda s: st.builds(_spoiled, forward(s), st.integers(0, 2**32 - 1)),
        )
    yield claim("equal inputs give equal bits", _repeats)
    if operation.has_vjp:
        yield claim("gradients that are not wanted change nothing", _wants_less, gradients=True)
        yield claim("calls in between leave residuals alone", _interleaves, gradients=True)


def _bits(array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _leaves_inputs(subject, problem, observed):
    arrays = subject.arrays(problem)
    before = [None if a is None else _bits(subject.host(a)) for a in arrays]
    subject.call(problem, arrays)
    for argument, array, bits in zip(problem.operation.signature.inputs, arrays, before):
        if array is not None and _bits(subject.host(array)) != bits:
            raise Violation(f"input {argument.name} was changed by the call")


def _stays_on_device(subject, problem, observed):
    arrays = subject.arrays(problem)
    named = {a.name: x for a, x in zip(problem.operation.signature.inputs, arrays) if x is not None}
    for name, array in (named | subject.call(problem, arrays)).items():
        device = subject.guarded(subject.backend.device_of, array)
        if device != subject.device:
            raise Violation(f"{name} lies on {device}, but the backend is certified on {subject.device}")


def _accepts_layout(layout):
    def examine(subject, problem, observed):
        arranged = subject.arrays(problem, lambda x: layout(np.array(x)))
        try:
            results = {n: subject.host(a) for n, a in subject.call(problem, arranged).items()}
        except Violation as refusal:
            reason, raised = subject.backend.implementation(problem.operation.name).contiguous, refusal.__cause__
            if reason and raised is not None and not isinstance(raised, TimeoutError):
                raise Outside(reason) from refusal
            raise
        _hold_all(subject, problem, results, observed)

    return examine


def _first_row(array):
    """The first row of ``array``, repeated by a stride of zero."""
    return np.broadcast_to(array[:1], array.shape) if array.ndim and array.shape[0] else array


def _broadcast(array):
    """An array of equal rows by a stride of zero; any other as it is."""
    return _first_row(array) if np.array_equal(_first_row(array), array) else array


def _uniform(problem):
    """Every input made of copies of its first row, so that it can come broadcast; indices are left where none may repeat."""
    copies = {n: np.array(_first_row(a)) for n, a in problem.inputs.items()}
    try:
        return problem.replace(inputs=copies)
    except DomainError:
        return problem.replace(inputs=copies | {n: a for n, a in problem.inputs.items() if a.dtype.kind in "iu"})


def _has_answer(subject):
    """Whether a problem of copied rows still has one: vectors that must be independent no longer are."""

    def judge(problem):
        try:
            answer(problem, subject.precision(problem.dtype))
        except BudgetError:
            return False
        return True

    return judge


def _emptied(problem):
    """The same problem with no rows in the batch."""
    signature, dims = problem.operation.signature, dict(problem.dims)
    star = signature.dims[0][1:]
    dims[star] = (0, *dims[star][1:])

    def cut(argument, array):
        return np.zeros(signature.shape(argument, dims), array.dtype)

    inputs = {
        a.name: cut(a, problem.inputs[a.name]) if a.star else problem.inputs[a.name]
        for a in signature.inputs
        if a.name in problem.inputs
    }
    outputs = {"d" + o.name: o for o in signature.outputs}
    return problem.replace(inputs=inputs, cotangents={n: cut(outputs[n], a) for n, a in problem.cotangents.items()})


def _held(subject, problem, observed):
    _hold_all(subject, problem, subject.run(problem), observed)


def _hold_all(subject, problem, results, observed):
    for name, spec in subject.due(problem).items():
        require_form(name, spec, results)
    golden = answer(problem, subject.precision(problem.dtype))
    subject.judge(problem, results, {name: golden[name] for name in results}, observed)


def _spoiled(problem, seed):
    """One element of one floating input made NaN or infinite."""
    random = np.random.default_rng(seed)
    names = [n for n in problem.operation.nonfinite if n in problem.inputs and problem.inputs[n].size]
    if not names:
        return problem
    name = names[int(random.integers(len(names)))]
    array = problem.inputs[name].copy()
    array.reshape(-1)[int(random.integers(array.size))] = random.choice([np.nan, np.inf, -np.inf])
    return problem.replace(inputs=problem.inputs | {name: array})


def _spreads_nonfinite(subject, problem, observed):
    """NaN where the mathematics gives NaN or adds opposite infinities; infinities with their sign; the rest within budget."""
    with np.errstate(all="ignore"):
        results = subject.run(problem)
        for comparison in subject.compare(problem, results, finite=False):
            got, golden = comparison.got.astype(np.float64), comparison.golden
            finite = np.isfinite(golden.value) & np.isfinite(golden.budget)
            wrong = np.where(finite, comparison.share > 1, np.isfinite(got) & ~np.isfinite(golden.value))
            observed.elements += wrong.size
            if np.any(wrong):
                at = tuple(int(i) for i in np.argwhere(wrong)[0])
                raise Violation(f"{comparison.name}{list(at)} must be {golden.value[at]}, but is {got[at]}", results)


def _repeats(subject, problem, observed):
    if not subject.backend.deterministic:
        return
    first, second = subject.run(problem), subject.run(problem)
    for name in first:
        if _bits(first[name]) != _bits(second[name]):
            raise Violation(f"{name} differs between two runs on equal inputs", second)


def _wants_less(subject, problem, observed):
    """Each gradient alone is what it is among all, and known to be wanted alone as well. One that is declared not to be given is
    none, or right as well.
    """
    for name in problem.wanted:
        _, residuals = subject.forward(problem, subject.arrays(problem), residuals=(name,))
        (alone,) = subject.vjp(problem, residuals, subject.cotangents(problem), (name,))
        if alone is None and name in subject.frozen(problem):
            continue
        single = {"d" + name: subject.host(alone)}
        if single["d" + name].shape != problem.inputs[name].shape:
            shapes = single["d" + name].shape, problem.inputs[name].shape
            raise Violation(f"d{name} alone has shape {shapes[0]}, but its input has {shapes[1]}", single)
        _within(subject, problem, single, f"wanting only d{name}: ")


def _interleaves(subject, problem, observed):
    """Two forwards, then two vjps: each must use its own residuals."""
    other = problem.replace(inputs={n: _moved(a) for n, a in problem.inputs.items()})
    other = other if _has_answer(subject)(other) else problem
    pending = [(p, subject.forward(p, subject.arrays(p), residuals=True)[1]) for p in (problem, other)]
    for p, residuals in pending:
        wanted = subject.wanted(p)
        gradients = subject.vjp(p, residuals, subject.cotangents(p), wanted)
        _within(
            subject,
            p,
            {"d" + n: subject.host(g) for n, g in zip(wanted, gradients)},
            "after another call in between: ",
        )


def _within(subject, problem, results, when: str) -> None:
    wrong = [str(c) for c in subject.compare(problem, results, list(results)) if not c.conforms]
    if wrong:
        raise Violation(when + "; ".join(wrong), results)


def _moved(array):
    """The array with its elements in another place."""
    return np.roll(array.reshape(-1), 1).reshape(array.shape) if array.size else array
