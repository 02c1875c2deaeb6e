"""The suite as a pytest plugin, from any folder."""

from __future__ import annotations

import subprocess
import sys


def run_pytest(folder, *arguments):
    """pytest in a process and folder of its own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        "refpeft_conformance",
        "-q",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240)


def test_selected_checks_run_from_any_folder(tmp_path):
    """Ids read as the spec does, so -k selects operation and dtype."""
    done = run_pytest(tmp_path, "--refpeft-backend", "cpu", "-k", "offset and fp32 and exact", "-vv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nf4.offset-fp32-exact-outputs_equal_as_numbers" in done.stdout


def test_the_suite_runs_under_xdist(tmp_path):
    """Two workers collect the same tests in the same order."""
    done = run_pytest(tmp_path, "--refpeft-backend", "cpu", "-k", "offset and fp32", "-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_backend_must_be_named(tmp_path):
    """Without one there is nothing to test, and pytest says how to name it."""
    done = run_pytest(tmp_path)
    assert done.returncode not in (0, 1)
    assert "--refpeft-backend NAME" in done.stdout + done.stderr


def test_an_unknown_backend_is_one_sentence(tmp_path):
    """The known ones are listed."""
    done = run_pytest(tmp_path, "--refpeft-backend", "nonesuch")
    assert "there is no backend 'nonesuch'" in done.stdout + done.stderr
    assert done.returncode not in (0, 1)
