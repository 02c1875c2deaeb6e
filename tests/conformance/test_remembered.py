"""What the harness has shown is not asked again; what it has not shown, or on other sources, is."""

import shutil
from dataclasses import replace

import pytest

from refpeft.operation import find
from refpeft_conformance import certificate, remembered
from refpeft_conformance.certify import _on_reference, certify, planned
from refpeft_conformance.plan import Plan
from refpeft_conformance.workers import Lost

PLAN = Plan("reference", operations="nf4.offset", profile="quick")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A certification with an empty cache, and the cache that it leaves."""
    folder = tmp_path_factory.mktemp("first") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return certify(PLAN), folder


@pytest.fixture
def after(first, tmp_path, monkeypatch):
    """That cache, for one more certification."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shutil.copytree(first[1], tmp_path / "cache")))
    return first[0]


def counts(outcome, tmp_path):
    """What a certificate says of the harness."""
    content = certificate.build(outcome, tmp_path)
    return {name: content[name] for name in ("harness", "reference", "smoke")}


def test_a_second_certification_takes_the_harness_as_shown(after, tmp_path):
    """It says so, gives the same counts and the same catches, and runs the backend all the same."""
    first, second = after, certify(PLAN)
    assert first.remembered == 0
    assert second.remembered == len(first.reference) + len(first.smoke)
    assert counts(first, tmp_path) == counts(second, tmp_path)
    assert [v.observation.examples for v in first.verdicts] == [v.observation.examples for v in second.verdicts]


@pytest.mark.parametrize("change", ["fresh", "seed", "sources"])
def test_other_seeds_and_other_sources_are_asked_anew(after, monkeypatch, change):
    """So is everything with --fresh."""
    if change == "sources":
        monkeypatch.setattr(remembered, "_foundation", lambda: "other")
    plan = replace(PLAN, seed=7) if change == "seed" else PLAN
    assert certify(plan, fresh=change == "fresh").remembered == 0


def test_only_successes_are_kept():
    """Neither a check that the reference failed, nor a stage that let a fault through or gave no result."""
    passed = _on_reference(next(c for c in planned(PLAN) if c.kind == "exact"), None)

    def kept(result):
        return remembered.success("asked", "nf4.offset", result)

    assert kept(passed) == {"asked": []}
    assert kept(replace(passed, verdict="FAIL")) == {}
    assert kept(Lost("was ended", 0, None)) == {}
    assert kept([("scaling lost", "a check")]) == {"asked": [("scaling lost", "a check")]}
    assert kept([("scaling lost", "a check"), ("rank lost", "")]) == {}


def test_operations_of_plugins_are_not_remembered(monkeypatch):
    """Their sources are not in the hash."""
    monkeypatch.setattr(find("nf4.offset"), "__module__", "elsewhere.ops")
    assert remembered.success("asked", "nf4.offset", [("scaling lost", "a check")]) == {}


def test_a_damaged_cache_is_an_empty_one(cache):
    """Whatever bytes are in it."""
    path = remembered._path()
    path.parent.mkdir(parents=True)
    for content in (b"", b"\xff", b"[1]"):
        path.write_bytes(content)
        assert remembered.recall() == {}
    remembered.keep({"reference 0 x": []})
    assert remembered.recall() == {"reference 0 x": []}
