"""Pages, catalogue and must-pass lists hold each other; golden files hold what the reference computes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import refpeft_spec
from refpeft.cli import main
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import safetensors
from refpeft.golden import stored
from refpeft.numerics.primitives import scatter_add, topk
from refpeft.operation import CATALOGUE, Operation, find
from refpeft.signature import Signature
from refpeft_conformance.checks import checks_of
from refpeft_spec import draw, golden, trajectory

OPERATIONS = sorted(golden.specified())


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_page(name):
    """One page declares it and speaks of it."""
    assert name in refpeft_spec.body(refpeft_spec.page_of(name))


def test_pages_declare_only_operations_that_exist():
    """A header names nothing that the catalogue lacks."""
    assert refpeft_spec.declared().keys() <= golden.specified().keys()


@pytest.mark.parametrize("name", sorted(refpeft_spec.declared()))
def test_must_pass_lists_fit_the_operation(name):
    """Conduct, provenance and golden files always; discontinuities where an output is discrete, and only there."""
    kinds = refpeft_spec.must_pass(name)
    assert {"conduct", "provenance", "golden"} <= set(kinds) <= set(refpeft_spec.CHECKS)
    assert len(kinds) == len(set(kinds))
    assert ("discontinuities" in kinds) == ("discrete" in find(name).kinds.values())


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_kit_has_a_check_of_every_kind_that_must_pass(name):
    """Else no backend could pass the operation."""
    kinds = {c.kind for dtype in find(name).dtypes for c in checks_of(find(name), dtype)}
    assert set(refpeft_spec.must_pass(name)) <= kinds


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty folder in the place of the pages; returns a function that writes one."""
    monkeypatch.setattr(refpeft_spec, "PAGES", tmp_path)
    refpeft_spec.declared.cache_clear()
    yield lambda name, text: (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    refpeft_spec.declared.cache_clear()


def test_a_header_declares_operations_and_checks(book):
    """The list holds for all operations of the page, unless a line of the header replaces it for one."""
    book("a", "---\noperations: f.g, f.h\nmust-pass: exact, laws\nmust-pass f.h: golden\n---\n# F\n")
    assert refpeft_spec.must_pass("f.g") == ("exact", "laws")
    assert refpeft_spec.must_pass("f.h") == ("golden",)
    assert refpeft_spec.body(refpeft_spec.page_of("f.h")) == "# F\n"


def test_a_page_without_header_declares_nothing(book):
    """It is a page, and its body is all of it."""
    book("plain", "# Plain\n---\noperations: f.g\n---\n")
    assert list(refpeft_spec.pages()) == ["plain"]
    assert refpeft_spec.body(refpeft_spec.pages()["plain"]).startswith("# Plain")
    with pytest.raises(CapabilityError, match=r"'f\.g'"):
        refpeft_spec.page_of("f.g")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("---\noperations: f.g\nmust-pass: exact", "between two lines"),
        ("---\noperations: f.g\nexact\n---\n", "between two lines"),
        ("---\noperations: f.g\nmust-pass: exact, fast\n---\n", "but is fast"),
        ("---\noperations: f.g\n---\n", "but is empty"),
        ("---\noperations: f.g, f.g\nmust-pass: exact\n---\n", "both declare"),
    ],
)
def test_a_malformed_header_is_refused(book, header, said):
    """In a sentence that names the page."""
    book("bad", header)
    with pytest.raises(FormatError, match=said) as refused:
        refpeft_spec.must_pass("f.g")
    assert "bad.md" in str(refused.value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_golden_files_of_the_spec_hold(name):
    """Every operation has golden files, and the reference computes the same today."""
    assert golden.verify(name) == []


def test_the_golden_files_are_small_and_all_of_something():
    """All together take less than 2 MB, and no folder belongs to an operation that does not exist."""
    assert sum(p.stat().st_size for p in golden.FOLDER.rglob("*") if p.is_file()) < 2_000_000
    assert golden.strays() == []


@pytest.mark.parametrize("name", ["lora.linear", "nn.linear"])
def test_the_reference_meets_its_golden_files(name):
    """Results rounded to storage lie within the stored budgets: |got - value - rest| <= budget, as the spec puts it."""
    cases = list(golden.load_cases(name))
    assert {p.dtype for p, _ in cases} == set(find(name).dtypes)
    for problem, answers in cases:
        got = stored(problem)
        assert got.keys() == answers.keys()
        for output, (value, rest, budget, _) in answers.items():
            assert np.all(np.abs((got[output].astype(np.float64) - value) - rest) <= budget), output


def test_cases_can_be_had_by_dtype():
    """Those of one dtype are as many as `CASES` says, and fp64 values have rests."""
    for dtype, count in golden.CASES.items():
        cases = list(golden.load_cases("nn.linear", dtype=dtype))
        assert [p.dtype for p, _ in cases] == [dtype] * count
        assert any(rest.any() for _, a in cases for _, rest, _, _ in a.values()) == (dtype == "float64")


def snapshot(folder):
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_golden_files_are_reproducible(tmp_path):
    """Two runs give the same bytes, a third touches no file, and cases of an earlier version disappear."""
    sizes = golden.make("nn.linear", tmp_path / "a")
    golden.make("nn.linear", tmp_path / "b")
    first = snapshot(tmp_path / "a")
    assert first == snapshot(tmp_path / "b")
    assert {f"nn.linear/{name}": size for name, size in sizes.items()} == {
        name: len(data) for name, data in first.items() if not name.endswith("manifest.json")
    }
    (tmp_path / "a" / "nn.linear" / "case-99.safetensors").write_bytes(b"old")
    before = {p: p.stat().st_ino for p in (tmp_path / "a" / "nn.linear").iterdir() if p.name != "case-99.safetensors"}
    golden.make("nn.linear", tmp_path / "a")
    assert {p: p.stat().st_ino for p in (tmp_path / "a" / "nn.linear").iterdir()} == before


def test_a_failed_write_leaves_no_half_file(tmp_path, monkeypatch):
    """When renaming fails, the manifest is not there yet and no temporary file stays."""

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    result = CliRunner().invoke(main, ["golden", "make", "--operations", "nn.linear", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.endswith("case-00.safetensors: Permission denied.\n")
    assert snapshot(tmp_path) == {}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Golden files of nn.linear in a folder of their own."""
    folder = tmp_path_factory.mktemp("golden")
    golden.make("nn.linear", folder)
    return snapshot(folder / "nn.linear")


@pytest.fixture
def place(tmp_path, pristine):
    """A copy of them that may be damaged."""
    folder = tmp_path / "nn.linear"
    folder.mkdir()
    for name, data in pristine.items():
        (folder / name).write_bytes(data)
    return folder


def rewrite(place, change, name="case-03.safetensors"):
    """Change the tensors of a case in place, and give the manifest the new hash."""
    archive = safetensors.load(place / name)
    change(archive.tensors)
    data = safetensors.dumps(archive.tensors, archive.metadata)
    old = hashlib.sha256((place / name).read_bytes()).hexdigest()
    (place / name).write_bytes(data)
    text = (place / "manifest.json").read_text()
    (place / "manifest.json").write_text(text.replace(old, hashlib.sha256(data).hexdigest()))


def complaint(place) -> str:
    """The one thing that verification says."""
    (said,) = golden.verify("nn.linear", place.parent)
    return said


def test_a_changed_byte_is_found(place):
    """The manifest's hash tells."""
    data = bytearray((place / "case-03.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "case-03.safetensors").write_bytes(data)
    assert complaint(place) == "case-03.safetensors is not the file whose hash the manifest holds."
    with pytest.raises(FormatError, match="hash"):
        list(golden.load_cases("nn.linear", place.parent))


VALUE, BUDGET = 0, 1


def move(name, row, share):
    """Move the first element of a result's value or budget by a share of its budget."""

    def change(tensors):
        golden = tensors[f"golden.{name}"]
        golden[row].flat[0] += share * golden[BUDGET].flat[0]

    return change


@pytest.mark.parametrize(("name", "row"), [("y", VALUE), ("dweight", VALUE), ("dx", BUDGET)])
def test_last_bits_may_differ_and_more_may_not(place, name, row):
    """Half the slack is what another BLAS may do; twice the slack is a different value or budget."""
    rewrite(place, move(name, row, golden.SLACK / 2))
    assert golden.verify("nn.linear", place.parent) == []
    rewrite(place, move(name, row, 2 * golden.SLACK))
    assert name in complaint(place)
    assert "recomputes to" in complaint(place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("golden.y"), "needs value and budget of y"),
        (lambda t: t.update({"golden.y": t["golden.y"].astype(np.float32)}), "needs value and budget of y"),
        (lambda t: t.update({"golden.dx": t["golden.dx"][:1]}), "needs value and budget of dx"),
        (lambda t: t.update({"golden.dx": t["golden.dx"][:, :-1]}), "needs value and budget of dx"),
        (lambda t: t.update({"golden.z": np.zeros(1)}), "holds golden.z, which is no part"),
        (lambda t: t["golden.y"][VALUE].fill(np.nan), "y at .* is nan but recomputes"),
        (lambda t: t.pop("input.weight"), "input weight.* is missing"),
        (lambda t: t.update({"input.x": 2 * t["input.x"]}), "recomputes to"),
    ],
)
def test_a_case_that_lacks_or_contradicts_something_is_found(place, change, said):
    """Even when its hash is in the manifest."""
    rewrite(place, change)
    said_all = golden.verify("nn.linear", place.parent)
    assert said_all
    assert all(re.search(said, one) for one in said_all)


def test_missing_and_unlisted_files_are_found(place):
    """The folder holds what the manifest lists, and nothing else."""
    (place / "case-05.safetensors").rename(place / "notes.txt")
    assert golden.verify("nn.linear", place.parent) == [
        "notes.txt is not in the manifest.",
        "case-05.safetensors is missing.",
    ]


def edited(place, change):
    """The manifest, changed."""
    manifest = json.loads((place / "manifest.json").read_text())
    change(manifest)
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("cases"), "malformed"),
        (lambda m: m.update(cases=7), "malformed"),
        (lambda m: m.update(cases=[{}]), "malformed"),
        (lambda m: m.update(cases=["case-00.safetensors"]), "malformed"),
        (lambda m: m.update(cases=[]), "must list cases"),
        (lambda m: m.update(cases=m["cases"] + m["cases"][:1]), "must list cases"),
        (lambda m: m["cases"][0].update(file="../../etc/passwd"), "must list cases"),
        (lambda m: m["cases"][0].pop("attributes"), "must list cases"),
        (lambda m: m.update(signature="x[n] -> y[n]"), "but the operation is"),
        (lambda m: m["cases"][0].update(dtype="float16"), "another problem than its manifest says"),
        (lambda m: m["cases"][0].update(attributes={"scaling": 1.0}), "another problem than its manifest says"),
        (lambda m: m["kinds"].pop("dx"), "needs value and budget of dx"),
        (lambda m: m["kinds"].update(y="exact"), "y is exact but now proven"),
        (lambda m: m.update(cases=[c for c in m["cases"] if c["dtype"] != "float16"]), "no case in float16"),
    ],
)
def test_a_wrong_manifest_is_found(place, change, said):
    """Malformed, incomplete, or of another operation: a complaint says so."""
    edited(place, change)
    said_all = golden.verify("nn.linear", place.parent)
    assert any(said in one for one in said_all)


@pytest.mark.parametrize("text", [b"", b"[", b"\xff", b"[" * 100_000, b"null", b'"cases"'])
def test_a_manifest_that_is_no_manifest_is_found(place, text):
    """Whatever the bytes are, there is one sentence."""
    (place / "manifest.json").write_bytes(text)
    assert "malformed" in complaint(place)


def run_golden(*arguments):
    """``refpeft golden`` in this process."""
    return CliRunner().invoke(main, ["golden", *map(str, arguments)])


def test_golden_verify_exits_with_1_on_a_mismatch(place):
    """0 if everything holds; 1 with the complaint if not; 2 if no operation matches."""
    common = ("--folder", place.parent, "--operations", "nn.linear", "--json")
    held = run_golden("verify", *common)
    assert (held.exit_code, json.loads(held.stdout)) == (
        0,
        [{"operation": "nn.linear", "verdict": "PASS", "complaints": []}],
    )
    rewrite(place, move("y", VALUE, 1))
    failed = run_golden("verify", *common)
    assert failed.exit_code == 1
    (row,) = json.loads(failed.stdout)
    assert row["verdict"] == "FAIL"
    assert "y at [" in row["complaints"][0]
    nothing = run_golden("verify", "--operations", "zz.*")
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("refpeft: No operation matches 'zz.*', expected at least one of ")


def test_golden_verify_finds_operations_without_files_and_files_without_operation(place):
    """A folder of an operation that does not exist, and an operation without a folder, both fail."""
    place.rename(place.with_name("nn.gone"))
    rows = json.loads(run_golden("verify", "--folder", place.parent, "--operations", "nn.*", "--json").stdout)
    said = {row["operation"]: row["complaints"] for row in rows if row["operation"] in ("nn.gone", "nn.linear")}
    assert said["nn.gone"][0].startswith("there is no operation 'nn.gone'")
    assert said["nn.linear"][0].startswith("nn.linear has no golden files")


def test_golden_make_reports_what_it_wrote(tmp_path):
    """The JSON list has the number of cases and their bytes; verification then passes."""
    made = run_golden("make", "--folder", tmp_path, "--operations", "nn.linear", "--json")
    (row,) = json.loads(made.stdout)
    files = list((tmp_path / "nn.linear").glob("case-*"))
    assert row == {"operation": "nn.linear", "cases": len(files), "bytes": sum(f.stat().st_size for f in files)}
    assert run_golden("verify", "--folder", tmp_path, "--operations", "nn.linear").exit_code == 0


@pytest.fixture
def gather(monkeypatch):
    """An operation of every sort of argument, with a domain that raw draws seldom hit."""

    def source(x, index, codes, scale, keep, *, shift: int = 1, pair: tuple[int, int] = (1, 1)):
        """Nothing that anybody needs."""
        picked = topk(x, 1)
        return scatter_add(np.where(keep, x, 0.0), index, 4) * scale, picked, codes

    signature = (
        "x[m,k] index: index(4)[m] codes: u8[ceil(m*k/2)] scale: f32[] keep: bool[m,k] "
        "-> y[4,k] top: i64[m,1] copy: u8[ceil(m*k/2)] where m = k*shift, k >= 2"
    )
    operation = Operation(
        "test.gather",
        Signature.parse(signature),
        source,
        ("float32", "bfloat16"),
        {"top": "discrete", "copy": "exact"},
        {},
    )

    @operation.makes_valid
    def positive(random, arrays, attributes):
        return {"scale": np.abs(arrays["scale"]) + 1}

    @operation.refuses
    def refuse(x, index, codes, scale, keep, **attributes):
        if scale <= 0:
            raise CapabilityError("test.gather: scale must be positive.")

    monkeypatch.setitem(CATALOGUE, operation.name, operation)
    return operation


def test_any_operation_can_be_drawn(gather, tmp_path):
    """Indices, bytes, truth values, discrete outputs, derived dims and a domain of its own: the round trip holds."""
    golden.make(gather, tmp_path)
    assert golden.verify(gather.name, tmp_path) == []
    cases = list(golden.load_cases(gather, tmp_path))
    assert len(cases) == golden.CASES["float32"] + golden.CASES["bfloat16"]
    for problem, answers in cases:
        assert problem.dims["m"] == problem.dims["k"] * problem.attributes["shift"]
        assert {name: kind for name, (*_, kind) in answers.items()} == {
            "y": "proven",
            "top": "discrete",
            "copy": "exact",
        }
        assert not answers["top"][2].any()


def test_the_first_case_has_everything_and_the_second_nothing_optional():
    """So every optional input is seen present and absent."""
    operation = find("lora.linear")
    optional = {a.name for a in operation.signature.inputs if a.optional}
    first, second = (draw.case(operation, "float32", golden.SEED, index)[0] for index in (0, 1))
    assert optional <= first.inputs.keys()
    assert not optional & second.inputs.keys()


def test_a_case_depends_on_its_seed_name_dtype_and_number_alone():
    """Another index or seed gives other numbers; the same ones give the same problem, whatever was drawn before."""
    operation = find("nn.linear")
    one, again = (draw.case(operation, "float32", 0, 3)[0] for _ in range(2))
    assert {n: a.tobytes() for n, a in one.inputs.items()} == {n: a.tobytes() for n, a in again.inputs.items()}
    for other in (draw.case(operation, "float32", 0, 4)[0], draw.case(operation, "float32", 1, 3)[0]):
        assert other.inputs["x"].tobytes() != one.inputs["x"].tobytes()


def test_an_operation_that_cannot_be_drawn_is_refused(gather):
    """In a sentence that says why the last draw failed."""
    gather.makes_valid(lambda random, arrays, attributes: {"scale": -np.ones(())})
    with pytest.raises(
        CapabilityError, match=r"none of .* draws in float32 is a problem; the last: .* must be positive"
    ):
        draw.case(gather, "float32", 0, 0)


def test_a_trajectory_is_what_its_golden_file_says(tmp_path):
    """Of its budget one sample is run again here, all by ``refpeft golden verify``; one that leads outside is told."""
    name, there = "train.prompt", tmp_path / "train"
    shutil.copytree(golden.FOLDER / "train", there)
    archive = safetensors.load(there / "prompt.safetensors")
    archive.tensors["golden.loss"][1] /= 2
    safetensors.save(there / "prompt.safetensors", archive.tensors, archive.metadata)
    (said,) = trajectory.verify(name, tmp_path, samples=1)
    assert said.startswith("the budget of loss at [0] is ")
    (there / "decoder.safetensors").unlink()
    (said,) = trajectory.verify(name, tmp_path)
    assert said.startswith("there is no golden file ")


def test_all_trajectories_are_small_and_those_of_the_reference():
    """Under 30 kB in all; plain float64 gives the same values, and every budget says something."""
    assert sum(p.stat().st_size for p in (golden.FOLDER / "train").iterdir()) < 30_000
    for name, known in trajectory.trajectories().items():
        stored, fresh = known.load(), known.run(lambda array: array.astype(np.float64), float)
        assert stored.keys() == fresh.keys(), name
        for output, g in stored.items():
            assert np.all(np.abs(fresh[output] - g.value) <= golden.SLACK * g.budget), (name, output)
            assert np.all(np.isfinite(g.budget)) and not g.vacuous.any()
