"""Twenty steps of training: what conforms passes, and a mistake is found, in an operation or in the loop."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft import plugins
from refpeft.cli import main
from refpeft.errors import CapabilityError
from refpeft_conformance import plan, terminal
from refpeft_conformance.around import Around
from refpeft_conformance.certify import loop_caught_by
from refpeft_conformance.checks.trajectory import checks
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.faults import Faulty, faults
from refpeft_conformance.loop_faults import LOOP_FAULTS
from refpeft_conformance.plan import Plan, planned, require_fault
from refpeft_conformance.recording import trained
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import FAIL, PASS, UNSUPPORTED
from refpeft_spec.trajectory import OPTIMIZER, SETTINGS, trajectories

pytest.importorskip("torch")
README = Path(__file__).parents[2] / "README.md"


def examined(backend, name: str, *, shrinking: bool = False):
    """The verdicts on the calls and on the whole."""
    subject = Subject(backend, backend.devices()[0])
    return [run(check, subject, shrinking=shrinking) for check in checks(trajectories()[name])]


@pytest.mark.parametrize(("backend", "name", "number"), [("torch", "train.adapter", 31), ("cpu", "train.lora", 30)])
def test_a_backend_that_conforms_passes(backend, name, number):
    """Every call, of which a step has that number, and the whole; of 16 samples' spread it uses a small part."""
    calls, whole = examined(plugins.backend(backend), name)
    assert (calls.verdict, whole.verdict) == (PASS, PASS), calls.message + whole.message
    assert calls.observation.examples == number * SETTINGS.steps
    assert 0 < whole.observation.worst_share < 0.5


def test_every_call_is_recorded_with_its_step():
    """Forward, vjp and the optimizer's, as many in each step; what was recorded is what the training saw."""
    trajectory = trajectories()["train.ia3"]
    training = trained(Subject(plugins.backend("torch")), trajectory)
    by_step = {step: [c for c in training.calls if c.step == step] for step in range(1, SETTINGS.steps + 1)}
    assert len({tuple(c.problem.operation.name for c in calls) for calls in by_step.values()}) == 1
    whole = {"nn.cross_entropy": "nn.lm_loss"}
    assert {c.problem.operation.name for c in training.calls} == {whole.get(n, n) for n in trajectory.operations}
    last = [c for c in by_step[SETTINGS.steps] if c.problem.operation.name == OPTIMIZER]
    stepped = np.concatenate([c.results["next_p"] for c in last])
    assert np.isin(training.results["layers.1.attn.v.scale"], stepped).all()
    differentiated = {c.problem.operation.name for c in training.calls if c.problem.cotangents}
    assert differentiated == {whole.get(n, n) for n in trajectory.differentiated}


def test_a_gradient_twice_too_small_is_seen_in_its_call_alone(tmp_path):
    """Adam divides by its size. The counterexample is the operation's, reduced, and replays."""
    faulty = Faulty(plugins.backend("reference"), faults()["scaling lost in db only"])
    calls, whole = examined(faulty, "train.lora", shrinking=True)
    assert (calls.verdict, whole.verdict) == (FAIL, PASS)
    assert re.match(r"lora\.linear in step 1: db\[0, 0\]: expected ", calls.message)
    assert calls.minimal and calls.problem.inputs["x"].size == 1
    saved = Counterexample.load(Counterexample.of(calls, "reference", faulty.fault.name).save(tmp_path))
    assert saved.replay(Subject(faulty))[0]
    assert saved.replay(Subject(plugins.backend("torch"))) == ("", False)


@pytest.mark.parametrize(
    ("fault", "name", "operation"),
    [
        ("the step counted one ahead", "train.bitfit", "adamw.step"),
        ("causality forgotten", "train.prompt", "nn.attention"),
        ("the norm of the base weight alone", "train.dora", "dora.linear"),
    ],
)
def test_a_fault_of_one_operation_is_found_within_the_training(fault, name, operation):
    """And named with its step."""
    faulty = Subject(Faulty(plugins.backend("torch"), faults()[fault]))
    verdict = run(next(checks(trajectories()[name])), faulty, shrinking=False)
    assert verdict.verdict == FAIL
    assert re.match(rf"{re.escape(operation)} in step \d+: ", verdict.message)


@pytest.mark.parametrize(("fault", "name"), list(zip(list(LOOP_FAULTS)[::2], trajectories())))
def test_a_mistake_of_the_loop_leaves_the_spread(fault, name):
    """A sample of all pairs: no operation is wrong, and the training comes to its end."""
    assert loop_caught_by(plugins.backend("torch"), name, fault).startswith(f"{name}-fp32-training-losses")


class Raising(Around):
    """It raises in the third step's first norm, once."""

    calls = 0

    def around(self, operation, inner):
        def forward(*inputs, **keywords):
            self.calls += operation.name == "nn.rms_norm"
            if self.calls == 11:
                self.calls += 1
                raise RuntimeError("out of memory")
            return inner.forward(*inputs, **keywords)

        return replace(inner, forward=forward)


def test_a_backend_that_raises_in_the_training_fails():
    """Also if the call alone comes to an answer when it is asked again; the calls before it are judged."""
    verdict = run(next(checks(trajectories()["train.prompt"])), Subject(Raising(plugins.backend("torch"))))
    assert (verdict.verdict, verdict.message) == (FAIL, "the backend raised RuntimeError: out of memory")
    assert verdict.observation.examples > 60


def test_a_backend_is_asked_for_what_it_declares_and_has(monkeypatch):
    """One without DoRA's layer trains the other methods; one that does not declare training, none, and the certificate says
    so.
    """
    asked, cpu = Plan("cpu", operations="train.*"), plugins.backend("cpu")
    assert plan.trainable(asked) == list(trajectories())
    without = {name: own for name, own in cpu.operations().items() if name != "dora.linear"}
    monkeypatch.setattr(type(cpu), "operations", lambda backend: without)
    assert plan.trainable(asked) == [name for name in trajectories() if name != "train.dora"]
    assert {c.operation.name for c in planned(asked)} == set(trajectories()) - {"train.dora"}
    assert planned(replace(asked, only="forward")) == []
    monkeypatch.setattr(type(plugins.backend("cpu")), "training", False)
    assert planned(asked) == []
    said = {"training": {"declared": False, "trainable": [], "known": []}, "checks": []}
    assert terminal.training(said) == "not declared by the backend: no trajectory was checked"
    (calls, _) = examined(plugins.backend("cpu"), "train.dora")
    assert calls.verdict == UNSUPPORTED and "dora.linear" in calls.message


def test_a_mistake_of_the_loop_can_be_watched():
    """As any fault: it is listed, can be made to trainings alone, and what is off is told, though there is no counterexample."""
    fault = "the last step left out"
    assert fault in CliRunner().invoke(main, ["faults"]).output
    asked = Plan("cpu", operations="train.bitfit", fault=fault)
    require_fault(asked, planned(asked))
    with pytest.raises(CapabilityError, match="cannot be made to any operation"):
        require_fault(replace(asked, operations="nn.linear"), planned(replace(asked, operations="nn.linear")))
    whole = run(list(checks(trajectories()["train.bitfit"]))[1], asked.subject())
    assert whole.verdict == FAIL and whole.message.startswith("layers.0.attn.q.bias[")
    said = {"checks": [whole.record()], "counterexamples": []}
    assert [r["message"] for r in terminal.unexampled(said)] == [whole.message]


def test_the_readme_certifies_without_training():
    """Its first command is to stay quick."""
    patterns, *_ = re.findall(r"refpeft certify torch --operations '([^']*)'", README.read_text())
    assert all(c.kind != "training" for c in planned(Plan("torch", operations=patterns)))
