"""What the kit's commands show on a terminal: a progress bar on standard error, results in tables."""

from __future__ import annotations

import time
from pathlib import Path

import click


class ProgressBar:
    """A progress bar on standard error; where that is no terminal, a line a minute."""

    interval = 60.0

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
        self.title, self.due = title, time.monotonic() + self.interval

    def __enter__(self):
        self.bar.__enter__()
        return self.update

    def update(self, done: int, total: int, news: str) -> None:
        self.bar.update(self.task, completed=done, total=total)
        if self.bar.disable and time.monotonic() > self.due:
            self.due += self.interval
            click.echo(f"{self.title}: {done} of {total} steps", err=True)
        if news:
            self.bar.console.print(news, style="red", highlight=False, markup=False, soft_wrap=True)

    def __exit__(self, *failure):
        return self.bar.__exit__(*failure)


def certificate(content: dict, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from refpeft.numerics.formats import as_format
    from refpeft_conformance.summary import VACUOUS_LIMIT, vacuous_share

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
            records = [r for r in content["checks"] if (r["operation"], r["dtype"]) == (operation, dtype)]
            table.add_row(
                operation,
                as_format(dtype).short,
                str(row["passed"]),
                str(row["checks"] - row["unsupported"]),
                str(row["examples"]),
                f"{row['worst_share']:.3f}",
                f"{vacuous_share(records):.2%}" if row["elements"] else "-",
                str(row["near"]),
            )
    console.print(table)
    for operation in content["vacuous_over_limit"]:
        said = f"too little said  {operation}: more of its budgets in fp32 are vacuous than {VACUOUS_LIMIT:.0%}"
        console.print(said, highlight=False, markup=False)
    for operation, frozen in content["subject"]["frozen"].items():
        console.print(f"no gradient to  {operation}: {', '.join(frozen)}", highlight=False, markup=False)
    for operation, reasons in content["outside"].items():
        for reason, count in reasons.items():
            console.print(f"not taken  {operation}: {reason} ({count} problems)", highlight=False, markup=False)
    console.print(f"training  {training(content)}", highlight=False, markup=False)
    caught = sum(bool(s["caught_by"]) for s in content["smoke"])
    console.print(
        f"harness {content['harness']}: reference {content['reference']['PASS']} of {content['reference']['run']}, "
        f"smoke faults caught {caught} of {len(content['smoke'])}"
        + (f" ({content['remembered']} of these answers are from earlier runs)" if content["remembered"] else "")
    )
    for check in content["reference"].get("failed", ()):
        console.print(f"[red]UNSOUND[/] the reference does not pass {check}", highlight=False)
    for record in content["checks"]:
        if record["verdict"] == "ERROR":
            console.print(f"[red]ERROR[/] {record['id']}: {record['message'].splitlines()[0]}", highlight=False)
    for record in unexampled(content):
        console.print(f"[red]FAIL[/] {record['id']}: {record['message']}", highlight=False)
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


def unexampled(content: dict) -> list[dict]:
    """Checks that failed and left no counterexample: a training as a whole, or a backend that gave nothing."""
    known = {example["check"] for example in content["counterexamples"]}
    return [r for r in content["checks"] if r["verdict"] == "FAIL" and r["id"] not in known]


def training(content: dict) -> str:
    """What is to be said of trajectories that were not checked, and how many were."""
    said, ran = content["training"], {c["operation"] for c in content["checks"] if c["kind"] == "training"}
    if not said["declared"]:
        return "not declared by the backend: no trajectory was checked"
    lacking = [name for name in said["known"] if name not in said["trainable"]]
    lacks = f"; it lacks operations of {', '.join(lacking)}" if lacking else ""
    return f"{len(ran)} of {len(said['trainable'])} trajectories were asked for{lacks}"


def replayed(found, message: str, same: bool) -> None:
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
