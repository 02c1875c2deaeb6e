"""What a backend says that it does not take is left out, counted and printed; it is never a pass, and hides nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refpeft import plugins
from refpeft.backend import Backend, Implementation
from refpeft.errors import CapabilityError
from refpeft.operation import find
from refpeft_conformance import certificate, strategies, verification
from refpeft_conformance.certify import Outcome, Plan
from refpeft_conformance.checks import checks_of
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.report import render
from refpeft_conformance.runner import PATIENCE, run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

REASON = "the layer has no bias"


class Choosy(Backend):
    """nn.linear in NumPy, forward only, spoiled where the test says, which does not take what ``outside`` says."""

    name = "choosy"

    def __init__(self, outside, spoiled=lambda bias: False):
        def forward(x, weight, bias=None, residuals=True):
            y = x @ weight.T if bias is None else x @ weight.T + bias
            return (y + y.dtype.type(spoiled(bias)),), None

        self.linear = Implementation(forward, outside=outside)

    def operations(self):
        return {"nn.linear": self.linear}

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def device_of(self, array):
        return "cpu"


def no_bias(shapes, attributes):
    return REASON if "bias" in shapes else ""


def nothing(shapes, attributes):
    return REASON


def random_outputs():
    """The check of random inputs in float32."""
    return next(
        c for c in checks_of(find("nn.linear"), "float32") if c.claim == "outputs within budget on random inputs"
    )


def golden_files():
    """The check of golden files in float32."""
    return next(c for c in checks_of(find("nn.linear"), "float32") if c.kind == "golden")


def checked(backend, check=random_outputs):
    return run(check(), Subject(backend), profile="quick")


def test_a_problem_outside_makes_room_for_another():
    """As many examples as without the declaration, and the ones turned away are counted beside them."""
    verdict = checked(Choosy(no_bias))
    assert verdict.verdict == "PASS"
    assert verdict.observation.examples == checked(plugins.backend("reference")).observation.examples
    assert verdict.observation.outside[REASON] > 0


def test_what_is_wrong_outside_is_no_failure():
    """Spoiled with a bias only, and so it says; without the declaration the same backend fails."""
    assert checked(Choosy(no_bias, spoiled=lambda bias: bias is not None)).verdict == "PASS"
    assert checked(Choosy(lambda *call: "", spoiled=lambda bias: bias is not None)).verdict == "FAIL"


def test_what_is_wrong_inside_fails_still():
    """And its counterexample lies inside."""
    verdict = checked(Choosy(no_bias, spoiled=lambda bias: bias is None))
    assert verdict.verdict == "FAIL"
    assert "bias" not in verdict.problem.inputs


def test_a_check_without_a_problem_is_unsupported():
    """With the reason, and without an example; golden files as well as what is drawn."""
    for verdict in checked(Choosy(nothing)), checked(Choosy(nothing), golden_files):
        assert verdict.verdict == "UNSUPPORTED"
        assert verdict.message == f"the backend takes no problem of this check: {REASON}"
        assert verdict.observation.examples == 0


def test_a_dtype_that_an_operation_lacks_is_unsupported():
    """With the reason, in that dtype only; a counterexample in it is turned away."""
    backend = Choosy(lambda *call: "")
    backend.linear = replace(backend.linear, lacks={"float64": REASON})
    checks = {d: next(iter(checks_of(find("nn.linear"), d))) for d in ("float64", "float32")}
    found = {d: run(check, Subject(backend), profile="quick") for d, check in checks.items()}
    assert (found["float64"].verdict, found["float64"].message) == ("UNSUPPORTED", REASON)
    assert found["float32"].verdict == "PASS"
    spoiled = checked(Choosy(lambda *call: "", spoiled=lambda bias: True))
    backend.linear = replace(backend.linear, lacks={"float32": REASON})
    assert Subject(backend).outside(spoiled.problem) == REASON


def test_the_backend_is_asked_before_the_arrays_are_drawn(monkeypatch):
    """No array is made for a problem that it does not take."""
    made = []

    def build(operation, format, attributes, dims, present, *rest):
        made.append({argument.name for argument in present})
        return strategies_build(operation, format, attributes, dims, present, *rest)

    strategies_build = strategies.build
    monkeypatch.setattr(strategies, "build", build)
    verdict = checked(Choosy(no_bias))
    assert len(made) >= verdict.observation.examples > 0
    assert all("bias" not in names for names in made)
    assert verdict.observation.outside[REASON] > 0


@pytest.mark.parametrize("taken", [0, 2])
def test_the_kit_gives_up_on_what_takes_nothing(taken):
    """After so many problems in a row, whether it took others before or not; Hypothesis looks at the last one twice."""
    asked = []

    def outside(shapes, attributes):
        """Each problem is asked for twice, when it is drawn and when it is run."""
        asked.append(shapes)
        return REASON if len(asked) > 2 * taken else ""

    observed = checked(Choosy(outside)).observation
    assert observed.examples == taken
    assert PATIENCE <= observed.outside[REASON] <= PATIENCE + 2


def test_golden_files_outside_are_left_out_one_by_one():
    """Those inside are met, those outside counted."""
    verdict = checked(Choosy(no_bias), golden_files)
    assert verdict.verdict == "PASS"
    assert verdict.observation.examples > 0
    assert verdict.observation.outside[REASON] > 0


@pytest.mark.parametrize("answer", [lambda *call: None, lambda *call: 1 / 0], ids=["none", "raises"])
def test_an_outside_without_an_answer_fails(answer):
    """It must return a string; it is no way round a check."""
    assert checked(Choosy(answer)).verdict == "FAIL"


def test_a_call_that_a_check_makes_may_be_outside():
    """The drawn problem is inside, the one that the check derives is not: it is turned away, nothing is violated."""

    def with_bias(subject, problem, observed):
        subject.run(problem.replace(inputs=problem.inputs | {"bias": problem.inputs["weight"][:, 0]}))

    check = replace(random_outputs(), examine=with_bias)
    verdict = run(check, Subject(Choosy(no_bias)), profile="quick")
    assert (verdict.verdict, verdict.observation.examples) == ("UNSUPPORTED", 0)
    assert run(check, Subject(Choosy(lambda *call: "")), profile="quick").verdict == "PASS"


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "answers wrongly"])
def test_a_layout_may_be_refused_but_not_read_wrongly(answers):
    """Refused with an error, problems are not taken, with the reason, and others make room; else it fails."""

    def forward(x, weight, bias=None, residuals=True):
        if not answers and not weight.flags.c_contiguous:
            raise ValueError("weight is not contiguous")
        weight = np.lib.stride_tricks.as_strided(weight, strides=np.empty(weight.shape, weight.dtype).strides)
        return ((x @ weight.T).astype(x.dtype),), None

    def column_major():
        return next(c for c in checks_of(find("nn.linear"), "float64") if c.claim.startswith("column-major"))

    backend = Choosy(no_bias)
    for contiguous, verdict in ((REASON, "FAIL" if answers else "PASS"), ("", "FAIL")):
        backend.linear = Implementation(forward, outside=no_bias, contiguous=contiguous)
        found = checked(backend, column_major)
        assert found.verdict == verdict
        assert (found.observation.outside.get(REASON, 0) > 0) == (verdict == "PASS")


def test_the_certificate_and_the_report_name_the_reasons():
    """Per operation, with how many problems each turned away; they follow from the checks."""
    verdicts = [checked(Choosy(no_bias)), checked(Choosy(nothing))]
    verdicts[1].id += "_too"
    plan = Plan("reference", operations="nn.linear")
    count = sum(v.observation.outside[REASON] for v in verdicts)
    content = certificate.build(Outcome(plan, verdicts, [], {}, {}), None)
    assert content["outside"] == {"nn.linear": {REASON: count}}
    assert verification.verify(content, rerun=False) == []
    assert f"Not taken by the backend: {REASON} ({count} problems)." in render(content)
    quiet = certificate.build(Outcome(plan, [replace(verdicts[0], observation=Observation(1))], [], {}, {}), None)
    assert quiet["outside"] == {}
    assert "Not taken" not in render(quiet)


def test_a_counterexample_that_is_outside_now_is_refused():
    """It neither fails nor passes: replaying it says why."""
    spoiled = Choosy(lambda *call: "", spoiled=lambda bias: True)
    example = Counterexample.of(checked(spoiled), "choosy", "")
    with pytest.raises(CapabilityError, match=f"'choosy' does not take the problem: {REASON}"):
        example.replay(Subject(Choosy(nothing)))
