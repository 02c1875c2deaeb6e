"""A failure leaves the smallest problem that shows it, as a file that any process can replay."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from refpeft import plugins
from refpeft.errors import FormatError
from refpeft.formats import safetensors
from refpeft.operation import find
from refpeft.problem import Problem
from refpeft_conformance.certify import Plan, examine, replay
from refpeft_conformance.checks import checks_of
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.diagnose import diagnose
from refpeft_conformance.faults import Faulty, faults
from refpeft_conformance.subject import Subject

pytest.importorskip("torch")
CHECK = "lora.linear-fp32-exact-outputs_equal_as_numbers"


@pytest.fixture(scope="module")
def failed():
    """The verdict on a torch that drops the last rank."""
    return examine(Plan("torch", fault="last rank dropped"), "lora.linear", "float32", CHECK)


def test_a_dropped_rank_shrinks_to_one_by_one(failed):
    """One row, one rank, one weight, and no optional input is all it takes."""
    assert failed.verdict == "FAIL"
    assert failed.minimal
    dims = {n: failed.problem.dims[n] for n in ("n", "i", "o", "r")}
    assert dims == {"n": (), "i": 1, "o": 1, "r": 1}
    assert set(failed.problem.inputs) == {"x", "weight", "a", "b"}
    assert np.count_nonzero(failed.problem.inputs["weight"]) == 0


def test_no_non_zero_of_a_minimal_problem_can_be_made_zero(failed):
    """Minimal is a definite claim: with any input zeroed the check passes."""
    subject = Plan("torch", fault="last rank dropped").subject()
    check = next(c for c in checks_of(failed.problem.operation, "float32") if c.id == CHECK)
    for name, array in failed.problem.inputs.items():
        if np.any(array):
            smaller = failed.problem.replace(inputs=failed.problem.inputs | {name: np.zeros_like(array)})
            assert Counterexample(CHECK, "torch", "", "", True, smaller, {}).replay(subject)[0] == ""
    assert check.kind == "exact"


DECODED = "nf4.dequantize-fp32-exact-outputs_equal_as_numbers"


@pytest.mark.parametrize(
    ("fault", "check"),
    [("last rank dropped", CHECK)] + [("different bits from run to run", check) for check in (CHECK, DECODED)],
)
def test_a_counterexample_replays_bit_for_bit_in_a_new_process(tmp_path, fault, check):
    """The file alone brings the failure back, with the same bits, also where only every other call goes wrong."""
    backend = "torch" if fault == "last rank dropped" else "reference"
    failed = examine(Plan(backend, fault=fault), check.partition("-")[0], "float32", check)
    path = Counterexample.of(failed, backend, fault).save(tmp_path)
    command = [sys.executable, "-m", "refpeft", "replay", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) == {
        "check": check,
        "fails": True,
        "message": failed.message,
        "same_bits": True,
        "minimal": True,
    }


def test_without_the_fault_the_counterexample_passes(failed, tmp_path):
    """The honest backend holds on the same problem."""
    path = Counterexample.of(failed, "torch", "last rank dropped").save(tmp_path)
    message, _ = Counterexample.load(path).replay(Plan("torch").subject())
    assert message == ""


def test_the_reference_passes_on_whatever_a_problem_was_reduced_to():
    """A check of broadcast inputs draws equal rows; a smaller problem of unequal ones would fail on anything."""
    check = "nf4.offset-fp32-conduct-broadcast_inputs_give_the_same_answer"
    fault = "mean over one value too few"
    verdict = examine(Plan("reference", fault=fault), "nf4.offset", "float32", check)
    assert verdict.verdict == "FAIL"
    example = Counterexample.of(verdict, "reference", fault)
    assert replay(Plan("reference", fault=fault), example)[0] == verdict.message
    assert replay(Plan("reference"), example) == ("", False)


def test_a_counterexample_keeps_every_bit(failed, tmp_path):
    """Inputs and outputs come back from the file as they went in."""
    loaded = Counterexample.load(Counterexample.of(failed, "torch").save(tmp_path))
    for name, array in failed.problem.inputs.items():
        assert loaded.problem.inputs[name].tobytes() == array.tobytes()
    assert loaded.outputs["y"].tobytes() == failed.outputs["y"].tobytes()


def test_a_file_of_another_kind_is_refused(tmp_path):
    """A safetensors file that is no counterexample is named, not guessed at."""
    safetensors.save(tmp_path / "x.safetensors", {"a": np.zeros(2)})
    with pytest.raises(FormatError, match="is no counterexample"):
        Counterexample.load(tmp_path / "x.safetensors")


def test_the_message_names_the_only_fault_that_explains_an_output(failed):
    """Of all faults only dropping the (last) rank gives these numbers on a problem with several ranks."""
    rng = np.random.default_rng(0)
    inputs = {
        n: rng.normal(size=s).astype(np.float32)
        for n, s in {"x": (3, 5), "weight": (4, 5), "a": (3, 5), "b": (4, 3)}.items()
    }
    problem = Problem.of("lora.linear", inputs, {"scaling": 2.0})
    x, w, a, b = inputs.values()
    assert diagnose(problem, {"y": x @ w.T + 2 * (x @ a[:-1].T) @ b[:, :-1].T}) == ["last rank dropped"]
    assert diagnose(problem, {"y": x @ w.T + 2 * (x @ a.T) @ b.T}) == []


def test_a_faulty_backend_keeps_the_inner_ones_promises():
    """The wrapper declares what the backend declares, so that a fault is judged by the same budget."""
    inner = plugins.backend("torch")
    wrapped = Faulty(inner, faults()["scaling lost"])
    assert wrapped.precision("bfloat16") == inner.precision("bfloat16")
    assert wrapped.operations().keys() == inner.operations().keys()
    assert Subject(wrapped).precision("float32") == inner.precision("float32")
    assert find("lora.linear").name in wrapped.operations()
