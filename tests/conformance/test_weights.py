"""Weights of a real model: what each operation makes of a matrix, and NF4 beside bitsandbytes on every one of them.

REFPEFT_SMOLLM2 names SmolLM2-135M-Instruct.Q4_1.gguf (211 matrices, 134,479,872 weights).
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from refpeft import assert_conforms, golden, plugins
from refpeft.formats import safetensors
from refpeft.formats.weights import matrices
from refpeft.numerics.formats import as_format, store
from refpeft.numerics.precision import standard_precision
from refpeft.operation import CATALOGUE, catalogue, find, operation
from refpeft.problem import Problem
from refpeft_conformance.checks import weights
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.faults import Faulty, faults
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import ERROR, FAIL, PASS

MODEL = os.environ.get("REFPEFT_SMOLLM2", "")
real_model = pytest.mark.skipif(not MODEL, reason="REFPEFT_SMOLLM2 is not the path of a GGUF file")

TAKING = {
    "nn.linear",
    "lora.linear",
    "lora.embedding",
    "lora.merge",
    "lora.unmerge",
    "qlora.linear",
    "nf4.quantize",
    "nf4.dequantize",
    "nf4.offset",
    "nf4.double_quantize",
    "nf4.double_dequantize",
}


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    """A file of three matrices, one of them square."""
    path = tmp_path / "model.safetensors"
    safetensors.save(path, {"q": normal(12, 8), "k": normal(8, 8), "embedding": normal(300, 8)})
    return str(path)


@pytest.fixture(scope="module")
def torch_backend():
    pytest.importorskip("torch")
    return plugins.backend("torch")


def examined(operation, dtype, spec, backend):
    """Verdicts on a backend."""
    subject = Subject(backend)
    return [
        run(check, subject, profile="quick", random_seed=0) for check in weights.checks(find(operation), dtype, spec)
    ]


def test_layers_and_quantisers_take_a_real_weight():
    """Those with a weight, a merged weight, or what quantisation makes of one; a kernel of four axes is no matrix."""
    taking = {n for n, o in catalogue().items() if list(weights.checks(o, "float32", ""))}
    assert taking >= TAKING
    assert not taking & {"lora.delta", "lora.scaling", "lora.conv2d"}


def test_every_direction_is_claimed_but_in_float64():
    """Outputs, and gradients where the operation has any; no model is stored in float64."""
    claims = [c.claim for c in weights.checks(find("lora.linear"), "bfloat16", "")]
    assert claims == [
        f"{w} within budget on up to 256 rows of each matrix of a real model" for w in ("outputs", "gradients")
    ]
    assert len(list(weights.checks(find("nf4.quantize"), "bfloat16", ""))) == 1
    assert not list(weights.checks(find("lora.linear"), "float64", ""))


@pytest.mark.parametrize("name", sorted(TAKING))
def test_torch_passes_on_each_matrix(name, model, torch_backend):
    """Each matrix is an example of each claim."""
    for verdict in examined(name, "float32", model, torch_backend):
        assert verdict.verdict == PASS, verdict.message
        assert verdict.observation.examples == 3


def test_a_quantiser_sees_every_element(monkeypatch):
    """The bands of a matrix, one after the other, are the matrix; a block never crosses from one to the next."""
    monkeypatch.setattr(weights, "BAND", 4096)
    matrix = normal(300, 37)
    parts = list(weights.problems(find("nf4.quantize"), "q", matrix, standard_precision("float32"), gradients=False))
    assert len(parts) == 3
    np.testing.assert_array_equal(np.concatenate([p.inputs["weight"] for p in parts]), matrix.reshape(-1))


def test_a_layer_sees_rows_from_the_first_to_the_last():
    """All of a small matrix; 256 distinct ones of a large matrix."""
    small, large = normal(12, 8), normal(1000, 8)
    (problem,) = weights.problems(find("nn.linear"), "q", small, standard_precision("float32"), gradients=False)
    np.testing.assert_array_equal(problem.inputs["weight"], small)
    (problem,) = weights.problems(find("nn.linear"), "q", large, standard_precision("float32"), gradients=True)
    seen = problem.inputs["weight"]
    assert seen.shape == (256, 8)
    assert len(np.unique(seen, axis=0)) == 256
    np.testing.assert_array_equal(seen[[0, -1]], large[[0, -1]])
    assert set(problem.cotangents) == {"dy"}


def test_what_quantisation_made_comes_from_the_matrix():
    """qlora.linear gets the codes and maxima of the matrix itself, at the block size that was drawn."""
    matrix = normal(12, 64)
    (problem,) = weights.problems(find("qlora.linear"), "q", matrix, standard_precision("bfloat16"), gradients=False)
    weight = store(matrix.astype(np.float64), as_format("bfloat16")).reshape(-1)
    blocks = {"blocksize": problem.attributes["blocksize"]}
    quantised = golden.stored(Problem.of("nf4.quantize", {"weight": weight}, blocks))
    np.testing.assert_array_equal(problem.inputs["packed"], quantised["packed"])
    np.testing.assert_array_equal(problem.inputs["absmax"], quantised["absmax"])


def test_equal_names_give_equal_problems():
    """So a certificate's sample can be run again; another name gives other inputs and attributes."""
    matrix = normal(12, 8)
    one, again, other = (
        next(weights.problems(find("lora.linear"), name, matrix, standard_precision("float32"), gradients=True))
        for name in "aab"
    )
    assert one.attributes == again.attributes
    np.testing.assert_array_equal(one.inputs["x"], again.inputs["x"])
    assert not np.array_equal(one.inputs["x"], other.inputs["x"])


def test_rows_and_columns_that_are_products_are_divided():
    """As for a Kronecker product of left (p, q) and right (u, v): what else an operation takes is drawn to fit."""

    @operation("toy.product", "weight[o,i] left[p,q] right[u,v] -> y[o,i] where o = p*u, i = q*v")
    def product(weight, left, right):
        return weight

    del CATALOGUE["toy.product"]
    (problem,) = weights.problems(product, "q", normal(14, 22), standard_precision("float32"), gradients=False)
    left, right = problem.inputs["left"].shape, problem.inputs["right"].shape
    assert (left[0] * right[0], left[1] * right[1]) == (14, 22)
    assert min(left) > 1


def test_a_problem_without_a_finite_budget_is_drawn_again(monkeypatch):
    """With other attributes; where none has one, the matrix is left out."""
    tried = []

    def answer(problem, precision):
        tried.append(problem.attributes["scaling"])
        raise golden.BudgetError("a result may overflow")

    monkeypatch.setattr(weights, "answer", answer)
    assert not list(
        weights.problems(find("lora.linear"), "q", normal(4, 4), standard_precision("float16"), gradients=False)
    )
    assert len(set(tried)) > 1


def test_a_matrix_that_the_dtype_cannot_hold_is_left_out():
    """1e5 is beyond float16."""
    matrix = normal(12, 8) * np.float32(1e5)
    assert not list(weights.problems(find("nn.linear"), "q", matrix, standard_precision("float16"), gradients=False))
    assert list(weights.problems(find("nn.linear"), "q", matrix, standard_precision("bfloat16"), gradients=False))


def test_a_matrix_that_is_not_finite_is_an_error_that_names_it(tmp_path):
    """The model is at fault, not the backend."""
    path = tmp_path / "model.safetensors"
    safetensors.save(path, {"good": normal(4, 4), "broken": np.full((4, 4), np.nan, np.float32)})
    (verdict,) = examined("nf4.quantize", "float32", str(path), plugins.backend("reference"))
    assert verdict.verdict == ERROR
    assert "the matrix 'broken' must be finite, but holds NaN or infinity" in verdict.message


def test_a_mistake_is_found_on_a_real_weight_and_replays(model, tmp_path):
    """The counterexample is minimal, and its check is found again without the model."""
    honest = plugins.backend("reference")
    faulty = Faulty(honest, faults()["scaling lost"])
    verdict = examined("lora.linear", "float32", model, faulty)[0]
    assert verdict.verdict == FAIL
    assert verdict.minimal
    saved = Counterexample.load(Counterexample.of(verdict, "reference", "scaling lost").save(tmp_path))
    assert saved.replay(Subject(faulty)) == (verdict.message, True)
    assert saved.replay(Subject(honest)) == ("", False)


@pytest.fixture(scope="module")
def bnb():
    """bitsandbytes' functions, on one thread."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is the peer of these tests")
    from bitsandbytes import functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield functional
    torch.set_num_threads(threads)


def quantised(weight, operation="nf4.quantize", **attributes):
    """Codes and maxima of a matrix as bitsandbytes' variant has them, in bands, so that the embedding fits."""
    flat = weight.reshape(-1)
    bands = [flat[start : start + weights.BAND] for start in range(0, flat.size, weights.BAND)]
    attributes["variant"] = "bitsandbytes-cpu"
    results = [golden.stored(Problem.of(operation, {"weight": band}, attributes)) for band in bands]
    return tuple(np.concatenate([r[name] for r in results]) for name in results[0])


def to_torch(array):
    torch = pytest.importorskip("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@real_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_codes_and_maxima_of_every_matrix_equal_bitsandbytes_bit_by_bit(bnb, dtype):
    """And in float32 the doubly quantised state, under bitsandbytes' variant and given its offset, which conforms too."""
    count = weighed = 0
    for name, matrix in matrices(MODEL):
        weight = np.array(matrix) if dtype == "float32" else store(matrix.astype(np.float64), as_format(dtype))
        theirs, state = bnb.quantize_4bit(to_torch(weight), blocksize=64, quant_type="nf4")
        packed, absmax = quantised(weight)
        np.testing.assert_array_equal(packed, theirs.numpy().reshape(-1), err_msg=name)
        np.testing.assert_array_equal(absmax.view(np.uint32), state.absmax.numpy().view(np.uint32), err_msg=name)
        if dtype == "float32":
            nested_state_agrees(bnb, to_torch(weight), absmax, name)
        count, weighed = count + 1, weighed + weight.size
    assert (count, weighed) == (211, 134_479_872)


def nested_state_agrees(bnb, weight, absmax, name):
    """Second-level codes, second-level maxima and decoded maxima; the offset within the budget of the mean."""
    _, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    offset = state.offset.numpy()
    inputs, variant = {"absmax": absmax, "offset": offset}, {"variant": "bitsandbytes-cpu"}
    nested = golden.stored(Problem.of("nf4.double_quantize", inputs, variant))
    np.testing.assert_array_equal(nested["codes"], state.absmax.numpy(), err_msg=name)
    np.testing.assert_array_equal(nested["absmax2"], state.state2.absmax.numpy(), err_msg=name)
    decoded = golden.stored(Problem.of("nf4.double_dequantize", nested | {"offset": offset}, {}))["absmax"]
    theirs = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    np.testing.assert_array_equal(decoded, theirs.numpy(), err_msg=name)
    assert_conforms("nf4.offset", offset, absmax=absmax)


@real_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("format", ["fp4", "dynamic8, signed", "dynamic8, unsigned"])
def test_other_formats_of_every_matrix_equal_bitsandbytes_bit_by_bit(bnb, format, dtype):
    """FP4 in blocks of 64, and the dynamic maps in blocks of 256, of magnitudes where there is no sign."""
    signed, weighed = not format.endswith("unsigned"), 0
    for name, matrix in matrices(MODEL):
        weight = store((matrix if signed else np.abs(matrix)).astype(np.float64), as_format(dtype))
        if format == "fp4":
            theirs, state = bnb.quantize_4bit(to_torch(weight), blocksize=64, quant_type="fp4")
            codes, absmax = quantised(weight, "fp4.quantize", blocksize=64)
        else:
            code = bnb.create_dynamic_map(signed=signed)
            theirs, state = bnb.quantize_blockwise(to_torch(weight), code=code, blocksize=256)
            codes, absmax = quantised(weight, "dynamic8.quantize", blocksize=256, signed=signed)
        np.testing.assert_array_equal(codes, theirs.numpy().reshape(-1), err_msg=name)
        np.testing.assert_array_equal(absmax.view(np.uint32), state.absmax.numpy().view(np.uint32), err_msg=name)
        weighed += weight.size
    assert weighed == 134_479_872


@real_model
@pytest.mark.parametrize("name", sorted(TAKING))
def test_torch_passes_on_a_block_of_a_real_model(name, torch_backend):
    """The seven matrices of the first block, in every dtype that the operation has; `certify --weights` takes them all."""
    for dtype in find(name).dtypes:
        for verdict in examined(name, dtype, MODEL + ":blk.0.*", torch_backend):
            assert verdict.verdict == PASS, verdict.message
            assert verdict.observation.examples == 7
