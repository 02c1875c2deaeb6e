"""Updates from frequencies and wavelets: against peft's own layers, and what their coefficients mean."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft import assert_conforms
from refpeft.errors import AttributeValueError, DomainError
from refpeft.methods import FourierFT, WaveFT
from refpeft.operation import find
from refpeft.ops import fourierft, waveft
from refpeft.wavelets import LOW, high

SHAPES = [(4, 4, 5), (6, 4, 3), (5, 7, 35), (1, 8, 2), (8, 1, 1)]


def arrays(o, i, k, dtype, seed=0):
    """Inputs of a layer with a bias, and a cotangent."""
    random = np.random.default_rng(seed)
    shapes = {"x": (3, i), "weight": (o, i), "values": (k,), "bias": (o,), "dy": (3, o)}
    return {n: random.normal(size=s).astype(dtype) for n, s in shapes.items()}


def adapted(config, values, parameter: str, trains: str = "values"):
    """peft's layer with these weights, its output and gradients by refpeft's names."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    o, i = values["weight"].shape
    tensors = {n: torch.from_numpy(a.copy()) for n, a in values.items()}
    base = torch.nn.Sequential(torch.nn.Linear(i, o, dtype=tensors["x"].dtype))
    base[0].weight.data, base[0].bias.data = tensors["weight"], tensors["bias"]
    layer = peft.get_peft_model(base, config, autocast_adapter_dtype=False).base_model.model[0]
    trained = getattr(layer, parameter)["default"]
    trained.data = tensors[trains]
    x = tensors["x"].requires_grad_()
    y = layer(x)
    y.backward(tensors["dy"])
    results = {"y": y, "dx": x.grad, f"d{trains}": trained.grad}
    return layer, {n: a.detach().numpy() for n, a in results.items()}


def merged(layer) -> np.ndarray:
    """The base weight after peft's merge."""
    layer.merge()
    return layer.get_base_layer().weight.detach().numpy()


def drawn_by_peft(o, i, k, seed=777) -> np.ndarray:
    """The places that peft draws, as the pages say."""
    torch = pytest.importorskip("torch")
    return torch.randperm(o * i, generator=torch.Generator().manual_seed(seed))[:k].numpy()


@pytest.mark.parametrize(("o", "i", "k"), SHAPES)
def test_peft_fourierft_agrees_within_the_float32_budget(o, i, k):
    """Forward, gradients, and the merged weight, with the places that peft draws from its seed."""
    peft = pytest.importorskip("peft")
    values = arrays(o, i, k, np.float32)
    config = peft.FourierFTConfig(target_modules=["0"], n_frequency=k, scaling=150.0)
    layer, results = adapted(config, values, "fourierft_spectrum")
    values["places"] = drawn_by_peft(o, i, k)
    assert_conforms("fourierft.linear", results, **values, scaling=150.0)
    inputs = {n: values[n] for n in ("weight", "values", "places")}
    assert_conforms("fourierft.merge", merged(layer), **inputs, scaling=150.0)


def test_one_frequency_is_one_cosine():
    """The coefficient of row 1, column 2 of a 4 by 6 spectrum: s / 24 cos(2 pi (m / 4 + 2 n / 6))."""
    weight = np.zeros((4, 6))
    merged = find("fourierft.merge")(weight, np.ones(1), np.array([1 * 6 + 2]), scaling=24.0)
    m, n = np.ogrid[:4, :6]
    np.testing.assert_allclose(merged, np.cos(2 * np.pi * (m / 4 + 2 * n / 6)), atol=1e-14)


def test_a_place_that_comes_twice_is_refused():
    """It would be added up by one implementation and written over by another."""
    weight, places = np.zeros((2, 2), np.float32), np.array([1, 3, 1])
    with pytest.raises(DomainError, match="places must be distinct, but 1 comes 2 times"):
        assert_conforms(
            "fourierft.merge", weight, weight=weight, values=np.ones(3, np.float32), places=places, scaling=1.0
        )


def test_fourierft_starts_as_configured():
    """Drawn coefficients at distinct places, or zeros; never more than the weight has elements."""
    random, weight = np.random.default_rng(0), np.zeros((6, 5))
    parameters = FourierFT(frequencies=30).init(random, weight)
    assert sorted(parameters["places"]) == list(range(30))
    assert np.all(parameters["values"] != 0)
    assert not np.any(FourierFT(frequencies=7, start="zero").init(random, weight)["values"])
    with pytest.raises(AttributeValueError, match="at most the weight's 30 elements, but 31 came"):
        FourierFT(frequencies=31).init(random, weight)
    with pytest.raises(AttributeValueError, match="start must be 'normal' or 'zero'"):
        FourierFT(start="ones")
    assert fourierft.count(k=7) == FourierFT(frequencies=7).count(6, 5) == 7


AS_IN_PEFT = [name for name in LOW if name not in ("db3", "coif4", "coif5")]


@pytest.mark.parametrize("wavelet", AS_IN_PEFT)
def test_peft_waveft_agrees_within_the_float64_budget(wavelet):
    """Forward, gradients and merge, with the places that peft draws, for each wavelet that it has right."""
    peft = pytest.importorskip("peft")
    for o, i, k in SHAPES:
        values = arrays(o, i, k, np.float64)
        options = {"n_frequency": k, "scaling": 25.0, "wavelet_family": wavelet}
        layer, results = adapted(peft.WaveFTConfig(target_modules=["0"], **options), values, "waveft_spectrum")
        values["places"] = drawn_by_peft(o, i, k)
        assert_conforms("waveft.linear", results, **values, scaling=25.0, wavelet=wavelet)
        inputs = {n: values[n] for n in ("weight", "values", "places")}
        assert_conforms("waveft.merge", merged(layer), **inputs, scaling=25.0, wavelet=wavelet)


@pytest.mark.parametrize("wavelet", LOW)
def test_each_filter_is_an_orthogonal_wavelets(wavelet):
    """Orthonormal to its shifts by two and to its high-pass companion, which has the vanishing moments of its name."""
    low, kind, order = np.array(LOW[wavelet]), wavelet.rstrip("0123456789"), int(wavelet.lstrip("dbsymcoif"))
    assert len(low) == (6 if kind == "coif" else 2) * order
    for shift in range(0, len(low), 2):
        assert abs(low[shift:] @ low[: len(low) - shift] - (shift == 0)) < 1e-11
        assert abs(low[shift:] @ np.array(high(LOW[wavelet]))[: len(low) - shift]) < 1e-11
    assert abs(np.sum(low) - np.sqrt(2)) < 1e-14
    for moment in range((2 if kind == "coif" else 1) * order):
        terms = np.linspace(-1, 1, len(low)) ** moment * high(LOW[wavelet])
        assert abs(np.sum(terms)) < 1e-8


def test_the_filters_are_those_of_pywavelets():
    """Number for number, and the high-pass companion too."""
    pywt = pytest.importorskip("pywt")
    for name, low in LOW.items():
        assert tuple(pywt.Wavelet(name).rec_lo) == low
        assert tuple(pywt.Wavelet(name).rec_hi) == high(low)


@pytest.mark.parametrize(("o", "i"), [(6, 8), (4, 2)])
def test_haars_updates_are_an_orthonormal_basis(o, i):
    """On even sides, where no filter reaches over the edge: all coefficients together give every update once."""
    each = [waveft.delta(np.zeros((o, i)), np.ones(1), np.array([p]), scaling=1.0) for p in range(o * i)]
    np.testing.assert_allclose(np.tensordot(each, each, axes=([1, 2], [1, 2])), np.eye(o * i), atol=1e-15)


def test_the_filter_along_the_rows_goes_by_the_half_of_the_columns():
    """Haar on 4 by 4: the coefficient of row 0, column 2 changes its sign down the rows, that of row 2, column 0 across."""
    right, lower = (
        waveft.delta(np.zeros((4, 4)), np.ones(1), np.array([p]), scaling=2.0)[:2, :2] for p in (0 * 4 + 2, 2 * 4 + 0)
    )
    np.testing.assert_allclose(right, [[1, 1], [-1, -1]])
    np.testing.assert_allclose(lower, [[1, -1], [1, -1]])


def test_waveft_is_configured():
    """A known wavelet, no more coefficients than elements."""
    weight = np.zeros((6, 5))
    parameters = WaveFT(coefficients=30, wavelet="sym4").init(np.random.default_rng(0), weight)
    assert sorted(parameters["places"]) == list(range(30))
    assert not np.any(parameters["values"])
    assert WaveFT(wavelet="coif5").attributes() == {"scaling": 25.0, "wavelet": "coif5"}
    with pytest.raises(AttributeValueError, match="at most the weight's 30 elements, but 31 came"):
        WaveFT(coefficients=31).init(np.random.default_rng(0), weight)
    with pytest.raises(AttributeValueError, match=r"wavelet must be one of db1, .*, but 'db11' came"):
        WaveFT(wavelet="db11")


@pytest.mark.parametrize(("p", "q", "b"), [(2, 3, 4), (1, 1, 5), (3, 2, 1), (2, 1, 16)])
def test_peft_c3a_agrees_within_the_float32_budget(p, q, b):
    """Forward, the gradient to the kernel, and the merged weight; that to x is wrong (docs/findings/peft-c3a.md) for b > 2."""
    peft = pytest.importorskip("peft")
    values = arrays(p * b, q * b, 1, np.float32)
    del values["values"]
    values["kernel"] = np.random.default_rng(1).normal(size=(p, q, b)).astype(np.float32)
    config = peft.C3AConfig(target_modules=["0"], block_size=b)
    layer, results = adapted(config, values, "c3a_kernel", "kernel")
    if b > 2:
        with pytest.raises(AssertionError, match="dx"):
            assert_conforms("c3a.linear_fft", {"dx": results.pop("dx")}, **values, normalised=True)
    assert_conforms("c3a.linear_fft", results, **values, normalised=True)
    inputs = {n: values[n] for n in ("weight", "kernel")}
    assert_conforms("c3a.merge_fft", merged(layer), **inputs, normalised=True)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("name", "inputs"), [("linear", ("x", "weight", "kernel")), ("merge", ("weight", "kernel"))])
def test_c3a_is_the_same_by_transforms_and_by_sums(name, inputs, normalised):
    """In float64, outputs and gradients: the two sources share no line."""
    random = np.random.default_rng(0)
    shapes = {"x": (2, 3, 15), "weight": (10, 15), "kernel": (2, 3, 5), "dy": (2, 3, 10), "dmerged": (10, 15)}
    values = {n: random.normal(size=s) for n, s in shapes.items()}
    given, attributes = [values[n] for n in inputs], {"normalised": normalised}
    cotangent = values["dy" if name == "linear" else "dmerged"]
    one, two = find(f"c3a.{name}"), find(f"c3a.{name}_fft")
    np.testing.assert_allclose(one.forward(*given, **attributes), two.forward(*given, **attributes), atol=1e-13)
    for first, second in zip(
        one.backward(cotangent, *given, **attributes), two.backward(cotangent, *given, **attributes)
    ):
        np.testing.assert_allclose(first, second, atol=1e-13)
