"""``refpeft evaluate``: a model's loss and perplexity on a text, or its accuracy on texts with labels."""

from __future__ import annotations

import click

from refpeft.cli import _classification as classes
from refpeft.cli._options import quantised
from refpeft.cli._output import as_json, progress, report


@click.command("evaluate")
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="A .txt file, or a .jsonl file of objects with a text.")
@classes.task
@click.option(
    "--adapter", "folders", multiple=True, metavar="DIR", help="As refpeft train leaves one, or peft; repeatable."
)
@click.option("--sequence", type=int, default=128, show_default=True, help="Tokens that a row predicts.")
@click.option("--batch", type=int, default=4, show_default=True)
@click.option("--rows", "limit", type=int, help="So many rows of the text only.")
@click.option("--cost", is_flag=True, help="What each adapter costs, and what it costs merged.")
@click.option(
    "--rounds", type=int, default=21, show_default=True, help="Of --cost, each the base's time and then the other's."
)
@click.option(
    "--predictions",
    metavar="FILE",
    help="Of --task classification: a line for each text, with its labels' probabilities; labels may be missing then.",
)
@click.option("--backend", default="cpu", show_default=True)
@quantised
@as_json
def command(model, data, task, folders, sequence, batch, limit, cost, rounds, predictions, backend, quantise, as_json):
    """The mean cross-entropy of MODEL over the rows of a text, and its exponential; with each adapter, if any are given.

    With --task classification MODEL is an encoder of BERT's kind, and a row has the loss and the accuracy of its labels.

    With --cost there is a row for the base, unless it lacks the classifier, and for each adapter merged, too, and in each row: by
    how much of the base's time a forward pass over the first rows takes longer (the median in its interval of 95 %; the base's
    own is noise), the tokens it takes of the context, and the bytes it keeps for a task, with their share of a whole copy's in
    float32.
    """
    from refpeft.errors import AttributeValueError
    from refpeft.formats import adapters
    from refpeft.models import load
    from refpeft.models.tokens import tokenizer
    from refpeft.training import costs, evaluation, text

    if min(sequence, batch, 1 if limit is None else limit, rounds) < 1:
        raise AttributeValueError("--sequence, --batch, --rows and --rounds must be at least 1.")
    classes.require_task(task, predictions=predictions)
    if task == "classification":
        how = {"backend": backend, "quantise": quantise, "rounds": rounds if cost else 0}
        rows = classes.rows(model, data, folders, tokenizer(model), sequence, batch, limit, predictions, **how)
        report(rows, tuple(rows[0]), as_json)
        return
    loaded = {folder: adapters.load(folder) for folder in folders}
    ids = text.rows(data, tokenizer(model), sequence + 1)[:limit]
    base = load(model, backend=backend, quantise=quantise)
    first = {"ids": ids[:batch, :-1], "last": True}
    rows = []
    for variant in costs.variants(base, loaded, all=cost):
        loss = evaluation.mean_loss(variant.model, ids, batch, lambda parts: progress(parts, "evaluating"))
        row = {"adapter": variant.name, "loss": loss, "perplexity": evaluation.perplexity(loss)}
        row |= {"tokens": len(ids) * sequence}
        rows.append(row | (costs.measured(base, variant, first, rounds) if cost else {}))
    report(rows, tuple(rows[0]), as_json)
