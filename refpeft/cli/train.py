"""``refpeft train``: fine-tune a model on a text, or on texts with labels."""

from __future__ import annotations

from contextlib import contextmanager

import click

from refpeft.cli import _classification as classes
from refpeft.cli._options import options_of_method, pairs, require_taken, training
from refpeft.cli._output import as_json, report


@click.command("train")
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="A .txt file, or a .jsonl file of objects with a text.")
@classes.task
@classes.labelling
@click.option("--out", required=True, metavar="DIR", help="The run's folder; the same command goes on where it was.")
@click.option(
    "--method", default="lora", show_default=True, help="Any that 'refpeft methods' lists and that stands in a model."
)
@click.option("--rank", type=int, default=8, show_default=True)
@options_of_method
@click.option("--plot", metavar="FILE.png", help="Draw the loss of each step.")
@click.option("--seed", type=int, default=0, show_default=True)
@training
@as_json
def command(
    model,
    data,
    task,
    labels,
    head,
    hidden_dropout,
    out,
    method,
    rank,
    options,
    plot,
    alpha,
    tokens,
    reduction,
    targets,
    sequence,
    backend,
    quantise,
    start_text,
    as_json,
    **settings,
):
    """Train a method's arrays in MODEL, a Hugging Face folder or a GGUF file of Llama's or GPT-2's type.

    With --task classification MODEL is an encoder of BERT's kind, each line of FILE a text, cut to --sequence tokens, with its
    label, and the classifier above the encoder is trained, too.

    A prefix is in every layer, and an adapter behind every sublayer; qlora is lora over a model in NF4, doubly quantised.
    DIR/adapter is what peft loads, if it has the method; DIR/metrics.jsonl has a line for each step.
    """
    import math
    from dataclasses import asdict
    from pathlib import Path

    from refpeft import drawing
    from refpeft.convert.source import digest, open_model
    from refpeft.errors import AttributeValueError, DomainError
    from refpeft.files import atomic_write
    from refpeft.memory.machine import require_memory
    from refpeft.models.tokens import tokenizer
    from refpeft.training import choice, curve, loop, text

    require_taken(method)
    numbers = {"rank": rank, "alpha": alpha, "tokens": tokens, "reduction": reduction}
    classes.require_task(task, labels=labels, head=head, hidden_dropout=hidden_dropout)
    chosen = choice.configured(method, pairs("--option", options), **numbers)
    if sequence < 1:
        raise AttributeValueError(f"--sequence must be at least 1, but {sequence} came.")
    tokens_of = tokenizer(model)
    wanted = loop.Settings(**settings, start_text=text.token_ids(start_text, tokens_of))
    if plot is not None:
        drawing.require_png(plot)
    quantise = choice.base(method, quantise)
    how = {"backend": backend, "quantise": quantise}
    identity = {"model": str(model), "data": str(data), "sequence": sequence, "backend": backend}
    identity |= {"quantised": asdict(quantise)} if quantise else {}
    asked = classes.asked(task, model, data, labels, head, hidden_dropout)
    rows = asked.rows(data, tokens_of, sequence)
    learner = asked.model(model, settings["seed"], **how)
    identity |= asked.record() | {"sha256 of the model": digest(open_model(model, four_bit=True))}

    def finish(losses):
        if plot is not None:
            atomic_write(Path(plot), curve.draw(losses, f"{method} on {Path(model).name}"))

    with _bar(wanted.steps) as advance:
        fitting, sites = choice.at(learner.shape, chosen, targets)
        require_memory(learner.shape, method, fitting, targets, loop.longest(rows), wanted.optimizer)
        losses = loop.train(learner, fitting, sites, rows, wanted, Path(out), identity, advance, finish=finish)
    if wrong := [step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)]:
        raise DomainError(
            f"the loss was {losses[wrong[0] - 1]} in step {wrong[0]}, so that {out} holds no adapter of use; try a lower --lr."
        )
    row = {"steps": len(losses), "first": losses[0], "last": losses[-1], "adapter": str(Path(out) / "adapter")}
    report([row], tuple(row), as_json)


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
