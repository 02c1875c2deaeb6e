"""``refpeft convert``: a model's weights as a 4-bit checkpoint that bitsandbytes loads."""

from __future__ import annotations

import click

from refpeft.cli._options import as_bytes
from refpeft.cli._output import as_json, bar, report


@click.command("convert")
@click.argument("model")
@click.option("--out", required=True, metavar="DIR", help="The new folder.")
@click.option("--to", "kind", default="nf4", show_default=True, metavar="FORMAT", help="nf4 or fp4.")
@click.option("--double-quant", "double", is_flag=True, help="Quantise the blocks' maxima as well.")
@click.option("--blocksize", type=int, default=64, show_default=True, help="32 to 4096, a power of two.")
@click.option("--dtype", metavar="DTYPE", help="Round every tensor first: float32, bfloat16 or float16.")
@click.option("--quantise", multiple=True, metavar="GLOB", help="Matrices to quantise; *.weight where not given.")
@click.option("--keep", multiple=True, metavar="GLOB", help="But not these; tables, norms and heads where not given.")
@click.option("--shard", default="5GB", show_default=True, metavar="SIZE", help="About as large a file becomes.")
@click.option("--backend", metavar="NAME", help="Who quantises; cpu where it has the format, else the reference.")
@click.option("--restart", is_flag=True, help="Begin anew where another conversion to DIR was interrupted.")
@as_json
def command(model, out, kind, double, blocksize, dtype, quantise, keep, shard, backend, restart, as_json):
    """Quantise MODEL, tensor by tensor: a safetensors file, a Hugging Face folder or a GGUF file.

    Interrupted, the same command goes on where it was. DIR appears when it is whole.
    """
    from refpeft import plugins
    from refpeft.convert.folder import rewrite
    from refpeft.convert.quantise import Quantise, Settings
    from refpeft.convert.select import KEEP, QUANTISE, selected
    from refpeft.convert.source import open_model
    from refpeft.errors import CapabilityError
    from refpeft.models import tokens

    settings = Settings(kind=kind, blocksize=blocksize, double=double, dtype=dtype)
    size = as_bytes("--shard", shard)
    runner = plugins.backend(backend) if backend is not None else _quick(kind)
    if runner.unavailable():
        raise CapabilityError(f"backend {backend!r} cannot run here: {runner.unavailable()}")
    source = open_model(model)
    work = Quantise(selected(source.tensors, quantise or QUANTISE, keep or KEEP), settings, runner)
    with bar("converting", source.elements) as advance:
        resumed, after = rewrite(
            source, work, out, shard=size, beside=tokens.files(model), restart=restart, advance=advance
        )
    row = {"out": out, "tensors": len(source.tensors), "quantised": len(work.chosen), "resumed": resumed}
    row |= {"bytes_before": source.bytes, "bytes_after": after}
    report([row], tuple(row), as_json)


def _quick(kind: str):
    """The backend that is quick on any machine, if it has the format: it gives the reference's bits."""
    from refpeft import plugins

    known = plugins.backends()
    return known["cpu"] if "cpu" in known and f"{kind}.quantize" in known["cpu"].operations() else known["reference"]
