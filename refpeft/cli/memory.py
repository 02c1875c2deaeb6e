"""``refpeft memory``: what fine-tuning a model takes of memory, before anything is run."""

from __future__ import annotations

import json
from functools import partial

import click

from refpeft.cli._options import as_bytes, options_of_method, pairs
from refpeft.cli._output import as_json, report


@click.command("memory")
@click.argument("model", required=False)
@click.option(
    "--method",
    default="lora",
    show_default=True,
    help="full, lora, qlora, adapter, prefix, or any of 'refpeft methods'.",
)
@click.option("--rank", type=int, help="Rank of the method, or the width of a bottleneck adapter.")
@options_of_method
@click.option(
    "--targets",
    default="all-linear",
    show_default=True,
    metavar="SITES",
    help="As q,v or q_proj,v_proj; of methods for matrices.",
)
@click.option("--sequence", type=int, default=512, show_default=True, help="Tokens of a sequence.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at a time.")
@click.option(
    "--optimizer",
    default="adamw",
    show_default=True,
    help="sgd, momentum, adam, adamw, lion, adamw8bit, paged-adamw, ...",
)
@click.option("--dtype", default="bf16", show_default=True, help="Of dense weights and activations: fp32, bf16, fp16.")
@click.option("--adapter-dtype", default="fp32", show_default=True, help="Of what the method adds.")
@click.option("--quantised", metavar="FORMAT", help="The blocks' matrices: none, nf4, nf4-double (qlora's).")
@click.option("--master/--no-master", default=True, help="Whether full fine-tuning in 16 bits trains a copy in fp32.")
@click.option("--checkpointing/--no-checkpointing", default=True, help="Whether blocks are computed again backwards.")
@click.option("--fused-attention/--no-fused-attention", "fused", help="Whether attention keeps no probabilities.")
@click.option("--backend", help="Count what 'refpeft train' holds on a backend that trains in NumPy, as cpu, in fp32.")
@click.option("--gpu", metavar="SIZE", help="As 48GB (10**9) or 48GiB: exit status 1 if it does not fit.")
@click.option("--plot", metavar="FILE.png", help="Draw the account, with and without checkpointing.")
@click.option("--claims", is_flag=True, help="What papers say of memory, with the arithmetic, instead.")
@as_json
@click.pass_context
def command(context, model, method, rank, options, targets, quantised, backend, gpu, plot, claims, as_json, **run):
    """Count the memory that fine-tuning MODEL takes, part by part.

    MODEL is gpt3-175b, llama-7b, llama-13b, llama-33b, llama-65b, a Hugging Face config.json or folder (Llama, Mistral, Qwen2,
    GPT-2), or a GGUF file. With --backend the training steps are rehearsed on arrays that have shapes and no numbers, and what is
    held when most is held is counted, by the operation that it was made in.
    """
    from dataclasses import asdict, replace

    from refpeft.memory.account import Run, account
    from refpeft.memory.models import read

    if claims:
        context.exit(_claims(model, as_json))
    if model is None:
        raise click.UsageError("memory needs a MODEL, as llama-7b; 'refpeft memory --help' says which.")
    limit = None if gpu is None else as_bytes("--gpu", gpu)
    if backend:
        run["dtype"] = "fp32" if _stated(context, "dtype") is None else run["dtype"]
        _require_rehearsable(context, method, run["dtype"], plot)
    decoder = read(model)
    trained = _trained(decoder, method, rank, options, targets)
    planned = Run(**run, quantised=quantised or ("nf4-double" if method == "qlora" else "none"))
    if backend:
        account = partial(_rehearsed, backend, method, rank, options, targets)
    parts = account(decoder, trained, planned)
    total, paged = sum(p.bytes for p in parts), sum(p.bytes for p in parts if p.paged)
    if plot is not None:
        other = replace(planned, checkpointing=not planned.checkpointing)
        bars = {_bar(r): account(decoder, trained, r) for r in (planned, other)}
        _plot(plot, bars, f"{decoder.name}: {method}, {run['batch']} x {run['sequence']} tokens", limit)
    fits = None if limit is None else "yes" if total <= limit else "paged" if total - paged <= limit else "no"
    if as_json:
        found = {
            "model": decoder.name,
            "parameters": decoder.parameters(),
            "trained": trained.parameters,
            "method": method,
            "backend": backend,
        }
        found |= {"run": asdict(planned), "parts": [asdict(p) for p in parts], "bytes": total, "paged": paged}
        click.echo(json.dumps(found | {"gpu": limit, "fits": fits}, indent=2))
    else:
        rows = [
            {"part": p.name, "GB": f"{p.bytes / 1e9:.3f}", "bytes": p.bytes, "arithmetic": p.arithmetic} for p in parts
        ]
        rows += [{"part": "total", "GB": f"{total / 1e9:.3f}", "bytes": total, "arithmetic": ""}]
        report(rows, ("part", "GB", "bytes", "arithmetic"), False)
        for line in _words(decoder, trained, paged, fits, total, gpu):
            click.echo(line, err=True)
    context.exit(1 if fits == "no" else 0)


def _trained(decoder, method, rank, options, targets):
    """What the command line says is trained."""
    from refpeft.memory.trained import by_method, configured, full

    if method == "full":
        if rank is not None or options:
            raise click.UsageError("--method full takes neither --rank nor --option, because it adds nothing.")
        return full(decoder)
    return by_method(decoder, method, configured(method, rank, pairs("--option", options), decoder), targets)


def _stated(context, name):
    """An option's value if it was given."""
    from click.core import ParameterSource

    given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
    return context.params[name] if given else None


def _require_rehearsable(context, method, dtype, plot) -> None:
    """Refuse what training on a backend does not have."""
    if method == "full":
        raise click.UsageError("--backend rehearses 'refpeft train', which has no --method full.")
    for name, option in (("adapter_dtype", "adapter-dtype"), ("master", "master"), ("fused", "fused-attention")):
        if _stated(context, name) is not None:
            raise click.UsageError(f"--{option} is of the account of what must be held, which --backend replaces.")
    if dtype != "fp32":
        raise click.UsageError(f"--backend trains in fp32, but --dtype {dtype} came.")
    if plot is not None:
        raise click.UsageError("--plot draws the account of what must be held, which --backend replaces.")


def _rehearsed(backend, method, rank, options, targets, decoder, trained, run):
    """The parts of a rehearsal, as of an account."""
    from refpeft.convert.quantise import Settings
    from refpeft.memory.rehearsal import rehearse, require_small
    from refpeft.memory.trained import configured
    from refpeft.training import choice, loop

    fitting, sites = choice.at(decoder, configured(method, rank, pairs("--option", options), decoder), targets)
    require_small(trained, run.batch, run.sequence)
    settings = loop.Settings(batch=run.batch, optimizer=run.optimizer, checkpointing=run.checkpointing)
    double = run.quantised == "nf4-double"
    quantise = None if run.quantised == "none" else Settings(blocksize=run.blocksize, double=double)
    return rehearse(decoder, fitting, sites, settings, run.sequence, backend=backend, quantise=quantise)


def _words(decoder, trained, paged, fits, total, gpu):
    """What the table does not say, one sentence a line."""
    share = 100 * trained.parameters / decoder.parameters()
    yield (
        f"{decoder.name}: {decoder.parameters():,} parameters, trained {trained.parameters:,} ({share:.4g} %): "
        f"{trained.arithmetic}."
    )
    if paged:
        yield f"The optimizer state is paged: up to {paged / 1e9:.3f} GB may lie on the host."
    yield from {
        "yes": [f"It fits in {gpu}."],
        "paged": [f"It fits in {gpu} with optimizer state on the host, {(total - paged) / 1e9:.3f} GB without it."],
        "no": [f"It does not fit in {gpu}."],
    }.get(fits, [])


def _claims(model, as_json) -> int:
    """Print the claims; 1 if one does not hold."""
    from dataclasses import asdict

    from refpeft.memory.claims import claims

    if model is not None:
        raise click.UsageError(f"--claims takes no MODEL, but {model!r} came.")
    found = claims()
    report([asdict(claim) for claim in found], ("statement", "paper", "holds", "arithmetic"), as_json)
    return 0 if all(claim.holds for claim in found) else 1


def _bar(run) -> str:
    return f"with{'' if run.checkpointing else 'out'} checkpointing"


def _plot(path, bars, title, limit) -> None:
    from refpeft import drawing
    from refpeft.files import atomic_write
    from refpeft.memory.picture import draw

    drawing.require_png(path)
    atomic_write(path, draw(bars, title, limit))
