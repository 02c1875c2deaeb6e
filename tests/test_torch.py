"""The torch backend on the spec's golden files: on the CPU, and on a GPU where there is one."""

import pytest

from refpeft import plugins
from refpeft.operation import catalogue
from refpeft_conformance.checks import golden
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

torch = pytest.importorskip("torch")
TORCH = plugins.backend("torch")


@pytest.mark.parametrize("device", TORCH.devices())
@pytest.mark.parametrize("name", catalogue())
def test_torch_meets_every_golden_file(name, device):
    """Values and gradients in every dtype lie within the stored budgets."""
    operation, subject = catalogue()[name], Subject(TORCH.on(device), device)
    problems = [
        (check, problem)
        for dtype in operation.dtypes
        for check in golden.checks(operation, dtype)
        for problem in check.problems(subject)
    ]
    assert problems
    for check, problem in problems:
        check.examine(subject, problem, Observation())


def test_what_a_gpu_does_not_keep_is_not_promised():
    """Atomic additions flush subnormals and come in any order; the CPU's promises are as they were."""
    gpu = TORCH.on("cuda:0")
    assert gpu.precision("float32").flush_to_zero and not gpu.deterministic
    assert TORCH.on("cpu") is TORCH and TORCH.deterministic
    assert not TORCH.precision("float32").flush_to_zero


def test_torch_keeps_an_input_only_for_a_gradient_that_may_be_wanted():
    """Of a frozen matrix autograd keeps no x where it is told that dx alone may be wanted; the gradient is the same."""
    x, weight, dy = torch.ones(7, 6), torch.arange(30.0).reshape(5, 6), (torch.ones(7, 5),)
    linear, found = TORCH.implementation("nn.linear"), []
    for residuals, keeps in ((True, True), (("x",), False)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.data_ptr()) or t, lambda t: t
        ):
            _, kept = linear.forward(x, weight, residuals=residuals)
        assert (x.data_ptr() in saved) == keeps and weight.data_ptr() in saved
        found.append(linear.vjp(kept, dy, ("x",))[0])
    assert torch.equal(*found)
