"""``refpeft certify`` ends, whatever a backend does and however it is interrupted, and leaves nothing half done."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import all_gone

from refpeft_conformance.commands import _uninterrupted

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "process_python"

HANGS_ON_LONG = "\nif absmax.size > 1000: forever()"
PROGRAM = f"""
import os, sys, time
sys.path.insert(0, {str(EXAMPLE)!r})
from backend import read_message, write_message
def note():
    with open(os.environ["MISDEED_PIDS"], "a") as file:
        print(os.getpid(), file=file)
note()
OK = {{"protocol": "refpeft/1", "status": "ok"}}
ABOUT = {{"name": "stuck", "version": "1", "operations": "nf4.offset:forward, next.thing", "dtypes": "float32"}}
while (request := read_message(sys.stdin.buffer)) is not None:
    if request[0]["request"] != "describe":
        print("waiting for the device", file=sys.stderr, flush=True)
        note()
        time.sleep(600)
    write_message(sys.stdout.buffer, OK | ABOUT, {{}})
"""


@pytest.fixture(autouse=True)
def interruptible():
    """A shell's command in the background ignores interrupts, and so does all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def note(tmp_path):
    """The file in which a misbehaving backend notes its processes."""
    return tmp_path / "pids"


@pytest.fixture
def start(note, tmp_path):
    """Start ``refpeft`` as a terminal would, in a process group of its own, with a misbehaving backend installed."""
    started = []

    def run(*arguments, misdeed=HANGS_ON_LONG, at_start="") -> subprocess.Popen:
        path = os.pathsep.join(filter(None, [str(HERE / "site"), os.environ.get("PYTHONPATH", "")]))
        told = {"MISDEED": misdeed, "MISDEED_AT_START": at_start, "MISDEED_PIDS": str(note)}
        environment = os.environ | told | {"PYTHONPATH": path}
        command = [sys.executable, "-m", "refpeft", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def certify(*arguments) -> tuple:
    """The arguments that certify nf4.offset quickly."""
    return "certify", *arguments, "--operations", "nf4.offset", "--profile", "quick"


def test_a_hang_fails_its_check_and_the_others_go_on(start, note, tmp_path):
    """The certificate says what did not return, with the problem, which replays; short problems have passed."""
    process = start(*certify("misbehaving", "--jobs", 2, "--timeout", 1, "--json", "--out", tmp_path / "c"))
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    assert json.loads(output)["harness"] == "sound"
    content = json.loads((tmp_path / "c" / "certificate.json").read_text())
    sentences = {r["message"] for r in content["checks"]}
    assert sentences == {"", "the backend did not return within 1 seconds"}
    assert content["counts"]["PASS"] > 5
    assert content["counts"]["FAIL"] == len(content["counterexamples"]) > 0
    for failed in (r["id"] for r in content["checks"] if r["verdict"] == "FAIL"):
        assert f"{failed}: it did not return within 1 seconds" in errors
    assert all_gone(note)
    example = tmp_path / "c" / content["counterexamples"][0]["file"]
    again = start("replay", example, "--timeout", 1, "--json")
    said = json.loads(again.communicate(timeout=60)[0])
    assert (again.returncode, said["message"]) == (1, "the backend did not return within 1 seconds")
    assert not said["minimal"]
    assert start("replay", example, "--timeout", 20, misdeed="").wait(60) == 0


def test_what_a_backend_prints_is_not_on_standard_output(start, tmp_path):
    """The certificate's summary alone is, and it parses."""
    process = start(*certify("misbehaving", "--json", "--out", tmp_path / "c"), misdeed="print('hello')")
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(output)["passed_operations"] == ["nf4.offset"]
    assert "hello" in errors


def wait_for(process: subprocess.Popen, note: Path, count: int) -> None:
    """Return when so many notes have been taken."""
    deadline = time.monotonic() + 120
    while not note.exists() or len(note.read_text().split()) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_leaves_neither_processes_nor_files(start, note, tmp_path):
    """Ctrl-C while the backend hangs: status 130, no worker, no certificate, and that is said."""
    process = start(*certify("misbehaving", "--jobs", 2, "--timeout", 0, "--out", tmp_path / "c"), misdeed="forever()")
    wait_for(process, note, 2)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert errors.strip() == "refpeft: interrupted; nothing was written."
    assert all_gone(note)
    assert not (tmp_path / "c").exists()


def test_workers_do_not_outlive_a_parent_that_was_killed(start, note, tmp_path):
    """Not even SIGKILL leaves a worker behind."""
    process = start(*certify("misbehaving", "--jobs", 2, "--out", tmp_path / "c"), misdeed="forever()")
    wait_for(process, note, 2)
    process.kill()
    assert all_gone(note)


def test_an_impatient_interrupt_leaves_nothing_either(start, note, tmp_path):
    """A second Ctrl-C while a worker that ignores the first is given its time: it is killed at once."""
    deaf = "signal.signal(signal.SIGTERM, refuse); print(os.getpid(), file=open(os.environ['MISDEED_PIDS'], 'a')); forever()"
    process = start(*certify("misbehaving", "--timeout", 0, "--out", tmp_path / "c"), misdeed=deaf)
    wait_for(process, note, 2)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert all_gone(note, 1.0)


def test_an_interrupt_while_files_are_written_is_too_late():
    """Certificate, report and counterexamples belong together, and are written all."""
    with _uninterrupted():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("method", ["unavailable", "operations", "precision"])
def test_a_backend_that_hangs_when_asked_about_itself_is_unsupported(start, tmp_path, method):
    """No driver that is stuck stops refpeft: one sentence and status 2."""
    about = f"Misbehaving.{method} = lambda *_: forever()"
    process = start(*certify("misbehaving", "--timeout", 1, "--out", tmp_path / "c"), at_start=about)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "did not return within 1 seconds when it was asked what it can do" in errors
    assert not (tmp_path / "c").exists()


@pytest.fixture
def stuck(tmp_path):
    """The command of a program that describes itself and answers nothing else."""
    (tmp_path / "stuck.py").write_text(PROGRAM)
    return shlex.join([sys.executable, str(tmp_path / "stuck.py")])


def test_a_program_that_hangs_fails_with_its_last_words(start, stuck, note, tmp_path):
    """The limit is the same, each request of a program has it, and what it wrote to standard error is quoted."""
    arguments = certify("--command", stuck, "--jobs", 4, "--timeout", 1, "--out", tmp_path / "c")
    process = start(*arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    content = json.loads((tmp_path / "c" / "certificate.json").read_text())
    messages = {r["message"] for r in content["checks"] if r["verdict"] == "FAIL"}
    assert messages
    assert all("did not answer forward of nf4.offset in float32 within 1 seconds" in m for m in messages)
    assert all("its last words were 'waiting for the device'" in m for m in messages)
    assert errors.count("refpeft: left out: there is no operation 'next.thing'") == 1
    assert all_gone(note)


def test_an_interrupt_ends_a_program_that_hangs(start, stuck, note, tmp_path):
    """The program is in a session of its own, which the terminal does not reach, and still it goes."""
    process = start(*certify("--command", stuck, "--jobs", 1, "--timeout", 0, "--out", tmp_path / "c"))
    wait_for(process, note, 3)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert all_gone(note)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("limit", ["-1", "nan", "inf", "soon"])
def test_a_limit_that_is_none_is_refused(start, limit):
    """One sentence and status 2."""
    process = start("certify", "misbehaving", "--timeout", limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--timeout" in errors
    assert len(errors.strip().splitlines()) == 1
