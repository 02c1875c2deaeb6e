"""``refpeft golden``: make the golden files of the spec, and verify them."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, progress, report

_pattern = click.option(
    "--operations",
    "pattern",
    default="*",
    metavar="PATTERN[,PATTERN...]",
    help="Only operations that match, as 'lora.*'.",
)
_folder = click.option("--folder", metavar="FOLDER", help="Where they are, if not in the installed spec.")


@click.group("golden", invoke_without_command=True)
@click.pass_context
def command(context):
    """Make or verify the golden files of the spec."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@_pattern
@_folder
@as_json
def make(pattern, folder, as_json):
    """Write the golden files of each operation."""
    from refpeft_spec import golden

    rows = []
    for operation in progress(list(golden.specified(pattern).values()), "making"):
        files = golden.make(operation, folder or golden.FOLDER)
        rows.append({"operation": operation.name, "cases": len(files), "bytes": sum(files.values())})
    report(rows, ("operation", "cases", "bytes"), as_json)


@command.command()
@_pattern
@_folder
@as_json
@click.pass_context
def verify(context, pattern, folder, as_json):
    """Recompute the golden files of each operation; exit status 1 where one does not hold."""
    from refpeft_spec import golden

    folder = folder or golden.FOLDER
    rows = []
    for name in progress(sorted({*golden.specified(pattern), *golden.strays(folder, pattern)}), "verifying"):
        complaints = golden.verify(name, folder)
        rows.append({"operation": name, "verdict": "FAIL" if complaints else "PASS", "complaints": complaints})
    report(rows, ("operation", "verdict", "complaints"), as_json)
    context.exit(1 if any(row["complaints"] for row in rows) else 0)
