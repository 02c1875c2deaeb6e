"""The ``refpeft`` program: results on standard output, one sentence on standard error, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import click
import numpy as np
import pytest
from click.testing import CliRunner

from refpeft import Problem, catalogue, cli, operation, plugins
from refpeft.cli import main
from refpeft.comparison import oracle
from refpeft.formats import safetensors
from refpeft.golden import answer
from refpeft.numerics.precision import standard_precision
from refpeft.reference import ReferenceBackend, as_implementation

PROGRAM = (sys.executable, "-c", "from refpeft.cli import main; main()")


def run(*arguments):
    """The program in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def spawn(*arguments, **keywords):
    """The program in a process of its own."""
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60, **keywords)


def one_sentence(result) -> str:
    """What a failed run said: one line on standard error that ends a sentence, exit status 2, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("refpeft: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip()[-1] in ".?"
    return result.stderr


@pytest.fixture
def arrays():
    """Inputs and a cotangent of a small lora.linear."""
    random = np.random.default_rng(0)
    shapes = {"x": (2, 3), "weight": (4, 3), "a": (2, 3), "b": (4, 2), "dy": (2, 4)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def given(tmp_path, arrays):
    """A folder that holds only in.safetensors."""
    safetensors.save(tmp_path / "in.safetensors", arrays)
    return tmp_path


def ask(folder, *more, operation="lora.linear", scaling="scaling=1.3"):
    """``refpeft oracle`` on the folder's file."""
    attribute = ("--attribute", scaling) if scaling else ()
    out = folder / "out.safetensors"
    return run("oracle", operation, "--inputs", folder / "in.safetensors", "--out", out, *attribute, *more)


def test_help_names_every_command():
    """``refpeft``, ``-h`` and ``--help`` list the program's own commands and exit with 0."""
    for arguments in ((), ("-h",), ("--help",)):
        result = run(*arguments)
        assert result.exit_code == 0
        assert all(f"\n  {name} " in result.stdout for name in cli.COMMANDS)


def test_help_needs_no_array_library_but_numpy():
    """Showing help imports neither SciPy nor rich, torch, Hypothesis or pytest, however many plugins bring commands."""
    code = (
        "import sys\nfrom refpeft.cli import main\ntry: main(['--help'])\n"
        "finally: print(*{'scipy', 'rich', 'torch', 'hypothesis', 'pytest'} & sys.modules.keys(), sep=',')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.splitlines()[-1] == ""


def test_operations_lists_the_catalogue():
    """The JSON list holds each operation once, with its signature, dtypes, gradients, budget kinds and page."""
    rows = json.loads(run("operations", "--json").stdout)
    known = catalogue()
    assert [row["name"] for row in rows] == list(known)
    lora = next(row for row in rows if row["name"] == "lora.linear")
    operation = known["lora.linear"]
    assert lora["signature"] == str(operation.signature)
    assert lora["dtypes"] == list(operation.dtypes)
    assert lora["gradients"] == list(operation.gradients)
    assert lora["budgets"] == dict.fromkeys(["y", *operation.gradients], "proven")
    assert lora["page"] == "lora"
    assert [a["name"] for a in lora["attributes"]] == ["scaling", "keep"]


def test_a_pipe_gets_tab_separated_lines():
    """Where no terminal reads, a table is a header and one line for each row, all with the same number of fields."""
    lines = run("operations").stdout.splitlines()
    assert len(lines) == 1 + len(catalogue())
    assert {line.count("\t") for line in lines} == {5}


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_honoured(no_color):
    """At a terminal headers are coloured or bold, unless NO_COLOR is set: then no colour code is written."""
    import pty

    code = "import sys; from refpeft.cli import main; main(['explain', 'nn.linear'])"
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "NO_COLOR": no_color}
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 1 << 16):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(leader)
    assert process.returncode == 0
    coloured = any(b"\x1b[%s3%dm" % (style, n) in shown for style in (b"", b"1;") for n in range(8))
    assert coloured is (no_color == "")


def test_backends_are_listed_without_torch():
    """The list says what torch is and which distribution brings it, and does not import it."""
    code = (
        "import sys\nfrom refpeft.cli import main\n"
        "try: main(['backends', '--json'])\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    rows = {row["name"]: row for row in json.loads(shown.stdout)}
    assert shown.stderr.split()[-1] == "False"
    assert rows["reference"]["status"] == "available"
    assert rows["torch"]["distribution"].startswith("refpeft ")
    assert rows["torch"]["operations"] is None


def test_verbose_backends_count_operations(monkeypatch):
    """With --verbose a backend tells its devices and how many operations it has."""
    reference = plugins.backend("reference")
    monkeypatch.setattr(plugins, "backends", lambda: {"reference": reference})
    row = json.loads(run("backends", "--json", "--verbose").stdout)[0]
    assert (row["devices"], row["operations"], row["frozen"]) == (["cpu"], len(catalogue()), {})


def test_verbose_backends_tell_what_is_frozen(monkeypatch):
    """By operation; a declaration of what is trained makes the backend a broken one."""
    found = as_implementation(catalogue()["lora.linear"])
    for frozen, shown in ((("weight",), {"lora.linear": ["weight"]}), (("a",), None)):
        backend = ReferenceBackend()
        monkeypatch.setattr(backend, "operations", lambda frozen=frozen: {"lora.linear": replace(found, frozen=frozen)})
        monkeypatch.setattr(plugins, "backends", lambda backend=backend: {"reference": backend})
        row = json.loads(run("backends", "--json", "-v").stdout)[0]
        assert (row["frozen"], row["status"]) == (shown, "available" if shown else "broken")


def test_a_backend_that_raises_is_shown_as_broken(monkeypatch):
    """An exception in a backend's description costs that backend its row's status, and nothing else."""
    reference = plugins.backend("reference")

    class Faulty(type(reference)):
        name = "faulty"

        def unavailable(self):
            raise RuntimeError("no such\nbus")

    monkeypatch.setattr(plugins, "backends", lambda: {"faulty": Faulty(), "reference": reference})
    rows = {row["name"]: row for row in json.loads(run("backends", "--json").stdout)}
    assert (rows["faulty"]["status"], rows["faulty"]["reason"]) == ("broken", "RuntimeError: no such\nbus")
    assert rows["reference"]["status"] == "available"


@pytest.fixture
def broken_plugin(monkeypatch):
    """A plugin that failed to load."""
    broken = plugins.Broken("kit", "some-kit", "1.2", "ImportError: no module named x")
    monkeypatch.setattr(plugins, "broken", lambda: [broken])
    return broken


def test_a_broken_plugin_is_said_where_it_matters(broken_plugin):
    """Help, an unknown command and the list of backends say so in one line; other commands are silent about it."""
    assert run("--help").stderr == f"refpeft: {broken_plugin}.\n"
    assert str(broken_plugin) in one_sentence(run("zzz"))
    assert {"kit"} == {r["name"] for r in json.loads(run("backends", "--json").stdout) if r["status"] == "broken"} - {
        "conformance"
    }
    assert run("operations").stderr == ""


@pytest.fixture
def offered(monkeypatch):
    """Commands that plugins bring; a plugin marked broken is noted by name."""
    marked: dict[str, str] = {}
    found: list[tuple[str, object]] = []
    monkeypatch.setattr(plugins, "commands", lambda: found)
    monkeypatch.setattr(plugins, "_mark", lambda name, error: marked.update({name: str(error)}))
    cli.plugin_commands.cache_clear()
    yield found, marked
    cli.plugin_commands.cache_clear()


def test_plugins_bring_commands(offered):
    """A plugin's command is in the help and runs; its errors end in one sentence like the program's own."""

    @click.command("certify")
    @click.argument("backend")
    def certify(backend):
        """Certify a backend."""
        plugins.backend(backend)

    offered[0].append(("kit", [certify]))
    assert "certify" in run("--help").stdout
    assert run("certify", "reference").exit_code == 0
    assert "there is no backend 'nonesuch'" in one_sentence(run("certify", "nonesuch"))


def test_a_plugin_cannot_take_a_name_or_bring_something_else(offered):
    """The program's own command wins, then the first plugin's; what is not a command is refused. Each is marked."""
    certify = click.Command("certify")
    offered[0].extend(
        [("first", [certify]), ("second", [click.Command("certify")]), ("third", [click.Command("oracle"), "text"])]
    )
    assert cli.plugin_commands() == {"certify": certify}
    assert set(offered[1]) == {"second", "third"}


def test_the_oracle_writes_what_the_library_gives(given, arrays):
    """Values and budgets in the file are those of `refpeft.oracle`, bit for bit; the metadata says what they are of."""
    result = ask(given)
    assert result.exit_code == 0, result.stderr
    written = safetensors.load(given / "out.safetensors")
    golden = oracle("lora.linear", scaling=1.3, **arrays)
    assert {n.partition(".")[0] for n in written.tensors} == set(golden)
    for name, expected in golden.items():
        np.testing.assert_array_equal(written.tensors[f"{name}.value"], expected.value)
        np.testing.assert_array_equal(written.tensors[f"{name}.budget"], expected.budget)
        assert written.tensors[f"{name}.value"].dtype == np.float64
    assert written.metadata["operation"] == "lora.linear"
    assert written.metadata["dtype"] == "float32"
    assert json.loads(written.metadata["attributes"]) == {"scaling": 1.3, "keep": 1.0}
    assert json.loads(written.metadata["kinds"]) == dict.fromkeys(golden, "proven")
    assert "refpeft" in written.metadata
    assert not any(name.endswith(".rest") for name in written.tensors)


def test_the_oracle_writes_the_rest_of_double_double(tmp_path, arrays):
    """In fp64 value and rest together are the double-double golden value."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    safetensors.save(tmp_path / "in.safetensors", wide)
    assert ask(tmp_path).exit_code == 0
    written = safetensors.load(tmp_path / "out.safetensors").tensors
    np.testing.assert_array_equal(written["y.rest"], oracle("lora.linear", scaling=1.3, **wide)["y"].rest)


def test_the_oracle_reads_packed_problems(tmp_path, arrays):
    """A file that `Problem.pack` wrote brings its attributes along, and the command line goes before them."""
    inputs = {name: array for name, array in arrays.items() if name != "dy"}
    problem = Problem.of("lora.linear", inputs, {"scaling": 2.0}, {"dy": arrays["dy"]})
    safetensors.save(tmp_path / "in.safetensors", *problem.pack())
    for scaling, expected in ((None, 2.0), ("scaling=0.5", 0.5)):
        assert ask(tmp_path, "--force", scaling=scaling).exit_code == 0
        value = safetensors.load(tmp_path / "out.safetensors").tensors["da.value"]
        np.testing.assert_array_equal(value, oracle("lora.linear", scaling=expected, **arrays)["da"].value)
    assert "holds a problem of lora.linear" in one_sentence(ask(tmp_path, "--force", operation="nn.linear"))


def test_a_declared_precision_changes_the_budget(given, arrays):
    """The budgets are those of the promises given, here TF32 operands and eight splits."""
    assert ask(given, "--precision", "operands=tf32", "--precision", "splits=8").exit_code == 0
    from refpeft.numerics.formats import TF32

    inputs = {name: array for name, array in arrays.items() if name != "dy"}
    problem = Problem.of("lora.linear", inputs, {"scaling": 1.3}, {"dy": arrays["dy"]})
    expected = answer(problem, standard_precision("float32", operands=TF32, splits=8))
    np.testing.assert_array_equal(safetensors.load(given / "out.safetensors").tensors["y.budget"], expected["y"].budget)


def test_the_oracle_reports_each_output(given, arrays):
    """--json is a list with one entry for each output: kind, shape, largest magnitude and largest budget."""
    rows = {row["name"]: row for row in json.loads(ask(given, "--json").stdout)}
    golden = oracle("lora.linear", scaling=1.3, **arrays)
    assert list(rows) == list(golden)
    assert rows["y"]["shape"] == [2, 4]
    assert rows["y"]["largest"] == np.abs(golden["y"].value).max()
    assert rows["y"]["budget"] == golden["y"].budget.max()


BAD = {
    "an unknown operation": ({"operation": "lora.linaer"}, (), "did you mean lora.linear"),
    "an unknown attribute": ({}, ("--attribute", "rank=3"), "unknown argument 'rank'; it takes"),
    "an attribute that is no number": ({"scaling": "scaling=much"}, (), "scaling must be a finite number"),
    "an attribute that is not finite": ({"scaling": "scaling=nan"}, (), "scaling must be a finite number"),
    "an attribute without a value": ({"scaling": "scaling"}, (), "--attribute needs NAME=VALUE, but 'scaling' came"),
    "an attribute given twice": ({}, ("--attribute", "scaling=2"), "--attribute scaling is given twice"),
    "a missing attribute": ({"scaling": None}, (), "attribute scaling is missing"),
    "a broken constraint": ({}, ("--attribute", "keep=0"), "the signature needs keep > 0"),
    "an unknown dtype": ({}, ("--dtype", "fp8"), "'fp8' is not a floating-point format"),
    "another dtype than the arrays have": ({}, ("--dtype", "bf16"), "has dtype float32 but bfloat16 is needed"),
    "an unknown promise": ({}, ("--precision", "speed=1"), "--precision speed: unknown"),
    "a bad promise": ({}, ("--precision", "splits=0"), "--precision splits: '0' is not a value"),
    "an unknown option": ({}, ("--outputs", "x"), "No such option"),
    "an argument too many": ({}, ("more",), "unexpected extra argument"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_end_in_one_sentence(given, what):
    """The sentence names what was wrong, and the folder is as it was."""
    keywords, more, said = BAD[what]
    assert said in one_sentence(ask(given, *more, **keywords))
    assert os.listdir(given) == ["in.safetensors"]


def changed(**changes):
    """The arrays with some replaced, or left out where None."""
    return lambda arrays: safetensors.dumps({n: a for n, a in {**arrays, **changes}.items() if a is not None})


FILES = {
    "empty": (lambda arrays: b"", "starts with an 8-byte header length, got 0 bytes"),
    "truncated": (lambda arrays: safetensors.dumps(arrays)[:-1], "the header describes"),
    "no safetensors": (lambda arrays: b"GGUF" + bytes(60), "truncated or not safetensors"),
    "a missing input": (changed(weight=None), "input weight[o,i] is missing"),
    "an unknown tensor": (changed(z=np.zeros(1, np.float32)), "unknown input 'z'"),
    "a wrong shape": (changed(b=np.zeros((4, 3), np.float32)), "b has shape (4, 3) but signature b[o,r] needs (4, 2)"),
    "a wrong cotangent": (changed(dy=np.zeros((4, 2), np.float32)), "dy has shape (4, 2), but its output has shape"),
    "a wrong dtype": (changed(b=np.zeros((4, 2), np.float64)), "b has dtype float64 but float32 is needed"),
    "an integer dtype": (changed(x=np.zeros((2, 3), np.int64)), "'int64' is not a floating-point format"),
    "a tensor given twice": (changed(**{"input.x": np.zeros((2, 3), np.float32)}), "x twice"),
    "an overflow": (changed(x=np.full((2, 3), 3e38, np.float32)), "no finite error budget exists for y"),
    "bad attributes": (
        lambda arrays: safetensors.dumps(arrays, {"attributes": "[1]"}),
        "the attributes in its metadata must be a JSON object",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_bad_files_end_in_one_sentence(given, arrays, what):
    """The sentence names what was wrong with the file, and nothing is written."""
    make, said = FILES[what]
    (given / "in.safetensors").write_bytes(make(arrays))
    assert said in one_sentence(ask(given))
    assert os.listdir(given) == ["in.safetensors"]


def test_a_missing_file_ends_in_one_sentence(tmp_path):
    """The sentence names the file and what the system said; a folder in its place is as bad."""
    assert "in.safetensors: No such file or directory." in one_sentence(ask(tmp_path))
    (tmp_path / "in.safetensors").mkdir()
    assert "in.safetensors: Is a directory." in one_sentence(ask(tmp_path))
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_an_output_file_is_replaced_only_by_force(given):
    """Without --force a file that is there stays as it is."""
    (given / "out.safetensors").write_bytes(b"precious")
    assert "exists already: --force replaces it" in one_sentence(ask(given))
    assert (given / "out.safetensors").read_bytes() == b"precious"
    assert ask(given, "--force").exit_code == 0
    assert safetensors.load(given / "out.safetensors").metadata["operation"] == "lora.linear"
    assert sorted(os.listdir(given)) == ["in.safetensors", "out.safetensors"]


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(given, monkeypatch):
    """A missing folder, a file in its place, and a refusal of the system: one sentence, and nothing is left behind."""
    for out in (given / "none" / "out.safetensors", given / "in.safetensors" / "out.safetensors"):
        assert "does not exist" in one_sentence(ask(given, "--out", out))

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    assert "out.safetensors: Permission denied." in one_sentence(ask(given))
    assert os.listdir(given) == ["in.safetensors"]


def test_explain_shows_signature_and_page():
    """The text has the signature, the attributes and the page without its header."""
    shown = run("explain", "lora.linear").stdout
    assert str(catalogue()["lora.linear"].signature) in shown
    assert "- attribute `keep`: float, 1.0 where not given" in shown
    assert "### Gradient" in shown
    assert "must-pass:" not in shown
    assert "did you mean" in one_sentence(run("explain", "lora.linea"))


def test_explain_falls_back_on_the_docstring(monkeypatch):
    """An operation that no page declares, a plugin's say, is explained by its own docstring."""
    import refpeft_spec

    monkeypatch.setattr(refpeft_spec, "declared", dict)
    shown = run("explain", "lora.linear").stdout
    assert "Down-projection A." in shown
    assert "no page of the spec declares it" in shown


def test_unknown_commands_get_a_suggestion():
    """A near miss is named."""
    assert "there is no command 'orcale': did you mean oracle?" in one_sentence(run("orcale"))


def test_the_program_itself_fails_in_one_sentence(tmp_path):
    """In a process of its own: no traceback, exit status 2."""
    failed = spawn("oracle", "nn.linear", "--inputs", tmp_path / "none", "--out", tmp_path / "out")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == f"refpeft: {tmp_path / 'none'}: No such file or directory.\n"
    assert os.listdir(tmp_path) == []


def test_an_interruption_exits_with_130(monkeypatch):
    """Ctrl-C gives no traceback and the status that shells expect."""

    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(operation, "find", interrupt)
    result = run("explain", "lora.linear")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_a_bug_exits_with_2_and_a_traceback(monkeypatch):
    """An unforeseen exception is not mistaken for a failed check, and is not hidden."""

    def stumble(name):
        raise ZeroDivisionError

    monkeypatch.setattr(operation, "find", stumble)
    result = run("explain", "lora.linear")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


PRINTS = """
import click
from refpeft import cli
@click.command("prints")
def prints():
    print("held back in the buffer")
    click.get_current_context().exit(0)
cli.plugin_commands = lambda: {"prints": prints}
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGPIPE is POSIX's")
@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 141), (["operations", "--json"], 141), (["prints"], 0)])
def test_a_reader_that_goes_away_is_no_error(arguments, status):
    """With standard output closed at the other end nothing is said, not even when Python closes the stream."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, "-c", f"{PRINTS}\ncli.main({arguments!r})"]
    ended = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (status, "")


def test_text_survives_a_narrow_encoding():
    """Where the terminal cannot show a letter, a stand-in is written instead of a traceback."""
    shown = spawn("explain", "lora.linear", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert shown.returncode == 0, shown.stderr
    assert "y = x W? + bias" in shown.stdout
