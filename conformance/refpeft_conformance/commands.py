"""The kit's commands. Each imports what it needs when it runs, so that ``refpeft --help`` stays quick."""

from __future__ import annotations

import json as jsonlib
import math
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click


def _limit(context, parameter, value: float) -> float:
    if not 0 <= value < math.inf:
        raise click.BadParameter("expected a number of seconds, or 0 for no limit.")
    return value


timeout_option = click.option(
    "--timeout",
    type=float,
    callback=_limit,
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="How long one call of the backend may take, compiling included; 0 for no limit.",
)


@click.command()
@click.argument("name", required=False)
@click.option("--command", default="", metavar="PROGRAM", help="Certify a program that speaks the process protocol.")
@click.option(
    "--operations",
    default="*",
    metavar="PATTERN[,PATTERN...]",
    show_default=True,
    help="Which operations and trajectories, as shell patterns: 'nf4.*', 'train.*'.",
)
@click.option("--only", type=click.Choice(["forward"]), default=None, help="Leave gradients out.")
@click.option("--profile", type=click.Choice(["quick", "standard", "thorough"]), default="standard", show_default=True)
@click.option("--device", default="", help="Device of the backend; its first where not given.")
@click.option(
    "--jobs", type=click.IntRange(1), default=min(4, os.cpu_count() or 1), show_default=True, help="Worker processes."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--weights", default="", metavar="FILE[:GLOB]", help="Also use the matrices of a safetensors or GGUF file."
)
@click.option("--fault", default="", metavar="NAME", help="Make a known fault to the backend first: it must then fail.")
@timeout_option
@click.option("--fresh", is_flag=True, help="Try the harness anew, whatever it has shown on this machine before.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=None, help="Folder for certificate and report."
)
@click.option("--json", "as_json", is_flag=True, help="Print the certificate's summary as JSON.")
def certify(name, command, operations, only, profile, device, jobs, seed, weights, fault, timeout, fresh, out, as_json):
    """Certify backend NAME and write certificate.json and report.html.

    Exit status 0: every must-pass check of every declared operation passed. 1: something failed; the shrunk counterexamples lie
    beside the certificate. 2: bad input, a broken harness, or nothing could run.
    """
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "refpeft-hypothesis"))
    from refpeft import plugins
    from refpeft_conformance import certificate, report, terminal
    from refpeft_conformance import certify as certification
    from refpeft_conformance.loop_faults import LOOP_FAULTS

    if bool(name) == bool(command):
        raise click.UsageError("give the name of one backend, or --command PROGRAM.")
    plan = certification.Plan(
        name or "process", command, device, fault, operations, only or "", profile, seed, weights, timeout
    )
    if fault and fault not in LOOP_FAULTS:
        certification.named_fault(fault)
    if weights:
        from refpeft.formats.weights import matrices

        next(iter(matrices(weights)))
    with redirect_stdout(sys.stderr):
        backend = plan.honest()
        if command:
            certification.require_available(plan)
            _warn_of_unknown(backend)
        folder = out or Path("certificate-" + re.sub(r"[^\w.-]+", "-", backend.name))
        try:
            with terminal.ProgressBar(f"certifying {plan.backend}") as progress:
                outcome = certification.certify(
                    plan, jobs=jobs, saved=folder / "counterexamples", fresh=fresh, progress=progress
                )
        except KeyboardInterrupt:
            click.echo("refpeft: interrupted; nothing was written.", err=True)
            raise
        with _uninterrupted():
            folder.mkdir(parents=True, exist_ok=True)
            content = certificate.build(outcome, folder)
            certificate.write(content, folder / "certificate.json")
            report.write(content, folder / "report.html")
        plugins.call("refpeft_certified", certificate=content)
    if as_json:
        click.echo(jsonlib.dumps({k: v for k, v in content.items() if k != "checks"}, sort_keys=True))
    else:
        terminal.certificate(content, folder)
    sys.exit(content["exit_status"])


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--no-rerun", is_flag=True, help="Only recompute counts and hashes.")
@click.option(
    "--command", default="", metavar="PROGRAM", help="The program to run again, where the certificate is one's."
)
@click.option("--json", "as_json", is_flag=True)
def verify(path, no_rerun, command, as_json):
    """Verify a certificate: recompute its counts and hashes, and run a seeded 2 % sample of its checks again.

    It is unsigned: this proves consistency, not authorship.
    """
    from refpeft_conformance import certificate, verification

    wrong = verification.verify(certificate.read(path), path.parent, rerun=not no_rerun, command=command)
    if as_json:
        click.echo(jsonlib.dumps(wrong))
    else:
        for sentence in wrong:
            click.echo(sentence)
        if not wrong:
            click.echo(
                f"{path} is consistent" + ("." if no_rerun else ", and its sampled checks give the same verdicts here.")
            )
    sys.exit(1 if wrong else 0)


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--backend", default="", help="Replay on another backend than the recorded one.")
@click.option("--command", default="", metavar="PROGRAM", help="Replay on a program that speaks the process protocol.")
@click.option("--device", default="", help="Replay on another device than the recorded one.")
@click.option("--no-fault", is_flag=True, help="Replay without the fault that was made to the backend.")
@timeout_option
@click.option("--json", "as_json", is_flag=True)
def replay(path, backend, command, device, no_fault, timeout, as_json):
    """Replay a counterexample. Exit status 1 while it still fails, 0 once it passes."""
    from refpeft import plugins
    from refpeft.errors import PluginError
    from refpeft_conformance import terminal
    from refpeft_conformance.certify import Plan, replayed
    from refpeft_conformance.counterexample import Counterexample

    found = Counterexample.load(path)
    if not command and not backend and found.backend not in plugins.backends():
        raise PluginError(
            f"{path} was recorded with {found.backend!r}, which is no registered backend: give --command PROGRAM."
        )
    fault = "" if no_fault else found.fault
    elsewhere = (backend or command) and (backend or command) != found.backend
    plan = Plan(
        backend or ("process" if command else found.backend),
        command,
        device or ("" if elsewhere else found.device),
        fault,
        timeout=timeout,
    )
    message, same = replayed(plan, found)
    if as_json:
        click.echo(
            jsonlib.dumps(
                {
                    "check": found.check,
                    "fails": bool(message),
                    "message": message,
                    "same_bits": same,
                    "minimal": found.minimal,
                }
            )
        )
    else:
        terminal.replayed(found, message, same)
    sys.exit(1 if message else 0)


@click.command()
@click.option("--operation", default="", help="Only those that can be made to this operation.")
@click.option("--json", "as_json", is_flag=True)
def faults(operation, as_json):
    """List the faults that the kit can make to a backend, and to the loop of a training."""
    from refpeft.operation import find
    from refpeft_conformance.faults import faults as all_faults
    from refpeft_conformance.faults import faults_of
    from refpeft_conformance.loop_faults import as_faults

    known = [*all_faults().values(), *as_faults()]
    if operation:
        op = find(operation)
        known = sorted({f.name: f for d in op.dtypes for f in faults_of(op, d)}.values(), key=lambda f: f.name)
    if as_json:
        rows = [
            {"name": f.name, "family": f.family, "operations": f.operations, "needs": f.needs, "dtypes": f.dtypes}
            for f in known
        ]
        click.echo(jsonlib.dumps(rows))
        return
    for family in sorted({f.family for f in known}):
        click.echo(click.style(family, bold=True))
        for fault in known:
            if fault.family == family:
                click.echo(f"  {fault.name}")


def _warn_of_unknown(backend) -> None:
    """Say what a program lists that this refpeft does not know, and so leaves out."""
    for sentence in backend.unknown:
        click.echo(f"refpeft: left out: {sentence}", err=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within the block the user's interrupt is too late: files that belong together are written, all of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
