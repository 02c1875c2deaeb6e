"""``refpeft certify`` and ``verify``: exit statuses, what is written, and what cannot be forged."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from refpeft.cli import main
from refpeft.errors import FormatError
from refpeft.formats import safetensors
from refpeft.operation import catalogue
from refpeft_conformance import certificate, merging, verification
from refpeft_conformance.certify import _saved_of, examine, replay
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.plan import Plan, planned
from refpeft_conformance.summary import summary
from refpeft_conformance.verdict import FAIL, PASS, VERDICTS

FAULT = "mean over one value too few"


def refpeft(*arguments) -> Result:
    """Run the program in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def certify(folder: Path, *arguments, status: int = 0, jobs: int = 1, operations: str = "nf4.offset") -> Result:
    """Certify the reference, as if it were a backend, on one small operation; it must end with this status."""
    common = ("--operations", operations, "--profile", "quick", "--jobs", jobs, "--out", folder)
    result = refpeft("certify", "reference", *common, *arguments)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="session")
def passed(tmp_path_factory):
    """Folder and certificate of a quick certification that passes."""
    folder = tmp_path_factory.mktemp("passed")
    certify(folder)
    return folder, certificate.read(folder / "certificate.json")


@pytest.fixture(scope="session")
def failed(tmp_path_factory):
    """Folder and result of certifying with a fault."""
    folder = tmp_path_factory.mktemp("failed")
    return folder, certify(folder, "--fault", FAULT, status=1, jobs=2)


def test_a_passing_certificate_says_how_many_operations_and_checks(passed):
    """The headline counts what was selected and the whole catalogue; what was not selected is not called undeclared."""
    _, content = passed
    assert content["headline"] == f"1 of 1 selected operations (of {len(catalogue())} in all)"
    assert content["passed_operations"] == ["nf4.offset"]
    assert content["counts"]["PASS"] == content["counts"]["run"] > 10
    assert "lora.linear" in content["unselected"] and content["undeclared"] == []
    assert content["harness"] == "sound"
    assert all(s["caught_by"] for s in content["smoke"]) and content["smoke"]
    assert {r["verdict"] for r in content["checks"]} <= set(VERDICTS)


def test_a_faulty_backend_fails_with_a_replayable_counterexample(failed):
    """Each failed check left one, found in a worker process; the page and the output say how it is replayed."""
    folder, result = failed
    content = certificate.read(folder / "certificate.json")
    files = [example["file"] for example in content["counterexamples"]]
    assert len(files) == content["counts"]["FAIL"] > 5
    assert all((folder / file).is_file() for file in files)
    assert f"refpeft replay {folder / files[0]}" in result.output
    assert refpeft("replay", folder / files[0]).exit_code == 1
    assert refpeft("replay", folder / files[0], "--no-fault").exit_code == 0


def test_saved_counterexamples_are_replayed_first(failed, tmp_path):
    """Certifying into a folder that has some reports them: each passes once the fault is gone."""
    folder, _ = failed
    examples = sorted((folder / "counterexamples").iterdir())
    (tmp_path / "counterexamples").mkdir()
    for path in examples:
        (tmp_path / "counterexamples" / path.name).write_bytes(path.read_bytes())
    summary = json.loads(certify(tmp_path, "--only", "forward", "--json").stdout)
    assert summary["saved"] == [{"fails": "", "file": path.name} for path in examples]
    assert summary["plan"]["only"] == "forward"


def test_forward_only_leaves_gradients_out():
    """``--only forward`` plans no check that needs a vjp."""
    every, forward = (planned(Plan("reference", operations="lora.scaling", only=only)) for only in ("", "forward"))
    assert {c.gradients for c in every} == {True, False}
    assert [c.id for c in forward] == [c.id for c in every if not c.gradients]


def test_forward_only_finds_nothing_wrong_in_gradients(tmp_path):
    """A fault of gradients alone fails no check of conduct either, nor does an example saved when gradients were asked."""
    plan = Plan("reference", fault="scaling lost in db only", operations="lora.delta", profile="quick")
    for claim in ("exact-gradients_equal_as_numbers", "conduct-strided_inputs_give_the_same_answer"):
        verdict = examine(plan, "lora.delta", "float32", f"lora.delta-fp32-{claim}")
        assert verdict.verdict == FAIL
        Counterexample.of(verdict, "reference", plan.fault).save(tmp_path)
    forward = replace(plan, only="forward")
    for check in planned(forward):
        assert examine(forward, check.operation.name, check.dtype, check.id).verdict == PASS
    (saved,) = _saved_of(forward, tmp_path).values()
    assert replay(forward, saved)[0] == ""


def test_equal_plans_give_equal_checks(passed, tmp_path):
    """All that depends on the plan is reproduced, in whatever order workers end; only the time differs."""
    _, content = passed
    certify(tmp_path, jobs=2)
    again = certificate.read(tmp_path / "certificate.json")
    assert again["checks"] == content["checks"]
    assert again["smoke"] == content["smoke"]


def test_a_genuine_certificate_verifies(passed):
    """Counts and hashes follow, and the sampled checks give the same verdicts."""
    result = refpeft("verify", passed[0] / "certificate.json")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["checks"][0].update(verdict="FAIL"), "seal"),
        (lambda c: c["counts"].update(PASS=10**6), "does not follow"),
        (lambda c: c.update(headline="14 of 14 operations"), "headline does not follow"),
        (lambda c: c["spec"].update(pages="0" * 64), "spec of this installation"),
    ],
    ids=["verdict", "counts", "headline", "spec"],
)
def test_a_changed_certificate_is_found_out(passed, tmp_path, change, says):
    """Whatever is edited by hand contradicts the seal, the counts or the spec."""
    content = json.loads((passed[0] / "certificate.json").read_text())
    change(content)
    (tmp_path / "forged.json").write_text(json.dumps(content))
    result = refpeft("verify", tmp_path / "forged.json", "--no-rerun")
    assert result.exit_code == 1
    assert says in result.output


def test_resealing_a_forged_verdict_does_not_help(passed):
    """A forger who recomputes seal and counts is found by running the checks again."""
    content = json.loads((passed[0] / "certificate.json").read_text())
    for record in content["checks"]:
        record["verdict"] = "FAIL"
    content |= summary(content)
    content["seal"] = certificate.seal(content)
    assert any("running it again gives PASS" in sentence for sentence in verification.verify(content))


def test_the_report_is_one_page_that_refers_to_nothing(passed):
    """No link, script, style sheet or image from anywhere else."""
    page = (passed[0] / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=|<script|@import|url\(", page)
    assert "nf4.offset" in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("certify", "nonesuch"), "there is no backend 'nonesuch'"),
        (("certify", "reference", "--operations", "no.such*"), "nothing to certify"),
        (("certify", "reference", "--device", "cuda:9"), "has no device 'cuda:9'"),
        (("certify", "torch", "--fault", "scaling lots"), "did you mean 'scaling lost'"),
        (("certify", "torch", "--weights", "missing.gguf"), "missing.gguf"),
        (("certify",), "name of one backend"),
        (("certify", "--command", "/nonexistent/program"), "UNSUPPORTED"),
        (("verify", "missing.json"), "missing.json"),
        (("replay", "missing.safetensors"), "missing.safetensors"),
        (("faults", "--operation", "lora.liner"), "did you mean lora.linear"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_sentence_and_status_two(arguments, says, tmp_path, monkeypatch):
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    result = refpeft(*arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_verify_never_starts_what_a_certificate_names(passed, tmp_path):
    """A certificate's command is not run, even resealed."""
    content = json.loads((passed[0] / "certificate.json").read_text())
    content["subject"]["command"] = f"touch {tmp_path / 'trap'}"
    content["seal"] = certificate.seal(content)
    (tmp_path / "evil.json").write_text(json.dumps(content))
    result = refpeft("verify", tmp_path / "evil.json")
    assert result.exit_code == 2
    assert "--command PROGRAM" in result.output
    assert not (tmp_path / "trap").exists()


def test_changed_counterexamples_are_found_by_verify(failed, tmp_path):
    """Their hashes stand in the certificate."""
    folder = shutil.copytree(failed[0], tmp_path / "failed")
    assert refpeft("verify", folder / "certificate.json", "--no-rerun").exit_code == 0
    for path in (folder / "counterexamples").iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    result = refpeft("verify", folder / "certificate.json", "--no-rerun")
    assert result.exit_code == 1
    assert "is not the one that was certified" in result.output


def test_truncated_and_hostile_files_are_refused(tmp_path, failed):
    """A certificate that is no JSON, and a counterexample cut short, each give one sentence."""
    (tmp_path / "certificate.json").write_bytes(b'{"format": "refpeft-certi')
    assert refpeft("verify", tmp_path / "certificate.json").exit_code == 2
    example = next((failed[0] / "counterexamples").glob("*.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(Path(example).read_bytes()[:-3])
    result = refpeft("replay", tmp_path / "cut.safetensors")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1


def test_weights_of_a_model_join_the_checks(tmp_path):
    """Every matrix of the file becomes a problem of the quantisation operations, in each dtype that models are stored in."""
    rng = np.random.default_rng(0)
    matrices = {f"layers.{i}.q": rng.normal(size=(12, 8)).astype(np.float32) for i in range(3)}
    safetensors.save(tmp_path / "model.safetensors", matrices | {"norm": np.ones(8, np.float32)})
    model = f"{tmp_path / 'model.safetensors'}:layers.*"
    certify(tmp_path / "out", "--weights", model)
    rows = [r for r in certificate.read(tmp_path / "out" / "certificate.json")["checks"] if "real_model" in r["id"]]
    assert [r["examples"] for r in rows] == [3]
    joining = [c for c in planned(Plan("reference", operations="nf4.quantize", weights=model)) if "real_model" in c.id]
    assert {c.dtype for c in joining} == {"float32", "bfloat16", "float16"}


def test_a_certificate_remembers_its_weights_by_their_bytes(tmp_path):
    """Verified beside other weights, or without any, it is refused by the file's name; counts alone can still be checked."""
    model, folder = tmp_path / "model.safetensors", tmp_path / "out"
    safetensors.save(model, {"q": np.eye(4, dtype=np.float32)})
    certify(folder, "--weights", model)
    assert refpeft("verify", folder / "certificate.json").exit_code == 0
    safetensors.save(model, {"q": np.ones((4, 4), np.float32)})
    changed = refpeft("verify", folder / "certificate.json")
    assert changed.exit_code == 1 and "is not the one that was certified with" in changed.output
    model.unlink()
    missing = refpeft("verify", folder / "certificate.json")
    assert missing.exit_code == 2 and "model.safetensors" in missing.output
    assert len(missing.output.strip().splitlines()) == 1
    assert refpeft("verify", "--no-rerun", folder / "certificate.json").exit_code == 0


def test_a_gzipped_certificate_is_read_and_a_cut_one_refused(passed, tmp_path):
    """By its first bytes, whatever its name; the message names the file."""
    folder, content = passed
    whole = gzip.compress((folder / "certificate.json").read_bytes())
    path = tmp_path / "certificate.json.gz"
    path.write_bytes(whole)
    assert certificate.read(path) == content
    path.write_bytes(whole[:-20])
    with pytest.raises(FormatError, match=r"certificate\.json\.gz is not JSON"):
        certificate.read(path)


def test_what_a_backends_merges_cost_is_measured():
    """A rounding of the weight where they are right; a scaling that is applied twice makes them off by what the update is."""
    right, wrong = (merging.measure(Plan("reference", fault=f), "lora.merge") for f in ("", "scaling applied twice"))
    assert {"lora", "rslora", "pissa"} <= right.keys()
    assert 1e-3 < right["lora"]["bfloat16"]["apart"] < 4e-3
    assert wrong["rslora"]["float32"]["lost"] > 0.5 > right["rslora"]["float32"]["lost"]


def test_what_a_backend_does_not_take_has_no_merging_figure():
    """peft's OFT turns by the inverse of the paper's rotation, which is the one that a method merges by."""
    pytest.importorskip("peft")
    assert merging.measure(Plan("peft-apart"), "oft.merge") == {}
    assert set(merging.measure(Plan("peft-apart"), "lora.merge")["lora"]) == {"float32", "bfloat16", "float16"}
