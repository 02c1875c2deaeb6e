"""``refpeft evaluate``: a model's loss and perplexity on a text."""

from __future__ import annotations

import click

from refpeft.cli._options import quantised
from refpeft.cli._output import as_json, progress, report


@click.command("evaluate")
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="A .txt file, or a .jsonl file of objects with a text.")
@click.option("--adapter", metavar="DIR", help="An adapter as refpeft train leaves one, or peft.")
@click.option("--sequence", type=int, default=128, show_default=True, help="Tokens that a row predicts.")
@click.option("--batch", type=int, default=4, show_default=True)
@click.option("--rows", "limit", type=int, help="So many rows of the text only.")
@click.option("--backend", default="cpu", show_default=True)
@quantised
@as_json
def command(model, data, adapter, sequence, batch, limit, backend, quantise, as_json):
    """The mean cross-entropy of MODEL over the rows of a text, and its exponential."""
    from refpeft.errors import AttributeValueError
    from refpeft.formats import adapters
    from refpeft.models import load
    from refpeft.models.tokens import tokenizer
    from refpeft.training import evaluation, text

    if min(sequence, batch, 1 if limit is None else limit) < 1:
        raise AttributeValueError("--sequence, --batch and --rows must be at least 1.")
    found = adapters.load(adapter) if adapter else None
    ids = text.rows(data, tokenizer(model), sequence + 1)[:limit]
    decoder = load(model, backend=backend, quantise=quantise)
    if found:
        decoder.attach(found.pattern, found.method, arrays=found.arrays)
    loss = evaluation.mean_loss(decoder, ids, batch, lambda parts: progress(parts, "evaluating"))
    row = {"loss": loss, "perplexity": evaluation.perplexity(loss), "tokens": len(ids) * sequence}
    report([row], tuple(row), as_json)
