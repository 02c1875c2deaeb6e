"""``refpeft merge``: a model with an adapter merged into its weights."""

from __future__ import annotations

import click

from refpeft.cli._options import as_bytes
from refpeft.cli._output import as_json, bar, report


@click.command("merge")
@click.argument("model")
@click.option("--adapter", required=True, metavar="DIR", help="As refpeft train leaves one, or peft.")
@click.option("--out", required=True, metavar="DIR", help="The new folder.")
@click.option("--dtype", metavar="DTYPE", help="Round every tensor first: float32, bfloat16 or float16.")
@click.option("--shard", default="5GB", show_default=True, metavar="SIZE", help="About as large a file becomes.")
@click.option("--restart", is_flag=True, help="Begin anew where another merge to DIR was interrupted.")
@as_json
def command(model, adapter, out, dtype, shard, restart, as_json):
    """Write MODEL, a Hugging Face folder or a GGUF file, with an adapter in its weights.

    It computes what the two do, at the cost of the model alone; LoRA's sums are exact but for one rounding. A classifier's
    head that came with the adapter is in it, too. Interrupted, the same command goes on where it was. DIR appears when it is
    whole.
    """
    from refpeft.convert.folder import rewrite
    from refpeft.convert.merge import Merge
    from refpeft.convert.source import open_model
    from refpeft.formats import adapters
    from refpeft.models import tokens

    work = Merge(adapters.load(adapter), dtype)
    size = as_bytes("--shard", shard)
    source = work.completed(open_model(model))
    work.require_fitting(source)
    with bar("merging", source.elements) as advance:
        resumed, after = rewrite(
            source, work, out, shard=size, beside=tokens.files(model), restart=restart, advance=advance
        )
    row = {"out": out, "tensors": len(source.tensors), "merged": len(work.adapted), "resumed": resumed, "bytes": after}
    report([row], tuple(row), as_json)
