"""What ``refpeft train``, ``refpeft sweep`` and ``refpeft evaluate`` do where the task is to label texts."""

from __future__ import annotations

import click

task = click.option(
    "--task",
    type=click.Choice(("language", "classification")),
    default="language",
    show_default=True,
    help="To predict tokens, or a label for each text of a .jsonl file.",
)


def labelling(command):
    """Options of ``--task classification``; each is None where it is not given."""
    command = click.option(
        "--hidden-dropout",
        type=float,
        metavar="RATE",
        help="Of --task classification, within the encoder and in front of the classifier; those of MODEL's config.json.",
    )(command)
    command = click.option(
        "--labels",
        metavar="NAMES",
        help="Of --task classification, in order: negative,positive. MODEL's, or the data's.",
    )(command)
    return click.option(
        "--head",
        metavar="PARTS",
        help="Of --task classification, what of it is trained: pooler,classifier. The classifier, and what MODEL has not.",
    )(command)


def require_task(task: str, **given) -> None:
    """Refuse options of classification where the task is another."""
    if task != "classification" and (needless := [name for name, value in given.items() if value is not None]):
        raise click.UsageError(f"--{needless[0].replace('_', '-')} needs --task classification.")


def asked(task: str, model: str, data: str, labels: str | None, head: str | None, hidden_dropout: float | None):
    """The task that the command line names."""
    from refpeft.training.task import Classification, Language

    if task == "language":
        return Language()
    names, parts = (text.split(",") if text is not None else () for text in (labels, head))
    return Classification.of(model, data, names, parts, hidden_dropout)


def rows(
    model: str,
    data: str,
    folders,
    tokenizer,
    length: int,
    batch: int,
    limit: int | None,
    predictions,
    *,
    rounds: int,
    **how,
):
    """A row for each adapter, or for the model as it is; what is predicted goes to a file, if one is named.

    With ``rounds`` what each costs is in it, and there are rows of it merged and of the model's own classifier.
    """
    import json
    import os
    from typing import Any

    import numpy as np

    from refpeft.cli._output import progress
    from refpeft.errors import FormatError
    from refpeft.files import atomic_write, require_writable
    from refpeft.formats import adapters
    from refpeft.models.head import head_of
    from refpeft.training import classification, costs, evaluation

    if predictions is not None and len(folders) > 1:
        raise FormatError(f"--predictions are of one adapter, but {len(folders)} came.")
    if predictions is not None and os.path.lexists(predictions or "."):
        raise FormatError(f"{predictions} exists already, expected the name of a new file.")
    if predictions is not None:
        require_writable(predictions)
    loaded = {folder: adapters.load(folder) for folder in folders}
    found = classification.examples(data, needed=predictions is None)[:limit]
    results: list[dict[str, Any]] = []
    predicted: dict[str, np.ndarray] = {}
    alone = [("", None)] if not loaded or (rounds and head_of(model).labels) else []
    for name, adapter in [*alone, *loaded.items()]:
        base, names = _with_head(model, adapter, name, **how)
        texts = classification.labelled(data, found, names, tokenizer, length)
        base.require_positions(texts.longest)
        first = dict(zip(("ids", "mask"), texts[range(min(batch, len(texts)))].padded))
        for variant in costs.variants(base, {name: adapter} if adapter else {}, all=rounds > 0):
            if adapter and not variant.name:
                continue
            got = evaluation.classified(variant.model, texts, batch, lambda parts: progress(parts, "evaluating"))
            row: dict[str, Any] = {
                "adapter": variant.name,
                "loss": got.loss,
                "accuracy": got.accuracy,
                "texts": len(texts),
            }
            results.append(row | (costs.measured(base, variant, first, rounds) if rounds else {}))
            predicted[variant.name] = got.probabilities
    if predictions is not None:
        lines = [
            {
                **{name: value for name, value in example._asdict().items() if value is not None},
                "predicted": int(its.argmax()) if isinstance(example.label, int) else names[its.argmax()],
                "probabilities": dict(zip(names, its.tolist())),
            }
            for example, its in zip(found, predicted[folders[0] if folders else ""])
        ]
        atomic_write(predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return results


def _with_head(model: str, adapter, name: str, **how):
    """The classifier with an adapter's head, and what its labels are called.

    Raises
    ------
    FormatError
        If a part of the head is neither the model's nor the adapter's.
    """
    from refpeft.errors import FormatError
    from refpeft.formats.names import HEAD, numbered
    from refpeft.models import load_classifier
    from refpeft.models.head import head_of

    there, brought = head_of(model), {} if adapter is None else adapter.head
    if missing := [part for part in HEAD if part not in there.parts and part not in brought]:
        raise FormatError(f"{model} has no {missing[0]}, and {name or 'no adapter'} brings one.")
    count = len(brought["classifier"]["bias"]) if "classifier" in brought else len(there.labels)
    classifier = load_classifier(model, labels=0 if there.labels else count, **how)
    classifier.set_head(brought)
    said = () if adapter is None else adapter.labels
    return classifier, said or (there.labels if len(there.labels) == count else numbered(count))
