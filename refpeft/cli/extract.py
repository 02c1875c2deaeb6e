"""``refpeft extract``: what an adapter of any method, or a tuned model, changes in a model's matrices, as LoRA."""

from __future__ import annotations

import re

import click

from refpeft.cli._output import as_json, report


@click.command("extract")
@click.argument("model")
@click.option("--adapter", metavar="DIR", help="What changes MODEL: an adapter whose method can be merged,")
@click.option("--tuned", metavar="MODEL", help="or a model that was made of it.")
@click.option("--out", required=True, metavar="DIR", help="The new folder.")
@click.option("--rank", type=int, metavar="R", help="Of every matrix; where not given, what each one needs.")
@click.option("--matrices-only", is_flag=True, help="Leave out changes of anything else than matrices of blocks.")
@as_json
def command(model, adapter, tuned, out, rank, matrices_only, as_json):
    """Write what an adapter of any method, or a tuned model, changes in the matrices of MODEL as a LoRA adapter in peft's form.

    Of the rank that is given it is the nearest there is; without one each matrix has the lowest rank that says its change to
    the rounding of the changed weights. Lost is the norm of what is left out over that of the change, the largest of a
    kind of matrix. A classifier's head that came with the adapter stays as it is.
    """
    from refpeft.convert.extract import of_adapter, of_model
    from refpeft.convert.source import open_model
    from refpeft.files import new_folder
    from refpeft.formats import adapters

    if (adapter is None) == (tuned is None):
        raise click.UsageError(
            "expected either --adapter or --tuned, got " + ("neither." if adapter is None else "both.")
        )
    source = open_model(model)
    with new_folder(out) as folder:
        if adapter is not None:
            made = of_adapter(source, adapters.load(adapter), rank, matrices_only=matrices_only)
        else:
            made = of_model(source, open_model(tuned), rank, matrices_only=matrices_only)
        adapters.save(folder, made.adapter, model)
    kinds: dict[str, list[str]] = {}
    for site in made.lost:
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", site), []).append(site)
    rows = []
    for kind, sites in kinds.items():
        arrays = [made.adapter.arrays[site] for site in sites]
        ranks = [len(its["a"]) for its in arrays]
        rows.append(
            {
                "matrices": kind,
                "number": len(sites),
                "lowest_rank": min(ranks),
                "highest_rank": max(ranks),
                "parameters": sum(a.size for its in arrays for a in its.values()),
                "lost": max(made.lost[site] for site in sites),
            }
        )
    report(rows, tuple(rows[0]), as_json)
