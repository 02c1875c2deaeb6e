"""An input that a backend declares frozen gets no gradient, and hides nothing: what comes all the same is judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refpeft.backend import Backend, Implementation, withholding
from refpeft.errors import CapabilityError
from refpeft.merging import stand_in
from refpeft.methods import dims_of, fixed_inputs, methods
from refpeft.operation import find
from refpeft_conformance import certificate, verification
from refpeft_conformance.certify import Outcome, Plan
from refpeft_conformance.checks import checks_of
from refpeft_conformance.faults import Faulty, faults
from refpeft_conformance.plan import require_answers
from refpeft_conformance.report import render
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject


class Frozen(Backend):
    """beft.linear in NumPy, whose gradients the test spoils, with what it declares frozen; it keeps what it is asked for."""

    name = "frozen"

    def __init__(self, frozen=("weight",), given=(), spoiled=""):
        def forward(x, weight, shift, bias=None, residuals=True):
            y = x @ weight.T + (shift if bias is None else bias + shift)
            return (y,), (x, weight)

        def vjp(residuals, cotangents, wanted):
            self.asked.append(tuple(wanted))
            x, weight = residuals
            (dy,) = cotangents
            flat = dy.reshape(-1, dy.shape[-1])
            bias = flat.sum(axis=0)
            found = {"x": dy @ weight, "weight": flat.T @ x.reshape(-1, x.shape[-1]), "shift": bias, "bias": bias}
            return tuple(found[n] + (n == spoiled) for n in wanted)

        self.asked = []
        self.layer = Implementation(forward, withholding(vjp, set(frozen) - set(given)), frozen=frozen)

    def operations(self):
        return {"beft.linear": self.layer}

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def device_of(self, array):
        return "cpu"


def checked(backend, dtype="float32", **only):
    """Verdicts by claim, of all checks or of those with one claim."""
    checks = [c for c in checks_of(find("beft.linear"), dtype) if only.get("claim", c.claim) == c.claim]
    return {c.claim: run(c, Subject(backend), profile="sample", shrinking=False) for c in checks}


def test_no_check_asks_for_a_frozen_gradient():
    """Whatever its kind; everything else is asked for and passes, and without the declaration the gradient is due."""
    backend = Frozen()
    assert {v.verdict for v in checked(backend).values() if v.kind != "laws"} == {"PASS"}
    assert {name for asked in backend.asked for name in asked} == {"x", "shift", "bias"}
    due = Frozen(given=("weight",))
    due.layer = replace(due.layer, frozen=())
    assert checked(due)["gradients equal as numbers"].verdict == "PASS"
    assert any("weight" in asked and len(asked) > 1 for asked in due.asked)


def test_a_frozen_gradient_that_comes_all_the_same_is_judged():
    """Asked for alone, it must be none, or right."""
    claim = "gradients that are not wanted change nothing"
    assert checked(Frozen(given=("weight",)), claim=claim)[claim].verdict == "PASS"
    verdict = checked(Frozen(given=("weight",), spoiled="weight"), claim=claim)[claim]
    assert verdict.verdict == "FAIL"
    assert verdict.message.startswith("wanting only dweight: dweight")


def test_what_is_wrong_in_other_gradients_fails_still():
    """The declaration is of one input."""
    failed = {claim for claim, v in checked(Frozen(spoiled="shift")).items() if v.verdict == "FAIL"}
    assert {"gradients equal as numbers", "gradients within budget on random inputs"} <= failed


@pytest.mark.parametrize("declared", [("x",), ("shift",), ("bias",), ("nothing",), ("weight", "x"), "weight"])
def test_only_what_no_method_trains_may_be_declared(declared, monkeypatch):
    """Anything else is refused before a check is run, in one sentence that tells what may."""
    monkeypatch.setattr(Plan, "honest", lambda plan: Frozen(frozen=declared))
    with pytest.raises(CapabilityError) as refused:
        require_answers(Plan("frozen"))
    assert str(refused.value) == (
        f"backend 'frozen' declares beft.linear frozen in {declared!r}: expected a tuple out of ('weight',), "
        "the inputs that no method trains."
    )


def test_a_check_that_needs_the_gradient_is_left_out_and_says_so():
    """Without an example, and without a problem that was turned away."""

    def needing(subject, problem, observed):
        raise AssertionError(subject.run(problem)["dweight"])

    check = next(c for c in checks_of(find("beft.linear"), "float32") if c.kind == "laws")
    verdict = run(replace(check, examine=needing, gradients=True, needs=()), Subject(Frozen()), profile="quick")
    assert (verdict.verdict, verdict.message) == ("UNSUPPORTED", "the backend gives no gradient to weight")
    assert verdict.observation.examples == 0
    assert verdict.observation.outside == {}


def test_a_fault_in_a_frozen_gradient_is_none():
    """It cannot be made there; others are found as ever."""
    named = next(f for f in faults().values() if "dweight" in f.needs and f.applies(find("beft.linear"), "float32"))
    assert Faulty(Frozen(), named).operations()["beft.linear"] is not None
    other = next(f for f in faults().values() if f.needs == ("dx",) and f.applies(find("beft.linear"), "float32"))
    assert "FAIL" in {v.verdict for v in checked(Faulty(Frozen(), other)).values()}


def test_the_certificate_and_the_report_say_what_is_frozen(monkeypatch):
    """By operation; a backend that declares nothing leaves nothing there."""
    for frozen, shown in ((("weight",), {"beft.linear": ["weight"]}), ((), {})):
        monkeypatch.setattr(Plan, "honest", lambda plan, frozen=frozen: Frozen(frozen=frozen))
        verdicts = list(checked(Frozen(frozen=frozen), claim="gradients equal as numbers").values())
        content = certificate.build(Outcome(Plan("frozen", operations="beft.linear"), verdicts, [], {}, {}), None)
        assert content["subject"]["frozen"] == shown
        assert verification.verify(content, rerun=False) == []
        assert ("No gradient to: <code>weight</code>." in render(content)) == bool(shown)


def test_what_is_fixed_is_what_methods_start_with_and_do_not_train():
    """The base weight, and whatever ``init`` gives beside the trained inputs, for every method; never the layer's input."""
    for cls in (m for m in methods().values() if "o" in dims_of(m) or m.__name__ == "CPT"):
        operation, fixed = find(cls.operation), set(fixed_inputs(cls.operation))
        own = {n for m in methods().values() if m.operation == cls.operation for n in m.trainable}
        assert not fixed & own
        assert not fixed & {a.name for a in operation.differentiable if a.star}
        random = np.random.default_rng(0)
        weight = random.normal(size=(64, 64))
        started = cls().init(random, weight, **stand_in(cls(), random, weight))
        differentiable = {a.name for a in operation.differentiable}
        assert (started.keys() - own) & differentiable <= fixed
    assert fixed_inputs("lora.conv2d") == ("weight",)
    assert fixed_inputs("nn.linear") == ()
