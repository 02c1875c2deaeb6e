"""The oracle and `assert_conforms`: one line for other people's tests, and a message that says where and how far."""

from __future__ import annotations

import doctest
import pickle

import numpy as np
import pytest

import refpeft
from refpeft import Problem, assert_conforms, comparison, oracle, plugins
from refpeft.comparison import compare
from refpeft.errors import AttributeValueError, DtypeError, RefpeftError, ShapeError
from refpeft.golden import BudgetError, Golden, answer
from refpeft.numerics import TF32, standard_precision, store
from refpeft.numerics.formats import FORMATS


def arguments(dtype: str = "float32", seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    shapes = {"x": (3, 8), "weight": (5, 8), "a": (2, 8), "b": (5, 2), "dy": (3, 5)}
    return {n: store(random.normal(size=s), FORMATS[dtype]) for n, s in shapes.items()} | {"scaling": 0.5}


def reference(given: dict) -> dict[str, np.ndarray]:
    x, w, a, b, dy = (given[n].astype(np.float64) for n in ("x", "weight", "a", "b", "dy"))
    return {"y": x @ w.T + 0.5 * (x @ a.T) @ b.T, "da": 0.5 * (dy @ b).T @ x}


def failure(*args, **kwargs) -> str:
    with pytest.raises(AssertionError) as failed:
        assert_conforms(*args, **kwargs)
    return str(failed.value)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_golden_value_is_that_of_the_definition(dtype):
    """y and, with a cotangent, every gradient; budgets are positive and far below the values."""
    given = arguments(dtype)
    golden = oracle("lora.linear", **given)
    assert list(golden) == ["y", "dx", "dweight", "da", "db"]
    for name, value in reference(given).items():
        assert np.all(np.abs(golden[name].value - value) <= golden[name].budget)
        assert np.all(golden[name].budget > 0)
        assert golden[name].kind == "proven"
    del given["dy"]
    assert list(oracle("lora.linear", **given)) == ["y"]


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_correct_output_conforms_and_a_wrong_one_does_not(dtype):
    """Rounded once it passes; one element off by an eighth of the largest is found."""
    given, format = arguments(dtype), FORMATS[dtype]
    outputs = {n: store(v, format) for n, v in reference(given).items()}
    assert_conforms("lora.linear", outputs, **given)
    wrong = outputs["y"].astype(np.float64)
    wrong[1, 2] += np.max(np.abs(wrong)) / 8
    message = failure("lora.linear", store(wrong, format), **given)
    assert message.startswith(f"lora.linear ({dtype}) does not conform:\ny[1, 2]: expected ")
    assert f"ulps of {dtype}, but the proven budget is " in message
    assert "(1 of 15 elements outside)" in message


def test_the_message_names_every_output_that_fails():
    """The worst element of each, with what was expected and what came."""
    given = arguments()
    outputs = {n: 2 * store(v, FORMATS["float32"]) for n, v in reference(given).items()}
    lines = failure("lora.linear", outputs, **given).splitlines()
    assert lines[1].startswith("y[")
    assert lines[2].startswith("da[")
    assert "(15 of 15 elements outside)" in lines[1]


def test_a_shape_or_dtype_that_is_not_due_fails():
    """By what it is and what it must be."""
    given = arguments()
    y = store(reference(given)["y"], FORMATS["float32"])
    assert "y is float64[3, 5] but must be float32[3, 5]" in failure("lora.linear", y.astype(np.float64), **given)
    assert "y is float32[15] but must be float32[3, 5]" in failure("lora.linear", y.reshape(-1), **given)


def test_a_call_that_makes_no_sense_is_an_error_not_a_failure():
    """Unknown outputs, none at all, unknown arguments, shapes that don't fit."""
    given = arguments()
    y = store(reference(given)["y"], FORMATS["float32"])
    with pytest.raises(AttributeValueError) as refused:
        assert_conforms("lora.linear", {"z": y}, **given)
    assert str(refused.value) == "lora.linear: unknown output 'z'; the problem has y, dx, dweight, da, db."
    with pytest.raises(AttributeValueError) as refused:
        assert_conforms("lora.linear", {}, **given)
    assert str(refused.value) == "lora.linear: no output came; the problem has y, dx, dweight, da, db."
    with pytest.raises(AttributeValueError, match="unknown argument 'alpha'"):
        assert_conforms("lora.linear", y, alpha=1, **given)
    with pytest.raises(ShapeError, match=r"weight\[o,i\] gave o = 5"):
        oracle("lora.linear", **given | {"b": given["b"][:3]})
    with pytest.raises(DtypeError, match="is needed"):
        oracle("nn.linear", x=np.ones((1, 1), np.float32), weight=[[1.0]])


def test_nan_and_infinity_are_never_within_a_finite_budget():
    """A NaN, or an infinity, in a single element fails."""
    given = arguments()
    for bad in (np.nan, np.inf, -np.inf):
        y = store(reference(given)["y"], FORMATS["float32"])
        y[0, 0] = bad
        assert "y[0, 0]" in failure("lora.linear", y, **given)


def test_a_golden_nan_is_met_by_nan_alone():
    """Where inputs are not finite, so may be golden values: an infinite budget does not excuse a number in place of
    NaN.
    """
    x, weight = np.array([[np.nan, 1.0]], np.float32), np.ones((2, 2), np.float32)
    problem = Problem.of("nn.linear", {"x": x, "weight": weight}, {})
    golden = answer(problem, finite=False)["y"]
    assert compare(problem, "y", golden, np.full((1, 2), np.nan, np.float32)).conforms
    assert not compare(problem, "y", golden, np.zeros((1, 2), np.float32)).conforms
    with pytest.raises(BudgetError) as refused:
        answer(problem)
    assert str(refused.value) == (
        "nn.linear: no finite error budget exists for y[0, 0] in float32 (value nan): "
        "a result may overflow, or a division may meet zero."
    )


def test_a_result_that_may_overflow_has_no_budget_and_admits_infinity():
    """float16 products beyond 65504: refused by the oracle; with finite=False, both infinity and the value are
    admitted.
    """
    x = np.full((1, 4), 200.0, np.float16)
    problem = Problem.of("nn.linear", {"x": x, "weight": x}, {})
    with pytest.raises(BudgetError):
        answer(problem)
    golden = answer(problem, finite=False)["y"]
    assert compare(problem, "y", golden, np.full((1, 1), np.inf, np.float16)).conforms


def test_a_distance_without_a_budget_is_infinitely_many():
    """Exact outputs have no tolerance: equal as numbers or not."""
    problem = Problem.of("nn.linear", {"x": np.ones((1, 1), np.float32), "weight": np.ones((1, 1), np.float32)}, {})
    golden = Golden(np.zeros(2), np.zeros(2), np.zeros(2), "exact", "float32")
    assert compare(problem, "y", golden, np.array([0.0, -0.0], np.float32)).conforms
    comparison = compare(problem, "y", golden, np.array([0.0, 1e-45], np.float32))
    assert list(comparison.share) == [0.0, np.inf]
    assert comparison.worst == (1,)
    assert "1 ulps of float32" in str(comparison)


def test_a_declared_precision_widens_the_budget():
    """TF32 operands are admitted where they are declared, and nowhere else."""
    given = arguments()
    del given["dy"]
    plain = oracle("lora.linear", **given)["y"].budget
    tf32 = oracle("lora.linear", precision=standard_precision("fp32", operands=TF32), **given)["y"].budget
    assert np.all(tf32 > 100 * plain)


def test_vacuous_budgets_are_known_as_such():
    """A budget above a tenth of the largest output says nothing; one of a few subnormal numbers says much of zeros."""
    golden = Golden(np.array([1.0, 2.0]), np.zeros(2), np.array([0.1, 0.3]), "proven", "float32")
    assert list(golden.vacuous) == [False, True]
    zeros = Golden(np.zeros(2), np.zeros(2), np.array([2.0**-146, 2.0**-126]), "proven", "float32")
    assert list(zeros.vacuous) == [False, True]
    assert not np.any(Golden(golden.value, golden.rest, golden.budget, "discrete", "float32").vacuous)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_torch_tensors_are_taken_as_they_are(dtype):
    """With gradients, non-contiguous, in bfloat16: inputs and outputs alike."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator).to(kind).T.requires_grad_()
    weight = torch.randn(5, 16, generator=generator).to(kind)[:, ::2]
    y = torch.nn.functional.linear(x, weight)
    assert not x.is_contiguous()
    assert y.requires_grad
    assert_conforms("nn.linear", y, x=x, weight=weight)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert_conforms("nn.linear", {"y": y, "dx": dx}, x=x, weight=weight, dy=torch.ones_like(y))
    assert "does not conform" in failure("nn.linear", y * 2, x=x, weight=weight)


def test_the_explaining_fault_is_looked_for_when_the_text_is_asked_for(monkeypatch):
    """Once, and not where a failure is only counted; another process gets the text."""
    asked, ask = [], plugins.call
    monkeypatch.setattr(plugins, "call", lambda hook, **given: asked.append(hook) or ask(hook, **given))
    given = arguments()
    del given["dy"]
    without_scaling = given["x"] @ given["weight"].T + given["x"] @ given["a"].T @ given["b"].T
    with pytest.raises(AssertionError) as failed:
        assert_conforms("lora.linear", without_scaling, **given)
    assert asked == []
    assert str(failed.value).endswith("of fault 'scaling lost', and of no other")
    assert str(failed.value) == str(pickle.loads(pickle.dumps(failed.value)))
    assert asked == ["refpeft_diagnose"]


def test_nested_lists_are_float64():
    """Lists have no dtype of their own: they are taken as NumPy takes them."""
    assert_conforms("nn.linear", [[11.0]], x=[[1.0, 2.0]], weight=[[3.0, 4.0]])
    assert "expected 11, got 12" in failure("nn.linear", [[12.0]], x=[[1.0, 2.0]], weight=[[3.0, 4.0]])


def test_empty_outputs_conform():
    """No rows, nothing to be wrong."""
    x = np.ones((0, 3), np.float32)
    assert_conforms("nn.linear", np.ones((0, 2), np.float32), x=x, weight=np.ones((2, 3), np.float32))


def test_what_is_exported_is_what_the_docs_show():
    """The doctests of the oracle run, and the package exports its five names."""
    results = doctest.testmod(comparison, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
    assert results.attempted >= 5
    assert sorted(refpeft.__all__) == ["Problem", "RefpeftError", "assert_conforms", "catalogue", "oracle"]
    assert all(hasattr(refpeft, name) for name in refpeft.__all__)
    with pytest.raises(AttributeError, match="'refpeft' has no attribute 'nothing'"):
        _ = refpeft.nothing
    assert issubclass(BudgetError, RefpeftError)
