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
    help="How long the backend may take over one problem, compiling included; 0 for no limit.",
)


@click.command()
@click.argument("name", required=False)
@click.option("--command", default="", metavar="PROGRAM", help="Certify a program that speaks the process protocol.")
@click.option(
    "--operations",
    default="*",
    metavar="PATTERN[,PATTERN...]",
    show_default=True,
    help="Which operations, as shell patterns.",
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
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=None, help="Folder for certificate and report."
)
@click.option("--json", "as_json", is_flag=True, help="Print the certificate's summary as JSON.")
def certify(name, command, operations, only, profile, device, jobs, seed, weights, fault, timeout, out, as_json):
    """Certify backend NAME and write certificate.json and report.html.

    Exit status 0: every must-pass check of every declared operation passed. 1: something failed; the shrunk counterexamples lie
    beside the certificate. 2: bad input, a broken harness, or nothing could run.
    """
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "refpeft-hypothesis"))
    from refpeft import plugins
    from refpeft_conformance import certificate, report
    from refpeft_conformance import certify as certification

    if bool(name) == bool(command):
        raise click.UsageError("give the name of one backend, or --command PROGRAM.")
    plan = certification.Plan(
        name or "process", command, device, fault, operations, only or "", profile, seed, weights, timeout
    )
    if fault:
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
            with _progress(f"certifying {plan.backend}") as progress:
                outcome = certification.certify(plan, jobs=jobs, saved=folder / "counterexamples", progress=progress)
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
        _print(content, folder)
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
    from refpeft_conformance import certificate

    wrong = certificate.verify(certificate.read(path), path.parent, rerun=not no_rerun, command=command)
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
@click.option("--no-fault", is_flag=True, help="Replay without the fault that was made to the backend.")
@timeout_option
@click.option("--json", "as_json", is_flag=True)
def replay(path, backend, command, no_fault, timeout, as_json):
    """Replay a counterexample. Exit status 1 while it still fails, 0 once it passes."""
    from refpeft import plugins
    from refpeft.errors import PluginError
    from refpeft_conformance.certify import Plan, replayed
    from refpeft_conformance.counterexample import Counterexample

    found = Counterexample.load(path)
    if not command and not backend and found.backend not in plugins.backends():
        raise PluginError(
            f"{path} was recorded with {found.backend!r}, which is no registered backend: give --command PROGRAM."
        )
    fault = "" if no_fault else found.fault
    plan = Plan(backend or ("process" if command else found.backend), command, fault=fault, timeout=timeout)
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
        _print_replay(found, message, same)
    sys.exit(1 if message else 0)


@click.command()
@click.option("--operation", default="", help="Only those that can be made to this operation.")
@click.option("--json", "as_json", is_flag=True)
def faults(operation, as_json):
    """List the faults that the kit can make to a backend."""
    from refpeft.operation import find
    from refpeft_conformance.faults import faults as all_faults
    from refpeft_conformance.faults import faults_of

    known = all_faults().values()
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


class _progress:
    """A progress bar on standard error; nothing where that is no terminal."""

    def __init__(self, title: str):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(title, total=None)

    def __enter__(self):
        self.bar.__enter__()
        return self.update

    def update(self, done: int, total: int, news: str) -> None:
        self.bar.update(self.task, completed=done, total=total)
        if news:
            self.bar.console.print(news, style="red", highlight=False, markup=False, soft_wrap=True)

    def __exit__(self, *failure):
        return self.bar.__exit__(*failure)


def _print(content: dict, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from refpeft.numerics.formats import as_format

    console = Console()
    verdict = {0: "[green]PASS[/]", 1: "[red]FAIL[/]", 2: "[red]ERROR[/]"}[content["exit_status"]]
    counts = content["counts"]
    console.print(
        f"{verdict}  {content['subject']['name']} on {content['subject']['device']}: {content['headline']}, "
        f"{counts['PASS']} of {counts['run']} checks passed, {counts['UNSUPPORTED']} unsupported"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("operation", "dtype", "passed", "checks", "examples", "worst share of budget", "vacuous", "near"):
        table.add_column(column, justify="left" if column in ("operation", "dtype") else "right")
    for operation, dtypes in content["operations"].items():
        for dtype, row in dtypes.items():
            vacuous = f"{row['vacuous'] / row['elements']:.2%}" if row["elements"] else "-"
            table.add_row(
                operation,
                as_format(dtype).short,
                str(row["passed"]),
                str(row["checks"] - row["unsupported"]),
                str(row["examples"]),
                f"{row['worst_share']:.3f}",
                vacuous,
                str(row["near"]),
            )
    console.print(table)
    for operation, reasons in content["outside"].items():
        for reason, count in reasons.items():
            console.print(f"not taken  {operation}: {reason} ({count} problems)", highlight=False, markup=False)
    caught = sum(bool(s["caught_by"]) for s in content["smoke"])
    console.print(
        f"harness {content['harness']}: reference {content['reference']['PASS']} of {content['reference']['run']}, "
        f"smoke faults caught {caught} of {len(content['smoke'])}"
    )
    for record in content["checks"]:
        if record["verdict"] == "ERROR":
            console.print(f"[red]ERROR[/] {record['id']}: {record['message'].splitlines()[0]}", highlight=False)
    for saved in content["saved"]:
        if saved["fails"]:
            console.print(
                f"[red]FAIL[/] saved counterexample {saved['file']} still fails: {saved['fails']}", highlight=False
            )
    for example in content["counterexamples"][:10]:
        console.print(f"[red]FAIL[/] {example['check']}: {example['message']}", highlight=False)
        if len(example["explanation"]) == 1:
            console.print(
                f"     the output lies within the budget of fault {example['explanation'][0]!r}, and of no other",
                highlight=False,
            )
        console.print(f"     refpeft replay {folder / example['file']}", highlight=False, soft_wrap=True)
    if len(content["counterexamples"]) > 10:
        console.print(f"     and {len(content['counterexamples']) - 10} more in {folder / 'counterexamples'}")
    console.print(f"wrote {folder / 'certificate.json'} and {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _print_replay(found, message: str, same: bool) -> None:
    problem = found.problem
    dims = ", ".join(f"{n} = {v}" for n, v in problem.dims.items())
    click.echo(f"{found.check}\n{problem.operation.name} in {problem.dtype} with {dims}")
    for name, array in [*problem.inputs.items(), *problem.cotangents.items()]:
        text = " ".join(str(array.tolist()).split())
        click.echo(f"  {name} = {text if len(text) < 200 else text[:197] + '...'}")
    if message:
        click.echo(f"still fails: {message}")
        click.echo(
            "the outputs are those of the record, bit for bit"
            if same and found.outputs
            else "there are no outputs, as in the record"
            if same
            else "the outputs differ from those of the record"
        )
    else:
        click.echo("passes now")
