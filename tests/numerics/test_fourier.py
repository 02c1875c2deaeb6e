"""Transforms, and circular products through them: in double-double, bounded against every algorithm, and where they are exact."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.fft

from refpeft.numerics import TF32, rounding_model, standard_precision
from refpeft.numerics.formats import round_to_format
from refpeft.numerics.fourier import along_last, prime_factors
from refpeft.numerics.interpretations import Bounded, ComplexStep, DoubleDouble, Exact, Inexact, Perturbed
from refpeft.numerics.primitives import circular_matmul, real_ifft2

SINGLE = standard_precision("float32")
SHAPES = [(1, 1), (2, 2), (4, 8), (3, 5), (12, 10), (17, 6), (1, 53), (16, 16), (7, 121), (1, 509)]


def cosines(m: int, n: int) -> np.ndarray:
    """cos(2 pi (p s / m + q t / n)), axes p, q, s, t: the definition's own table."""
    p, q, s, t = np.ogrid[:m, :n, :m, :n]
    return np.cos(2 * np.pi * ((p * s) % m / m + (q * t) % n / n))


def spectra(m: int, n: int, count: int = 12):
    """Dense ones and sparse ones, on different scales."""
    random = np.random.default_rng([m, n])
    for k in range(count):
        x = random.normal(size=m * n) * 2.0 ** random.integers(-8, 9, m * n)
        used = m * n if k % 3 == 0 else int(random.integers(1, 4))
        x[random.permutation(m * n)[used:]] = 0
        yield x.reshape(m, n).astype(np.float32).astype(float)


@pytest.mark.parametrize(("m", "n"), SHAPES[:6])
def test_it_is_the_mean_of_cosines(m, n):
    """As defined, to float64 rounding; and it is its own adjoint."""
    for x in spectra(m, n, 3):
        expected = np.einsum("pq,pqst->st", x, cosines(m, n)) / (m * n)
        assert np.max(np.abs(real_ifft2(x) - expected)) <= 2.0**-44 * np.sum(np.abs(x)) / (m * n)
    table = cosines(m, n).reshape(m * n, m * n)
    np.testing.assert_allclose(table, table.T, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 4), (5, 6), (8, 9)])
def test_double_double_is_good_to_a_hundred_bits(m, n):
    """Against the definition in 160 bits, element by element relative to the sum of magnitudes."""
    x = next(iter(spectra(m, n)))
    got = real_ifft2(DoubleDouble(x))
    with mpmath.workprec(160):
        for s, t in np.ndindex(m, n):
            turns = [[mpmath.mpf(2 * p * s) / m + mpmath.mpf(2 * q * t) / n for q in range(n)] for p in range(m)]
            truth = sum(mpmath.mpf(x[p, q]) * mpmath.cospi(turns[p][q]) for p, q in np.ndindex(m, n)) / (m * n)
            apart = abs(mpmath.mpf(got.hi[s, t]) + mpmath.mpf(got.lo[s, t]) - truth)
            assert apart <= np.sum(np.abs(x)) / (m * n) / mpmath.mpf(2) ** 100


def test_one_axis_of_double_double_takes_a_batch():
    """The transform along the last axis of a stack is that of each of its rows."""
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 12))
    re, im = along_last(DoubleDouble(x), DoubleDouble(y))
    expected = 12 * np.fft.ifft(x + 1j * y)
    np.testing.assert_allclose(re.hi, expected.real, atol=1e-13)
    np.testing.assert_allclose(im.hi, expected.imag, atol=1e-13)


def test_prime_factors_multiply_to_the_number():
    """The smallest first, each as often as it divides."""
    assert prime_factors(1) == []
    assert prime_factors(360) == [2, 2, 2, 3, 3, 5]
    assert prime_factors(4093) == [4093]


def plain_sum(x, order):
    """In float32, one rounding an operation, the terms that are not zero one after another."""
    m, n = x.shape
    table = cosines(m, n).astype(np.float32)
    total = np.zeros((m, n), np.float32)
    for p, q in np.argwhere(x)[::order]:
        total = total + np.float32(x[p, q]) * table[p, q]
    return total / np.float32(m * n)


def axis_by_axis(x):
    """In float32, as two products with matrices of cosines less two with matrices of sines."""
    m, n = x.shape
    turns = [2 * np.pi * (np.multiply.outer(np.arange(k), np.arange(k)) % k) / k for k in (m, n)]
    (c, d), (s, t) = ([f(a).astype(np.float32) for a in turns] for f in (np.cos, np.sin))
    x = x.astype(np.float32) * np.float32(1 / (m * n))
    return (c @ x) @ d - (s @ x) @ t


def by_reals(x):
    """Half the spectrum of a real array, the other half by symmetry; forward, as the real part is the same."""
    m, n = x.shape
    half = np.fft.rfft2(x).real
    s, t = np.ogrid[:m, :n]
    mirror = t > n // 2
    return half[np.where(mirror, -s % m, s), np.where(mirror, n - t, t)] / np.float32(m * n)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_algorithm_stays_within_the_bound(m, n):
    """Fast transforms of NumPy and SciPy in float32, of complex numbers and of reals, primes by convolution among them, plain
    sums in two orders, and one axis after the other; the bound isn't vacuous.
    """
    model = rounding_model(SINGLE)
    for x in spectra(m, n):
        bound, single = real_ifft2(Bounded.input(x, model)), x.astype(np.float32)
        ways = [
            np.fft.ifft2(single).real,
            scipy.fft.ifft2(single).real,
            np.fft.ifft2(single.T).real.T,
            by_reals(single),
        ]
        if m * n <= 300:
            ways += [plain_sum(x, 1), plain_sum(x, -1), axis_by_axis(x)]
        for got in ways:
            assert np.all(np.abs(got - bound.value) <= bound.error)
        assert np.max(bound.error) < 0.01 * np.max(np.abs(bound.value))


@pytest.mark.parametrize("operands", [None, TF32], ids=["fp32", "tf32"])
def test_errors_of_the_spectrum_come_through(operands):
    """Any spectrum within its errors, rounded to TF32 or not, transforms to within the bound."""
    random, model = np.random.default_rng(0), rounding_model(standard_precision("float32", operands=operands))
    x = random.normal(size=(4, 6))
    bound, largest = real_ifft2(Bounded(x, np.full(x.shape, 1e-3), model)), 0.0
    for _ in range(200):
        moved = x + random.choice([-1, 1], x.shape) * 1e-3
        moved = moved if operands is None else round_to_format(moved, operands)
        largest = max(largest, float(np.max(np.abs(real_ifft2(moved) - bound.value) / bound.error)))
    assert 0.05 < largest <= 1


def test_the_bound_is_infinite_where_a_sum_may_overflow():
    """Though the mean does not: an algorithm may divide last."""
    x = np.full((2, 2), 2.0**126)
    assert np.all(np.isinf(real_ifft2(Bounded.input(x, rounding_model(SINGLE))).error))
    assert np.all(np.isfinite(real_ifft2(Bounded.input(x / 4, rounding_model(SINGLE))).error))


def test_a_spectrum_of_zeros_has_no_error():
    """Nothing is added and nothing rounded."""
    assert not np.any(real_ifft2(Bounded.input(np.zeros((3, 5)), rounding_model(SINGLE))).error)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 4), (4, 4), (8, 2), (16, 32), (64, 8)])
def test_quarters_of_powers_of_two_are_exact(m, n):
    """In float32, fast transforms and plain sums with exact cosines all give the same numbers."""
    random = np.random.default_rng([m, n])
    x = np.zeros((m, n))
    x[:: max(1, m // 4), :: max(1, n // 4)] = random.integers(-3, 4, (min(m, 4), min(n, 4)))
    exact = real_ifft2(Exact.input(x, SINGLE))
    single = x.astype(np.float32)
    for got in (np.fft.ifft2(single).real, scipy.fft.ifft2(single).real, np.fft.ifft2(single.T).real.T):
        np.testing.assert_array_equal(got, exact.value)
    table = np.round(cosines(m, n)[x != 0] * 4) / 4
    np.testing.assert_array_equal(np.tensordot(x[x != 0], table, 1) / (m * n), exact.value)


@pytest.mark.parametrize(
    ("shape", "at", "value", "said"),
    [
        ((3, 2), (0, 0), 1.0, "not a power of two"),
        ((8, 2), (1, 0), 1.0, "not a multiple of a quarter"),
        ((2, 16), (0, 6), 1.0, "not a multiple of a quarter"),
        ((2, 2), (0, 1), 2.0**-149, "representable"),
    ],
)
def test_what_some_algorithm_does_not_represent_is_refused(shape, at, value, said):
    """A third, a root of unity with a square root of two in it, a mean below the smallest number."""
    x = np.zeros(shape)
    x[at] = value
    with pytest.raises(Inexact, match=said):
        real_ifft2(Exact.input(x, SINGLE))
    assert not np.any(real_ifft2(Exact.input(0 * x, SINGLE)).value)


def test_partial_sums_that_cancel_are_seen():
    """The sum of all magnitudes counts, not that of the result."""
    x = np.array([[2.0**24, 1.0], [-(2.0**24), 1.0]])
    with pytest.raises(Inexact, match="partial sum"):
        real_ifft2(Exact.input(x, SINGLE))


def test_a_complex_step_is_the_transform_of_the_step():
    """It is linear, and the step's imaginary unit is another than the transform's."""
    x, dx = np.random.default_rng(3).normal(size=(2, 5, 6))
    moved = real_ifft2(ComplexStep.along(x, dx))
    np.testing.assert_allclose(moved.derivative, real_ifft2(dx), rtol=1e-12)
    np.testing.assert_array_equal(moved.value.real, real_ifft2(x))


def test_a_perturbed_transform_moves_within_its_own_rounding():
    """Less than the proven bound, and not at all without a generator."""
    x, model = np.random.default_rng(1).normal(size=(6, 8)), rounding_model(SINGLE, probable=True)
    proven = real_ifft2(Bounded.input(x, rounding_model(SINGLE)))
    moved = real_ifft2(Perturbed.input(x, model, np.random.default_rng(0)))
    still = real_ifft2(Perturbed.input(x, model, None))
    np.testing.assert_array_equal(still.value, proven.value)
    assert 0 < np.max(np.abs(moved.value - still.value)) < np.max(proven.error)


def circulants(b):
    """Each vector of a matrix (k, j, n) as the matrix (k, j, t, s) that convolves with it."""
    n = b.shape[-1]
    return b[..., (np.arange(n) - np.arange(n)[:, None]) % n]


def pairs(i, k, j, n, count=8):
    """Matrices of vectors, on scales of their own, some of them sparse."""
    random = np.random.default_rng([i, k, j, n])
    for c in range(count):
        both = [random.normal(size=s) * 2.0 ** random.integers(-4, 5, s) for s in ((i, k, n), (k, j, n))]
        if c % 2:
            both = [x * (random.random(x.shape) < 0.3) for x in both]
        yield [x.astype(np.float32).astype(float) for x in both]


CIRCLES = [(1, 1, 1, 1), (2, 3, 2, 4), (3, 1, 2, 5), (1, 4, 1, 16), (2, 2, 2, 30), (1, 2, 1, 101)]


@pytest.mark.parametrize(("i", "k", "j", "n"), CIRCLES)
def test_a_circular_product_is_a_sum_of_convolutions(i, k, j, n):
    """As defined, in float64 and, to a hundred bits, in double-double; the complex step is the derivative of the sum."""
    for a, b in pairs(i, k, j, n, 2):
        expected = np.einsum("ikt,kjts->ijs", a, circulants(b))
        size = np.sum(np.abs(a)) * np.max(np.abs(b))
        assert np.max(np.abs(circular_matmul(a, b) - expected)) <= 2.0**-44 * size
        exact = [np.vectorize(mpmath.mpf, otypes=[object])(x) for x in (a, circulants(b))]
        got = circular_matmul(DoubleDouble(a), DoubleDouble(b))
        with mpmath.workprec(160):
            truth = (exact[0][:, :, None, :, None] * exact[1][None]).sum(axis=(1, 3))
            for hi, lo, right in zip(got.hi.flat, got.lo.flat, truth.flat):
                assert abs(mpmath.mpf(hi) + mpmath.mpf(lo) - right) <= size / mpmath.mpf(2) ** 95
        moved = circular_matmul(ComplexStep.along(a, b[:1, :1]), ComplexStep.along(b, 0 * b))
        expected = circular_matmul(0 * a + b[:1, :1], b)
        assert np.max(np.abs(moved.derivative - expected)) <= 2.0**-40 * (np.max(np.abs(expected)) + 1)


@pytest.mark.parametrize(("i", "k", "j", "n"), CIRCLES)
def test_every_way_around_the_circle_stays_within_the_bound(i, k, j, n):
    """In float32: by spectra of reals and of complex numbers, added before or after the transform back, and by plain sums."""
    model = rounding_model(SINGLE)
    for a, b in pairs(i, k, j, n):
        bound = circular_matmul(Bounded.input(a, model), Bounded.input(b, model))
        x, y = a.astype(np.float32), b.astype(np.float32)
        one = np.fft.ifft(np.fft.fft(x)[:, :, None] * np.fft.fft(y)[None]).real
        terms = (x[:, :, None, :, None] * circulants(y)[None]).astype(np.float32)
        ways = [
            circular_matmul(x, y),
            one.sum(axis=1, dtype=np.float32),
            scipy.fft.irfft(np.einsum("ikf,kjf->ijf", scipy.fft.rfft(x), scipy.fft.rfft(y)), n),
            terms.sum(axis=(1, 3), dtype=np.float32),
        ]
        for got in ways:
            assert got.dtype == np.float32
            assert np.all(np.abs(got - bound.value) <= bound.error)
        norms = np.linalg.norm(a, axis=-1) @ np.linalg.norm(b, axis=-1)
        assert np.all(bound.error <= 2.0**-10 * norms[..., None])


def test_errors_of_both_sides_come_around_the_circle():
    """Any vectors within their errors give a product within the bound, however small they are."""
    random, model = np.random.default_rng(0), rounding_model(SINGLE)
    for scale in (1.0, 2.0**-60, 2.0**-500):
        a, b = random.normal(size=(2, 3, 5)) * scale, random.normal(size=(3, 1, 5))
        errors = [np.full(a.shape, 1e-3 * scale), np.full(b.shape, 1e-3)]
        bound, largest = circular_matmul(Bounded(a, errors[0], model), Bounded(b, errors[1], model)), 0.0
        for _ in range(50):
            moved = [x + random.choice([-1, 1], x.shape) * e for x, e in zip((a, b), errors)]
            largest = max(largest, float(np.max(np.abs(circular_matmul(*moved) - bound.value) / bound.error)))
        assert largest <= 1
        assert scale < 2.0**-100 or largest > 0.02


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_around_the_circle_are_exact(n):
    """One, two or four: all transforms and sums give the same numbers; three only where a side is zero."""
    random = np.random.default_rng(n)
    a, b = random.integers(-3, 4, (2, 3, n)).astype(float), random.integers(-3, 4, (3, 2, n)).astype(float)
    exact = circular_matmul(Exact.input(a, SINGLE), Exact.input(b, SINGLE))
    np.testing.assert_array_equal(exact.value, np.einsum("ikt,kjts->ijs", a, circulants(b)))
    three = Exact.input(np.ones((1, 1, 3)), SINGLE)
    with pytest.raises(Inexact, match="neither 1, 2 nor 4"):
        circular_matmul(three, three)
    assert not np.any(circular_matmul(three, Exact.input(np.zeros((1, 1, 3)), SINGLE)).value)
    with pytest.raises(Inexact, match="partial sum"):
        circular_matmul(Exact.input(a * 2.0**12 + 1, SINGLE), Exact.input(b * 2.0**12 + 1, SINGLE))
