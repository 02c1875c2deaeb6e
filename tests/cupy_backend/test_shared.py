"""The reference's sources on CuPy's arrays, as far as that can be seen without a GPU."""

import numpy as np
import pytest

from refpeft.operation import catalogue
from refpeft_conformance.checks import checks_of, golden
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import PASS, Observation
from refpeft_cupy import host, launch, own


@pytest.mark.parametrize("name", catalogue())
def test_every_source_runs_on_cupys_arrays_and_meets_its_golden_files(backend, name):
    """No source converts an array implicitly, and values in every dtype lie within the stored budgets."""
    if name in own.implementations() and host.unavailable():
        pytest.skip(host.unavailable())
    meets_its_golden_files(backend, name)


@pytest.mark.shim
@pytest.mark.parametrize("name", ["lora.linear", "qlora.linear"])
def test_a_large_batch_is_cublas_product_and_an_update(backend, name, monkeypatch):
    """Operands of 16 bits as they are, turned as they lie in memory, the result in float32."""
    for module in ("lora", "qlora"):
        monkeypatch.setattr(f"refpeft_cupy.own.{module}.FEW", 0)
    before = launch.launches(name).get("lora_update", 0)
    meets_its_golden_files(backend, name)
    assert launch.launches(name)["lora_update"] > before


STEPS = [n for n, o in catalogue().items() if set(o.kinds.values()) <= {"exact", "discrete"}]
SMALL = ("subnormal", "tiny_blocks", "zero_blocks", "cancelling")


@pytest.mark.shim
@pytest.mark.parametrize("name", STEPS)
def test_what_is_defined_as_steps_keeps_subnormal_numbers(backend, name):
    """In which CuPy flushes them: the H200 found 59 checks of these operations that failed for it."""
    lanes = [c for c in checks_of(catalogue()[name], "float32") if c.kind in ("rounded", "discontinuities")]
    small = [c for c in lanes if any(regime in c.claim for regime in SMALL)]
    assert small
    for check in small:
        verdict = run(check, Subject(backend, "cuda:0"), profile="quick", shrinking=False)
        assert verdict.verdict == PASS, f"{check.id}: {verdict.message}"


def meets_its_golden_files(backend, name):
    """In every dtype, gradients included; a GPU warns of no overflow."""
    operation, subject = catalogue()[name], Subject(backend, "cuda:0")
    ran = 0
    for dtype in operation.dtypes:
        for check in golden.checks(operation, dtype):
            for problem in check.problems(subject):
                with np.errstate(over="ignore"):
                    check.examine(subject, problem, Observation())
                ran += 1
    assert ran


def test_what_16_bits_store_is_computed_in_float32(backend):
    """A sum of 4096 ones in float16 is 4096, not 2048, where an accumulator of 16 bits stands still."""
    x, weight = (backend.asarray(np.ones((1, 4096), np.float16), "cuda:0") for _ in range(2))
    (y,), _ = backend.implementation("nn.linear").forward(x, weight, None)
    assert y.dtype == np.float16 and float(backend.to_numpy(y)[0, 0]) == 4096


def test_without_a_gpu_the_backend_says_why(monkeypatch):
    """It is listed as unavailable, in one sentence."""
    from refpeft_cupy.backend import CupyBackend

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert CupyBackend().unavailable() == "CuPy is not installed; pip install 'refpeft[cupy]' brings it."
