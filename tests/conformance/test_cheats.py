"""Backends that cheat or misbehave are told apart from honest ones, and no file starts a program."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from click.testing import CliRunner

import refpeft
from refpeft import provenance
from refpeft.backend import Backend, Implementation
from refpeft.cli import main
from refpeft.operation import find
from refpeft_conformance.certify import Plan, execute
from refpeft_conformance.checks import checks_of
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject


class Cheat(Backend):
    """nn.linear, forward only, computed as the test says."""

    name = "cheat"

    def __init__(self, compute, device="cpu"):
        self.compute, self.where = compute, device

    def operations(self):
        return {"nn.linear": Implementation(lambda *inputs, residuals=True: ((self.compute(*inputs),), None))}

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def device_of(self, array):
        return self.where


def honest(x, weight, bias=None):
    """What the definition says, in plain NumPy."""
    return x @ weight.T if bias is None else x @ weight.T + bias


def verdicts(backend):
    """Verdict of each check of nn.linear in float32 that a forward-only backend is held to."""
    kinds = ("golden", "exact", "provenance", "conduct")
    checks = [c for c in checks_of(find("nn.linear"), "float32") if c.kind in kinds]
    found = {c.claim: run(c, Subject(backend), profile="quick", shrinking=False) for c in checks}
    return {claim: verdict for claim, verdict in found.items() if verdict.verdict != "UNSUPPORTED"}


def test_an_honest_backend_computes_without_the_reference():
    """The same class with plain NumPy inside passes the check that the cheats fail."""
    for claim, verdict in verdicts(Cheat(honest)).items():
        assert verdict.verdict == "PASS", f"{claim}: {verdict.message}"


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, w, b=None: refpeft.oracle("nn.linear", x=x, weight=w, bias=b)["y"].value.astype(x.dtype),
        lambda x, w, b=None: find("nn.linear")(x, w, b),
        lambda x, w, b=None: find("nn.linear").forward(x, w, b),
        lambda x, w, b=None: find("nn.linear").source(x, w, b),
    ],
    ids=["oracle", "call", "forward", "source"],
)
def test_asking_the_reference_fails(compute):
    """By the oracle, the catalogue or the source itself: each is refused while the backend runs."""
    verdict = verdicts(Cheat(compute))["computes without the reference"]
    assert verdict.verdict == "FAIL"
    assert "ReferenceCalled" in verdict.message


def test_undeclared_shared_source_is_refused_on_any_array_type():
    """Arrays of another type come through only where the backend declares that it runs the reference's source."""

    class Foreign:
        shape = (1, 1)

    with provenance.poisoned("x"), pytest.raises(provenance.ReferenceCalled):
        provenance.guard("nn.linear", [Foreign()])
    with provenance.poisoned("x", shared=True):
        provenance.guard("nn.linear", [Foreign()])
        with pytest.raises(provenance.ReferenceCalled):
            provenance.guard("nn.linear", [np.ones(2)])


@pytest.mark.parametrize(
    "compute",
    [lambda *a: sys.exit(0), lambda *a: None, lambda *a: [1.0], lambda *a: 1 / 0],
    ids=["exit", "nothing", "list", "error"],
)
def test_what_a_backend_does_wrong_is_its_failure(compute):
    """An exit, an object that is no array or an exception is FAIL, never ERROR and never a pass."""
    assert verdicts(Cheat(compute))["outputs equal as numbers"].verdict == "FAIL"


def test_another_device_than_the_certified_one_is_found():
    """Results must lie where the certificate says that the backend was run."""
    verdict = verdicts(Cheat(honest, "cuda:7"))["results stay on the device"]
    assert verdict.verdict == "FAIL"
    assert "cuda:7" in verdict.message


def test_replay_never_starts_what_a_file_names(tmp_path):
    """A counterexample may come from a stranger: a program that it names is not run."""
    pytest.importorskip("torch")
    check = "lora.linear-fp32-exact-outputs_equal_as_numbers"
    verdict = execute(Plan("torch", fault="scaling lost"), "lora.linear", "float32", check)
    trap = tmp_path / "trap"
    path = Counterexample.of(verdict, f"touch {trap}").save(tmp_path)
    result = CliRunner().invoke(main, ["replay", str(path)])
    assert result.exit_code == 2
    assert "give --command PROGRAM" in result.output
    assert not trap.exists()


def test_a_fault_that_applies_nowhere_is_refused():
    """Certifying with it would prove nothing."""
    result = CliRunner().invoke(main, ["certify", "reference", "--operations", "nn.linear", "--fault", "scaling lost"])
    assert result.exit_code == 2
    assert "cannot be made to any operation" in result.output


def test_one_of_several_outputs_alone_is_refused():
    """nf4.quantize returns codes and absmax: handing in the codes only would leave absmax unchecked, silently."""
    with pytest.raises(refpeft.RefpeftError, match="has several outputs"):
        refpeft.assert_conforms("nf4.quantize", np.zeros(32, np.uint8), weight=np.ones(64, np.float32))


def test_a_scaling_may_be_an_array_without_axes():
    """A learned scaling is held as one."""
    arrays = {n: np.ones((2, 2), np.float32) for n in ("x", "weight", "a", "b")}
    assert refpeft.oracle("lora.linear", **arrays, scaling=np.array(2.0))["y"].value[0, 0] == 10.0
