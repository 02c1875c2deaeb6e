"""What the harness has shown is not asked again; what it has not shown, or on other sources, is."""

from dataclasses import replace

import pytest

from refpeft_conformance import certificate, remembered
from refpeft_conformance.certify import _lasting, _on_reference, certify, planned
from refpeft_conformance.plan import Plan
from refpeft_conformance.workers import Lost, Task

PLAN = Plan("reference", operations="nf4.offset", profile="quick")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def counts(outcome, tmp_path):
    """What a certificate says of the harness."""
    content = certificate.build(outcome, tmp_path)
    return {name: content[name] for name in ("harness", "reference", "smoke")}


def test_a_second_certification_takes_the_harness_as_shown(cache, tmp_path):
    """It says so, gives the same counts and the same catches, and runs the backend all the same."""
    first, second = certify(PLAN), certify(PLAN)
    assert first.remembered == 0
    assert second.remembered == len(first.reference) + len(first.smoke)
    assert counts(first, tmp_path) == counts(second, tmp_path)
    assert [v.observation.examples for v in first.verdicts] == [v.observation.examples for v in second.verdicts]


@pytest.mark.parametrize("change", ["fresh", "seed", "sources"])
def test_other_seeds_and_other_sources_are_asked_anew(cache, monkeypatch, change):
    """So is everything with --fresh."""
    certify(PLAN)
    if change == "sources":
        monkeypatch.setattr(remembered, "_foundation", lambda: "other")
    plan = replace(PLAN, seed=7) if change == "seed" else PLAN
    assert certify(plan, fresh=change == "fresh").remembered == 0


def test_only_successes_are_kept():
    """Neither a check that the reference failed, nor a stage that let a fault through or gave no result."""
    check = next(c for c in planned(PLAN) if c.kind == "exact")
    asked = Task(("reference", check.id), None, (PLAN, "nf4.offset", check.dtype, check.id))
    smoke = Task(("smoke", ("nf4.offset", "float32")), None)

    def lasting(task, result):
        return _lasting(task, {task.name[0]: {task.name[1]: result}})

    passed = _on_reference(check, None)
    assert lasting(asked, passed) == []
    assert lasting(asked, replace(passed, verdict="FAIL")) is None
    assert lasting(asked, Lost("was ended", 0, None)) is None
    assert lasting(smoke, [("scaling lost", "a check")]) == [("scaling lost", "a check")]
    assert lasting(smoke, [("scaling lost", "a check"), ("rank lost", "")]) is None


def test_a_damaged_cache_is_an_empty_one(cache):
    """Whatever bytes are in it."""
    path = remembered._path()
    path.parent.mkdir(parents=True)
    for content in (b"", b"\xff", b"[1]"):
        path.write_bytes(content)
        assert remembered.recall() == {}
    remembered.keep({"reference 0 x": []})
    assert remembered.recall() == {"reference 0 x": []}
