"""``refpeft golden``: make the golden files of the spec, and verify them."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, progress, report

_pattern = click.option(
    "--operations",
    "pattern",
    default="*",
    metavar="PATTERN[,PATTERN...]",
    help="Only operations and trajectories that match, as 'lora.*' or 'train.*'.",
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
    """Write the golden files of each operation, and of trajectories."""
    from refpeft_spec import golden

    rows = []
    for name, module in progress(list(_specified(pattern).items()), "making"):
        files = module.make(name, folder or golden.FOLDER)
        rows.append({"operation": name, "cases": len(files), "bytes": sum(files.values())})
    report(rows, ("operation", "cases", "bytes"), as_json)


@command.command()
@_pattern
@_folder
@as_json
@click.pass_context
def verify(context, pattern, folder, as_json):
    """Recompute the golden files of each operation, and of trajectories; exit status 1 where one does not hold."""
    from refpeft_spec import golden

    folder = folder or golden.FOLDER
    rows, chosen = [], dict.fromkeys(golden.strays(folder, pattern), golden) | _specified(pattern)
    for name, module in progress(sorted(chosen.items()), "verifying"):
        complaints = module.verify(name, folder)
        rows.append({"operation": name, "verdict": "FAIL" if complaints else "PASS", "complaints": complaints})
    report(rows, ("operation", "verdict", "complaints"), as_json)
    context.exit(1 if any(row["complaints"] for row in rows) else 0)


def _specified(pattern: str) -> dict:
    """The module that makes and verifies the golden files of each operation and trajectory that matches, by name."""
    from refpeft.operation import matches
    from refpeft_spec import golden, trajectory

    trained = dict.fromkeys(trajectory.matching(pattern), trajectory)
    operations = golden.specified() if trained else golden.specified(pattern)
    return {name: golden for name in operations if matches(name, pattern)} | trained
