"""How commands speak: tables for people, JSON and tab-separated lines for programs, progress beside the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")


def report(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows of plain data: as JSON, or ``columns`` of them as a table (tab-separated where no terminal reads)."""
    if as_json:
        from refpeft.files import plain

        click.echo(json.dumps(plain(rows), indent=2))
        return
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *cells]:
            click.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for line in cells:
        table.add_row(*(Text(cell, overflow="fold") for cell in line))
    Console().print(table)


def progress(items: Sequence, label: str) -> Iterator:
    """The items one by one, with a bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(track(items, label, console=console, transient=True, disable=not console.is_terminal))


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """What to tell how much of the total is done: it moves a bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)


def _cell(value) -> str:
    if isinstance(value, dict):
        return _cell([f"{key} {_cell(v)}" for key, v in value.items()])
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Iterable):
        return ", ".join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
