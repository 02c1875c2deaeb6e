"""The kit catches what it claims to catch, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from refpeft import plugins
from refpeft.golden import evaluate
from refpeft.operation import catalogue, find
from refpeft.problem import Problem
from refpeft_conformance.certify import caught_by
from refpeft_conformance.checks import KINDS, checks_of
from refpeft_conformance.faults import HONEST, REFUSED, Faulty, faults, faults_of
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_spec.golden import load_cases

pytest.importorskip("torch")
OPERATIONS = sorted(catalogue())
SAMPLED = [
    ("lora.linear", "float32", fault)
    for fault in (
        "scaling lost in db only",
        "alpha over r for alpha over the root of r",
        "last rank dropped",
        "dweight is the mean over the batch",
        "weight transposed when square",
        "stale residuals of another call",
        "dropout not scaled",
        "silent TF32",
        "partial sums in bfloat16",
        "input mutated",
        "reference called silently",
        "non-contiguous input read as if contiguous",
        "last element unwritten",
        "different bits from run to run",
        "NaN swallowed",
    )
] + [
    ("lora.linear", "bfloat16", "scaling off by one percent"),
    ("lora.linear", "bfloat16", "batch accumulated in the storage dtype"),
    ("nf4.quantize", "float32", "nibbles swapped"),
    ("nf4.quantize", "float32", "ties go to the upper code"),
    ("nf4.dequantize", "float32", "codebook off by one ulp"),
    ("nf4.dequantize", "float32", "absmax of the neighbouring block"),
    ("nf4.double_dequantize", "float32", "nested offset forgotten"),
    ("lora.embedding", "float32", "repeated ids overwrite in dweight"),
    ("lora.conv2d", "float32", "padding mode ignored"),
    ("lora.merge", "float32", "adapters in bfloat16"),
]

DRAWN = defaultdict(dict)
"""Problems that a torch with another fault passed."""


def test_the_list_holds_at_least_60_faults_of_12_families():
    """Names are unique by construction; families are what the faults get wrong."""
    known = faults().values()
    assert len(known) >= 60
    assert len({f.family for f in known}) >= 12


@pytest.mark.parametrize(("operation", "dtype", "fault"), SAMPLED, ids=lambda value: str(value).replace(" ", "_"))
def test_a_faulty_torch_is_caught(operation, dtype, fault):
    """Made to torch, which passes without it, the fault fails a check at the standard profile."""
    assert faults()[fault].applies(find(operation), dtype)
    assert caught_by(Faulty(plugins.backend("torch"), faults()[fault]), operation, dtype, drawn=DRAWN[operation, dtype])


def in_turn(operation: str, kind: str) -> bool:
    """Whether a kind of check is tried on an operation: laws on every fourth, conduct on every tenth, others on every sixth."""
    number = OPERATIONS.index(operation)
    every = {"laws": 4, "conduct": 10}.get(kind, 6)
    return (number + KINDS.index(kind)) % every == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_wrapper_without_a_fault_passes(operation):
    """What kills a faulty backend is the fault, not the wrapper around it."""
    backend = Faulty(plugins.backend("torch"), HONEST)
    for check in (
        c for c in checks_of(find(operation), "float32") if c.kind != "golden" and in_turn(operation, c.kind)
    ):
        verdict = run(check, Subject(backend), profile="sample", random_seed=3, shrinking=False)
        assert verdict.verdict == "PASS", verdict.message
        assert check.kind != "laws" or verdict.observation.elements, f"{check.id} compared nothing"


@pytest.mark.parametrize("name", sorted(faults()))
def test_a_fault_is_made_without_an_exception(name):
    """Anybody sees an exception: what raises is no mistake to find. Some problems may leave no room for a fault, not all."""
    fault, made = faults()[name], 0
    operation, dtype = next((o, d) for o in catalogue().values() for d in o.dtypes if fault.applies(o, d))
    for problem, _ in load_cases(operation, dtype=dtype):
        with suppress(*REFUSED), np.errstate(all="ignore"):
            made += bool(fault.transform(problem, evaluate))
    assert made


def test_problems_that_one_subject_passed_are_asked_of_the_next():
    """The same that it would draw, so that it fails the same check; what a check fails on is not kept."""
    drawn, reference = {}, plugins.backend("reference")
    found = [
        caught_by(Faulty(reference, faults()[name]), "lora.delta", "float32", profile="quick", drawn=d)
        for name in ("db halved", "db is zero", "scaling lost")
        for d in (None, drawn)
    ]
    assert found[::2] == found[1::2] and all(found)
    assert list(drawn) == ["lora.delta-fp32-exact-outputs_equal_as_numbers"]
    asked = []

    def watched(problem, run):
        asked.append(problem.inputs["a"].tobytes())
        return run(problem)

    watching = Faulty(reference, replace(HONEST, transform=watched))
    check = next(c for c in checks_of(find("lora.delta"), "float32") if c.id in drawn)
    run(check, Subject(watching), profile="quick")
    own, asked[:] = asked[:], []
    run(check, Subject(watching), profile="quick", drawn=drawn)
    assert asked == own


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_can_be_got_wrong_in_several_ways(operation):
    """An operation to which few faults apply would make the kill rate an empty figure."""
    assert len(faults_of(find(operation), "float32")) >= 5


def test_strides_are_ignored_of_what_may_be_read_so():
    """Between zeros a codebook no longer ascends, which the operation refuses: then the weights alone are read wrongly."""
    fault, rng = faults()["non-contiguous input read as if contiguous"], np.random.default_rng(0)
    weight, codebook = rng.normal(size=200).astype(np.float32)[::2], np.linspace(-1, 1, 64, dtype=np.float32)[::2]
    problem = Problem.of("codebook.quantize", {"weight": weight, "codebook": codebook}, {"blocksize": 64})
    assert not np.array_equal(fault.transform(problem, evaluate)["codes"], evaluate(problem)["codes"])
