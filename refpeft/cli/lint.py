"""``refpeft lint``: what of an adapter would not survive another library or another machine."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, report


@click.command("lint")
@click.argument("adapter")
@click.option("--model", metavar="MODEL", help="Whether it fits: a Hugging Face folder, or a GGUF or safetensors file.")
@as_json
def command(adapter, model, as_json):
    """Say what of ADAPTER, a folder of peft's form or refpeft's own, another library or machine would lose or misread.

    A row for each finding: how bad, where, what, and what to do. Exit status 1 where there is an error or a warning.
    """
    from refpeft.convert.source import open_model
    from refpeft.formats.lint import lint

    tensors = open_model(model, four_bit=True).tensors if model else None
    shapes = None if tensors is None else {n: t.stored_shape for n, t in tensors.items()}
    found = lint(adapter, model or "", shapes)
    report([finding._asdict() for finding in found], ("severity", "where", "what", "do"), as_json)
    if any(finding.severity != "note" for finding in found):
        raise click.exceptions.Exit(1)
