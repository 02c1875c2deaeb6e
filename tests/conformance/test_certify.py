"""``refpeft certify`` and ``verify``: exit statuses, what is written, and what cannot be forged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft_conformance import certificate
from refpeft_conformance.verdict import VERDICTS

pytest.importorskip("torch")


def refpeft(*arguments):
    """Run the program in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Folder and certificate of a quick certification of torch on one operation."""
    folder = tmp_path_factory.mktemp("passed")
    result = refpeft(
        "certify",
        "torch",
        "--operations",
        "nf4.double_dequantize",
        "--profile",
        "quick",
        "--jobs",
        "1",
        "--out",
        folder,
    )
    assert result.exit_code == 0, result.output
    return folder, certificate.read(folder / "certificate.json")


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Folder and result of certifying a torch that forgets the nested offset."""
    folder = tmp_path_factory.mktemp("failed")
    arguments = (
        "--operations",
        "nf4.double_dequantize",
        "--profile",
        "quick",
        "--jobs",
        "1",
        "--fault",
        "nested offset forgotten",
    )
    return folder, refpeft("certify", "torch", *arguments, "--out", folder)


def test_a_passing_certificate_says_how_many_operations_and_checks(passed):
    """The headline counts the catalogue, not only what was run, and undeclared operations are named."""
    _, content = passed
    assert content["headline"].startswith("1 of ")
    assert content["passed_operations"] == ["nf4.double_dequantize"]
    assert content["counts"]["PASS"] == content["counts"]["run"] > 10
    assert "lora.linear" in content["undeclared"]
    assert content["harness"] == "sound"
    assert all(s["caught_by"] for s in content["smoke"]) and content["smoke"]
    assert {r["verdict"] for r in content["checks"]} <= set(VERDICTS)


def test_a_faulty_backend_fails_with_a_replayable_counterexample(failed):
    """Exit status 1, and each failed check left a minimal counterexample that replays."""
    folder, result = failed
    assert result.exit_code == 1, result.output
    content = certificate.read(folder / "certificate.json")
    assert content["counterexamples"]
    for example in content["counterexamples"]:
        assert refpeft("replay", folder / example["file"]).exit_code == 1
        assert refpeft("replay", folder / example["file"], "--no-fault").exit_code == 0
    assert "refpeft replay" in result.output


def test_a_failure_comes_back_from_a_worker_process(tmp_path):
    """With several workers a counterexample travels between processes, whole."""
    arguments = (
        "--operations",
        "nf4.offset",
        "--profile",
        "quick",
        "--jobs",
        "2",
        "--fault",
        "mean over one value too few",
    )
    result = refpeft("certify", "torch", *arguments, "--out", tmp_path)
    assert result.exit_code == 1, result.output
    assert certificate.read(tmp_path / "certificate.json")["counterexamples"]


def test_saved_counterexamples_are_replayed_first(failed):
    """Certifying into the same folder again reports the old counterexamples, which pass once the fault is gone."""
    folder, _ = failed
    result = refpeft(
        "certify",
        "torch",
        "--operations",
        "nf4.double_dequantize",
        "--profile",
        "quick",
        "--jobs",
        "1",
        "--out",
        folder,
    )
    assert result.exit_code == 0, result.output
    saved = certificate.read(folder / "certificate.json")["saved"]
    assert saved
    assert not any(s["fails"] for s in saved)


def test_equal_plans_give_equal_checks(passed, tmp_path):
    """All that depends on the plan is reproduced; only the time differs."""
    folder, content = passed
    refpeft(
        "certify",
        "torch",
        "--operations",
        "nf4.double_dequantize",
        "--profile",
        "quick",
        "--jobs",
        "2",
        "--out",
        tmp_path,
    )
    again = certificate.read(tmp_path / "certificate.json")
    assert again["checks"] == content["checks"]
    assert again["smoke"] == content["smoke"]
    assert folder != tmp_path


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
    content |= certificate.summary(content)
    content["seal"] = certificate.seal(content)
    assert any("running it again gives PASS" in sentence for sentence in certificate.verify(content))


def test_the_report_is_one_page_that_refers_to_nothing(passed):
    """No link, script, style sheet or image from anywhere else."""
    page = (passed[0] / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=|<script|@import|url\(", page)
    assert "nf4.double_dequantize" in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("certify", "nonesuch"), "there is no backend 'nonesuch'"),
        (("certify", "torch", "--operations", "no.such*"), "nothing to certify"),
        (("certify", "torch", "--device", "cuda:9"), "has no device 'cuda:9'"),
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
    """Every matrix of the file becomes a problem of the linear and quantisation operations."""
    import numpy as np

    from refpeft.formats import safetensors

    rng = np.random.default_rng(0)
    matrices = {f"layers.{i}.q": rng.normal(size=(12, 8)).astype(np.float32) for i in range(3)} | {
        "norm": np.ones(8, np.float32)
    }
    safetensors.save(tmp_path / "model.safetensors", matrices)
    arguments = ("--operations", "nf4.quantize", "--profile", "quick", "--jobs", "1", "--out", tmp_path / "out")
    result = refpeft("certify", "torch", *arguments, "--weights", f"{tmp_path / 'model.safetensors'}:layers.*")
    assert result.exit_code == 0, result.output
    rows = [r for r in certificate.read(tmp_path / "out" / "certificate.json")["checks"] if "real_model" in r["id"]]
    assert {r["dtype"] for r in rows} == {"float32", "bfloat16", "float16"}
    assert all(r["examples"] == 3 for r in rows)


def test_forward_only_leaves_gradients_out(tmp_path):
    """``--only forward`` runs no check that needs a vjp."""
    arguments = (
        "--operations",
        "lora.scaling",
        "--profile",
        "quick",
        "--jobs",
        "1",
        "--only",
        "forward",
        "--json",
        "--out",
        tmp_path,
    )
    result = refpeft("certify", "torch", *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plan"]["only"] == "forward"
    ids = [r["id"] for r in certificate.read(tmp_path / "certificate.json")["checks"]]
    assert ids
    assert not any("gradients" in i for i in ids)
