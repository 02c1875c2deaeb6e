"""``refpeft train``: fine-tune a model on a text."""

from __future__ import annotations

from contextlib import contextmanager

import click

from refpeft.cli._output import as_json, report


@click.command("train")
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="A .txt file, or a .jsonl file of objects with a text.")
@click.option("--out", required=True, metavar="DIR", help="The run's folder; the same command goes on where it was.")
@click.option(
    "--method", default="lora", show_default=True, help="Any that 'refpeft methods' lists and that stands in a model."
)
@click.option("--rank", type=int, default=8, show_default=True)
@click.option("--alpha", type=float, default=16.0, show_default=True)
@click.option("--tokens", type=int, default=20, show_default=True, help="Virtual ones, of a prompt or prefix.")
@click.option("--reduction", type=int, default=16, show_default=True, help="The width over an adapter's.")
@click.option(
    "--targets", default="q,v", show_default=True, help="Of a method at matrices: which of every layer, or all-linear."
)
@click.option("--steps", type=int, default=200, show_default=True)
@click.option("--batch", type=int, default=4, show_default=True, help="Rows of text in a step.")
@click.option("--sequence", type=int, default=128, show_default=True, help="Tokens that a row predicts.")
@click.option("--lr", type=float, default=1e-3, show_default=True)
@click.option("--schedule", default="cosine", show_default=True, help="constant, linear or cosine.")
@click.option("--warmup", type=int, default=0, show_default=True, help="Steps.")
@click.option("--decay", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--checkpointing", is_flag=True, help="Compute blocks again on the way back, to keep less of them.")
@click.option("--backend", default="cpu", show_default=True, help="torch has every method.")
@as_json
def command(model, data, out, method, rank, alpha, tokens, reduction, targets, sequence, backend, as_json, **settings):
    """Train a method's arrays in MODEL, a Hugging Face folder or a GGUF file of Llama's type.

    A prefix is in every layer, and an adapter behind every sublayer. DIR/adapter is what peft loads, if it has the method;
    DIR/metrics.jsonl has a line for each step.
    """
    from dataclasses import replace
    from pathlib import Path

    from refpeft.errors import AttributeValueError
    from refpeft.methods import methods
    from refpeft.models import load
    from refpeft.models.llama import pattern
    from refpeft.models.sites import standing
    from refpeft.models.tokens import tokenizer
    from refpeft.training import loop, text

    known = methods()
    if method not in known:
        raise AttributeValueError(f"there is no method {method!r}: 'refpeft methods' lists them.")
    if sequence < 1:
        raise AttributeValueError(f"--sequence must be at least 1, but {sequence} came.")
    wanted = loop.Settings(**settings)
    numbers = {"rank": rank, "alpha": alpha, "tokens": tokens, "reduction": reduction}
    chosen = _configured(known[method], **numbers)
    ids = text.rows(data, tokenizer(model), sequence + 1)
    decoder = load(model, backend=backend)
    if hasattr(chosen, "size"):
        chosen = replace(chosen, size=decoder.shape.head_size)
    identity = {"model": str(model), "data": str(data), "sequence": sequence, "backend": backend}
    with _bar(wanted.steps) as advance:
        sites = pattern(decoder.shape, targets) if standing(chosen).endswith(".linear") else "*"
        losses = loop.train(decoder, chosen, sites, ids, wanted, Path(out), identity, advance)
    row = {"steps": len(losses), "first": losses[0], "last": losses[-1], "adapter": str(Path(out) / "adapter")}
    report([row], tuple(row), as_json)


def _configured(method, **numbers):
    """The method with those of the numbers that it has."""
    from dataclasses import fields

    own = {field.name for field in fields(method)}
    return method(**{name: number for name, number in numbers.items() if name in own})


@contextmanager
def _bar(steps: int):
    """The loss and the time that is left, on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)
