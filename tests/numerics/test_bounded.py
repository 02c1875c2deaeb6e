"""Bounded: what it proves holds for every admitted algorithm, and some algorithms come close to it.

Each claim is put to machines drawn at random (`machine.Machine`) on inputs meant to break it; the share is the
distance from
the golden value over the bound.
"""

from __future__ import annotations

import numpy as np
import pytest
from machine import Machine, lora

from refpeft.errors import DomainError
from refpeft.golden import answer
from refpeft.numerics import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    TF32,
    Precision,
    as_format,
    rounding_model,
    standard_precision,
    store,
)
from refpeft.numerics.formats import round_to_format
from refpeft.numerics.interpretations import Bounded, DoubleDouble
from refpeft.numerics.primitives import dropout, erf, fold, round_to, scatter_add, topk, windows
from refpeft.problem import Problem

PRECISIONS = {
    "fp64": standard_precision("fp64"),
    "fp32": standard_precision("fp32"),
    "bf16": standard_precision("bf16"),
    "fp16": standard_precision("fp16"),
    "fp32-tf32": standard_precision("fp32", operands=TF32),
    "fp32-flush": standard_precision("fp32", flush_to_zero=True),
    "fp32-tf32-flush": standard_precision("fp32", operands=TF32, flush_to_zero=True),
    "bf16-flush": standard_precision("bf16", flush_to_zero=True),
    "fp32-splitk": standard_precision("fp32", splits=4),
    "bf16-splitk": standard_precision("bf16", splits=4),
    "fp16-splitk": standard_precision("fp16", splits=4),
    "bf16-in-bf16": Precision(storage=BFLOAT16, accumulation=BFLOAT16),
}
every_precision = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
low_precision = pytest.mark.parametrize(
    "precision", [p for n, p in PRECISIONS.items() if n != "fp64"], ids=[n for n in PRECISIONS if n != "fp64"]
)
KINDS = ("normal", "tiny", "wide", "ties", "big")
MACHINES = 8


def draw(random, shape, format, kind: str) -> np.ndarray:
    """Values that the format holds: usual, near underflow or overflow, over many binades, or made of ties."""
    x = random.normal(size=shape)
    if kind == "wide":
        x = x * 2.0 ** random.integers(-format.emax // 8, format.emax // 8, size=shape)
    if kind == "ties":
        x = np.sign(x) * (1 + random.integers(0, 3, size=shape) * format.unit)
        x = x * 2.0 ** (random.integers(-2, 1, size=shape) * format.precision)
    if kind == "tiny":
        x = x * format.tiny * 2.0 ** random.integers(-5, 6)
    if kind == "big":
        x = np.clip(x, -1, 1) * 2.0 ** (format.emax - random.integers(0, 8) - 2)
    x = np.where(random.random(shape) < 0.1, 0.0, x) * 2.0 ** random.integers(-4, 2)
    return round_to_format(x, format)


def share(got, value, error) -> float:
    """Largest distance over bound; an infinite bound is kept by anything."""
    if isinstance(value, DoubleDouble):
        value = value.hi
    with np.errstate(all="ignore"):
        distance = np.abs(got - value)
        kept = (got == value) | np.isinf(error)
        return float(np.max(np.where(kept, 0.0, np.where(np.isnan(distance), np.inf, distance / error)), initial=0.0))


def held(source, algorithm, precision, *arrays, seed=0, machines=MACHINES) -> float:
    """The worst share of ``algorithm`` over machines, against ``source`` on Bounded arrays."""
    model = rounding_model(precision)
    with np.errstate(all="ignore"):
        bound = source(*(Bounded.input(a, model) for a in arrays))
        found = [
            share(algorithm(Machine(precision, np.random.default_rng([seed, m])), *arrays), bound.value, bound.error)
            for m in range(machines)
        ]
    return max(found)


@every_precision
def test_lora_and_its_gradients_stay_within_the_bound(precision):
    """Any order, FMA or not, products joined, scaling on either factor or on the product, late or early: all within."""
    random = np.random.default_rng(7)
    format, worst, finite = precision.storage, 0.0, 0
    for trial in range(25):
        n, i, o, r = (int(v) for v in random.choice([1, 2, 3, 5, 9], 4))
        shapes = {"x": (n, i), "weight": (o, i), "a": (r, i), "b": (o, r), "bias": (o,), "dy": (n, o)}
        kind, chosen = KINDS[trial % len(KINDS)], random.choice(list(shapes), 2)
        everywhere = kind in ("wide", "ties")
        arrays = {
            k: draw(random, s, format, kind if everywhere or k in chosen else "normal") for k, s in shapes.items()
        }
        scaling = float(random.choice([1.0, 0.1, 3.7, 16.0, -0.6, 1 / 16, 100.0]))
        inputs = {k: store(v, format) for k, v in arrays.items()}
        dy = inputs.pop("dy")
        with np.errstate(all="ignore"):
            problem = Problem.of("lora.linear", inputs, {"scaling": scaling}, {"dy": dy})
            golden = answer(problem, precision, finite=False)
            for m in range(MACHINES):
                results = lora(Machine(precision, np.random.default_rng([trial, m])), **arrays, scaling=scaling)
                for name, got in results.items():
                    finite += int(np.sum(np.isfinite(golden[name].budget)))
                    excess = share(got - golden[name].rest, golden[name].value, golden[name].budget)
                    worst = max(worst, excess)
                    assert excess <= 1, (name, kind, scaling, excess)
    assert worst > 0.1
    assert finite > 1000


def test_a_late_scaling_cannot_hide_an_underflow():
    """s (h Bᵀ) loses to underflow before s enlarges it; (s h) Bᵀ does not. Both are lora.linear, as torch and peft
    write it.
    """
    precision, tiny = PRECISIONS["fp32"], FLOAT32.tiny
    x, a, b = (np.full((1, 1), v) for v in (tiny, 1.0, 1.5 * 2.0**-24))
    model = rounding_model(precision)
    bound = (Bounded.scalar(100.0, model) * (Bounded.input(x, model) @ Bounded.input(a, model))) @ Bounded.input(
        b, model
    )
    machine = Machine(precision, np.random.default_rng(0))
    late = machine.kept(100.0 * machine.kept(machine.kept(x @ a) @ b))
    assert share(late, bound.value, bound.error) <= 1
    assert share(late, bound.value, np.full((1, 1), 4 * FLOAT32.subnormal)) > 1


@every_precision
@pytest.mark.parametrize("kind", KINDS)
def test_single_primitives_stay_within_the_bound(precision, kind):
    """Sums, products, quotients and roots, elementwise and contracted."""
    random = np.random.default_rng(KINDS.index(kind))
    format = precision.storage
    for trial in range(4):
        x, y = (draw(random, (3, 17), format, kind) for _ in range(2))
        pairs = (
            (lambda a, b: a + b, lambda m, a, b: m.stored(a + b)),
            (lambda a, b: a - b, lambda m, a, b: m.stored(a - b)),
            (lambda a, b: a * b, lambda m, a, b: m.stored(a * b)),
            (lambda a, b: a / b, lambda m, a, b: m.stored(a / b)),
            (lambda a, b: np.sqrt(np.absolute(a)), lambda m, a, b: m.stored(np.sqrt(np.abs(a)))),
            (lambda a, b: a.sum(axis=0), lambda m, a, b: m.stored(m.total(list(a)))),
            (lambda a, b: a @ b.T, lambda m, a, b: m.stored(m.total(m.terms(a, b.T)))),
        )
        for source, algorithm in pairs:
            assert held(source, algorithm, precision, x, y, seed=trial, machines=4) <= 1


@low_precision
def test_elementary_functions_as_wrong_as_declared_stay_within_the_bound(precision):
    """exp, log, tanh, sin, cos, erf, each off by ``elementary_ulps`` of an argument that has an error itself, down to
    subnormals.
    """
    random = np.random.default_rng(0)
    x = round_to_format(
        np.concatenate([random.normal(size=40) * 4, [-87.5, -90.0, -100.0, -9.7, -15.0, 0.0]]), precision.storage
    )
    y = round_to_format(random.normal(size=46), precision.storage)
    for name in ("exp", "tanh", "sin", "cos", "erf", "log"):
        function = erf if name == "erf" else getattr(np, name)
        z = np.abs(x) + 0.25 if name == "log" else x

        def source(a, b, function=function):
            return function(a * b + a)

        def algorithm(m, a, b, function=function):
            return m.stored(m.elementary(function(m.operation(m.operation(a * b) + a))))

        z = round_to_format(z, precision.storage)
        assert held(source, algorithm, precision, z, np.abs(y)) <= 1


@low_precision
def test_a_softmax_stays_within_the_bound(precision):
    """Subtract the maximum, exponentiate, divide by the sum: the chain of attention."""
    random = np.random.default_rng(1)
    x = round_to_format(random.normal(size=(4, 9)) * 3, precision.storage)

    def source(a):
        e = np.exp(a - a.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def algorithm(m, a):
        e = m.elementary(np.exp(m.operation(a - a.max(axis=-1, keepdims=True))))
        return m.stored(e / m.operation(m.total(list(e.T)))[:, None])

    assert 0 < held(source, algorithm, precision, x, machines=20) <= 1


@low_precision
def test_a_division_near_zero_is_covered_or_infinite(precision):
    """A divisor that its error may bring to zero has no finite bound; one just beyond has a wide one that holds."""
    one, unit = np.ones(1), precision.storage.unit
    x = round_to_format(np.array([1 + 4 * unit, 1 + 40 * unit, 1 + 400 * unit]), precision.storage)

    def source(a):
        return a / (a * a - a)

    def algorithm(m, a):
        return m.stored(a / m.operation(m.operation(a * a) - a))

    assert held(source, algorithm, precision, x, machines=20) <= 1
    model = rounding_model(precision)
    near = Bounded(one * 0.5, one * 0.5, model)
    with np.errstate(all="ignore"):
        assert np.isinf((Bounded.input(one, model) / near).error)
        assert np.isinf(np.sqrt(Bounded(one, one * 1.25, model)).error)
        assert np.isinf(np.log(near).error)
        assert np.isfinite((Bounded.input(one, model) / Bounded(one * 0.5, one * 0.25, model)).error)


MOVES = {
    "reshape": lambda v: v.reshape(1, 1, 1),
    "transpose": lambda v: v.T,
    "getitem": lambda v: v[0, :, None],
    "concatenate": lambda v: np.concatenate([v, v], axis=0)[1:],
    "negative": lambda v: -v,
    "a number": lambda v: 2.0 * v,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16-in-bf16"])
def test_an_addend_may_start_the_accumulator_wherever_it_is_added(name, move):
    """A contraction that is moved, negated or scaled before a bias joins it is still one sum with it.

    The accumulator starts with one, and each product of half an ulp is lost: as many roundings as there are products,
    none of which the separate sum would make.
    """
    precision, terms = PRECISIONS[name], 40
    unit = precision.storage.unit
    row, column, bias = np.full((1, terms), 1.0), np.full((terms, 1), unit / 2), np.ones((1, 1))
    machine = Machine(precision, np.random.default_rng(0))
    machine.order, machine.fused = "sequential", False
    moved = move(np.full((1, 1), 1.0)).reshape(())
    sign, number = np.sign(moved), np.abs(moved)
    got = machine.total([sign * number * bias, *(number * sign * t for t in machine.terms(row, column))])
    model = rounding_model(precision)
    bound = move(Bounded.input(row, model) @ Bounded.input(column, model)) + Bounded.input(sign * number * bias, model)
    value = bound.value.hi if isinstance(bound.value, DoubleDouble) else bound.value
    assert share(got.reshape(()), value.reshape(()), bound.error.reshape(())) <= 1
    assert np.abs(got.reshape(()) - value.reshape(())) > 10 * unit


def test_a_partial_sum_that_overflows_has_no_finite_bound():
    """(a + b) + c stays finite, a + c does not; and split-K stores partial sums that the whole never reaches."""
    model = rounding_model(PRECISIONS["fp32"])
    a, b, c = (Bounded.input(np.array([v * FLOAT32.max]), model) for v in (0.75, -0.75, 0.75))
    assert np.isinf(((a + b) + c).error)
    assert np.isfinite((a + b).error)
    top = Bounded.input(np.array([[0.4 * FLOAT32.max, -0.4 * FLOAT32.max, 0.75 * FLOAT32.max]]), model)
    ones = Bounded.input(np.ones((3, 1)), model)
    cancelling, large = top[:, :2] @ ones[:2], top[:, 2:] @ ones[2:]
    assert np.isfinite(cancelling.error)
    assert np.isfinite(large.error)
    assert np.isinf((cancelling + large).error)
    row, column = np.array([[1.0, 1.0, -1.0, -1.0]]), np.full((4, 1), 60000.0)
    for precision, finite in ((PRECISIONS["fp16"], True), (PRECISIONS["fp16-splitk"], False)):
        model = rounding_model(precision)
        product = Bounded.input(row, model) @ Bounded.input(column, model)
        assert np.isfinite(product.error) == finite


@every_precision
def test_a_result_that_may_overflow_has_no_finite_bound(precision):
    """Three quarters of the largest finite number twice, and anything whose computed value may pass the largest."""
    model, largest = rounding_model(precision), precision.storage.max
    top = Bounded.input(np.array([0.75 * largest]), model)
    with np.errstate(all="ignore"):
        assert np.isinf((top + top).error)
        assert np.isinf((top * 2.0).error)
        assert np.isinf(np.exp(Bounded.input(np.array([800.0]), model)).error)
        assert np.isfinite((top * 0.25).error)
        assert np.isinf(
            Bounded(np.array([largest]), np.array([largest / 4]), model).stored(np.array([largest]), largest / 4).error
        )


def test_scaling_late_may_overflow_where_scaling_early_does_not():
    """In fp16, s (h B) overflows in h B although (s h) B is small: that order is admitted, so there is no finite
    bound.
    """
    model = rounding_model(PRECISIONS["fp16"])
    h, b = (Bounded.input(np.full((1, 1), 300.0), model) for _ in range(2))
    assert np.isinf(((Bounded.scalar(1 / 16, model) * h) @ b).error)
    assert np.isfinite(((Bounded.scalar(1 / 16, model) * h) @ (b * np.full((1, 1), 0.25))).error)


def test_a_reciprocal_in_dropout_is_covered():
    """x * (1 / keep), as torch does it, errs twice: in bfloat16 it leaves what x / keep alone may lose."""
    for precision in (PRECISIONS["fp32"], PRECISIONS["bf16"]):
        random = np.random.default_rng(3)
        x, mask, keep = draw(random, (200,), precision.storage, "normal"), random.random(200) < 0.9, 0.9
        machine = Machine(precision, random)
        inverse = machine.stored(1 / round_to_format(keep, precision.accumulation))
        got = np.where(mask, machine.stored(x * inverse), 0.0)
        model = rounding_model(precision)
        bound = dropout(Bounded.input(x, model), mask, Bounded.scalar(keep, model))
        divided = Bounded.input(x, model) / Bounded.scalar(keep, model)
        assert share(got, bound.value, bound.error) <= 1
        if precision.storage is BFLOAT16:
            assert share(got, np.where(mask, divided.value, 0.0), divided.error) > 1


@low_precision
def test_scatter_and_fold_stay_within_the_bound(precision):
    """Sums that meet by index or by overlapping windows, in any order."""
    random = np.random.default_rng(4)
    values, index = draw(random, (12, 3), precision.storage, "ties"), np.array([0, 2, 0, 0, 2, 0, 0, 2, 2, 0, 0, 0])

    def scattered(m, v):
        rows = [m.total([*v[index == j]]) if np.any(index == j) else np.zeros(3) for j in range(3)]
        return m.stored(np.stack(rows))

    assert held(lambda v: scatter_add(v, index, 3), scattered, precision, values, machines=20) <= 1
    patches = draw(random, (3, 3, 2, 2), precision.storage, "ties")

    def folded(m, v):
        total = np.zeros((4, 4))
        for p, q in random.permutation([(0, 0), (0, 1), (1, 0), (1, 1)]):
            total[p : p + 3, q : q + 3] = m.kept(total[p : p + 3, q : q + 3] + v[:, :, p, q])
        return m.stored(total)

    assert held(lambda v: fold(v, (4, 4), (1, 1), (1, 1)), folded, precision, patches, machines=20) <= 1


def test_the_worst_case_of_a_sequential_sum_reaches_the_bound():
    """1 + u + u + ... rounds each time by all that it may: the bound is not idle, more than nine tenths of it is
    reached.
    """
    machine = Machine(PRECISIONS["fp32"], np.random.default_rng(0))
    machine.order, machine.fused = "sequential", True
    x, ones = np.full((1, 64), FLOAT32.unit), np.ones((64, 1))
    x[0, 0] = 1.0
    model = rounding_model(PRECISIONS["fp32"])
    bound = Bounded.input(x, model) @ Bounded.input(ones, model)
    assert 0.9 < share(machine.stored(machine.total(machine.terms(x, ones))), bound.value, bound.error) <= 1


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_worst_case_of_lora_comes_near_the_bound(name):
    """A bias of one and a hundred products of u joined to it: errors align through the whole expression."""
    precision = PRECISIONS[name]
    unit, power = precision.accumulation.unit, 2.0**-12
    machine = Machine(precision, np.random.default_rng(0))
    machine.order, machine.fused = "sequential", True
    x, w = np.full((1, 100), power), np.full((1, 100), unit / power)
    x, w = round_to_format(x, precision.storage), round_to_format(w, precision.storage)
    bias = np.ones(1)
    terms = [bias[None, :], *machine.terms(x, w.T)]
    model = rounding_model(precision)
    bound = Bounded.input(x, model) @ Bounded.input(w.T, model) + Bounded.input(bias, model)
    reached = share(machine.total(terms), bound.value, bound.error)
    assert (0.9 if name == "fp32" else 0.001) < reached <= 1


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_climb_over_inputs_does_not_pass_the_bound(name):
    """Climbing to the inputs with the largest share gets past a fifth of the bound of lora, and stays below it."""
    precision, random = PRECISIONS[name], np.random.default_rng(5)
    format = precision.storage
    model = rounding_model(precision)

    def value(arrays, seed):
        x, w, a, b = arrays
        machine = Machine(precision, np.random.default_rng(seed))
        got = machine.joined([(x, w), (machine.product(x, a), b, 0.75)], [])
        lifted = [Bounded.input(v, model) for v in arrays]
        bound = lifted[0] @ lifted[1] + (Bounded.scalar(0.75, model) * (lifted[0] @ lifted[2])) @ lifted[3]
        return share(got, bound.value, bound.error)

    best, reached = [draw(random, s, format, "ties") for s in ((1, 2), (2, 1), (2, 1), (1, 1))], 0.0
    for _ in range(600):
        trial = [
            round_to_format(v * (1 + (random.random(v.shape) < 0.4) * random.normal(size=v.shape) * 0.3), format)
            for v in best
        ]
        seed = int(random.integers(50))
        found = value(trial, seed)
        assert found <= 1, (trial, seed)
        if found > reached:
            best, reached = trial, found
    assert reached > 0.2


def test_tf32_reads_subnormals_coarsely():
    """A float32 subnormal may vanish in TF32: the operand's own smallest number is in the bound, without flushing
    declared.
    """
    precision = PRECISIONS["fp32-tf32"]
    x, w = np.array([[3 * FLOAT32.subnormal]]), np.array([[2.0**20]])
    model = rounding_model(precision)
    bound = Bounded.input(x, model) @ Bounded.input(w, model)
    got = round_to_format(x, TF32) @ w
    assert got == 0
    assert share(got, bound.value, bound.error) <= 1


def test_split_k_in_float16_may_underflow_in_every_part():
    """Each stored partial sum rounds to float16's coarse subnormals; four of them lose more than one rounding."""
    precision = PRECISIONS["fp16-splitk"]
    x, w = np.full((1, 4), 2.0**-13), np.full((4, 1), 2.0**-12)
    model = rounding_model(precision)
    bound = Bounded.input(x, model) @ Bounded.input(w, model)
    assert share(np.zeros((1, 1)), bound.value, bound.error) <= 1
    once = Bounded.input(x, rounding_model(PRECISIONS["fp16"])) @ Bounded.input(w, rounding_model(PRECISIONS["fp16"]))
    assert share(np.zeros((1, 1)), once.value, once.error) > 1


def test_rounding_as_a_step_moves_a_neighbour_but_not_exact_data():
    """round_to adds nothing where both sides round the same number, an ulp where they need not, infinity where one
    overflows.
    """
    model = rounding_model(PRECISIONS["fp32"])
    exact = Bounded.input(np.array([1.3, 65519.0]), model)
    assert not np.any(round_to(exact, FLOAT16).error)
    tie = Bounded(np.array([1 + 2.0**-11]), np.array([2.0**-30]), model)
    assert round_to(tie, FLOAT16).error >= 2.0**-10
    assert np.isinf(round_to(Bounded(np.array([65519.0]), np.array([2.0]), model), FLOAT16).error)


def test_a_choice_that_errors_could_turn_admits_both_branches():
    """where, maximum and topk near a boundary: the other value lies within; an undetermined selection is refused."""
    model = rounding_model(PRECISIONS["fp32"])
    x = Bounded(np.array([1.0, 1.5]), np.array([0.25, 0.25]), model)
    chosen = np.where(x > 1.125, 10.0, -10.0)
    assert chosen.error[0] >= 20
    assert chosen.error[1] == 0
    assert np.maximum(x, 0.0).error[0] == 0.25
    with pytest.raises(DomainError) as refused:
        topk(x, 1)
    assert (
        str(refused.value)
        == "topk: the 1 largest are not determined within the error of the values they are chosen by."
    )
    assert list(topk(Bounded(np.array([1.0, 2.0]), np.array([0.25, 0.25]), model), 1)) == [1]


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_structural_primitives_move_the_bound_with_the_value(dtype):
    """Where an element goes, its error goes; nothing is added, and zero padding is exact."""
    model = rounding_model(standard_precision(dtype))
    error = np.arange(12.0).reshape(3, 4) / 64
    value = np.arange(12.0).reshape(3, 4)
    x = Bounded(DoubleDouble(value) if model.exact_golden else value, error, model)
    for move in (
        np.transpose,
        np.flip,
        lambda v: np.pad(v, 1),
        lambda v: windows(v, (2, 2), (1, 2), (1, 1)),
        lambda v: v[1:, ::-1],
    ):
        np.testing.assert_array_equal(move(x).error, move(error))


def test_the_golden_value_of_fp64_is_double_double():
    """Where the subject computes in float64 itself, the value is known to 2**-100, so that the bound is the subject's
    alone.
    """
    model = rounding_model(standard_precision(as_format("float64")))
    x = Bounded.input(np.array([0.1]), model)
    assert isinstance((x * x).value, DoubleDouble)
    assert 2.0**-53 * 0.01 <= (x * x).error[0] <= 2.0**-53 * 0.0101
