"""``refpeft sweep``: methods against ranks and seeds, in a table and a picture."""

from __future__ import annotations

import click

from refpeft.cli import _classification as classes
from refpeft.cli._options import integers, names, require_taken, training
from refpeft.cli._output import as_json, bar, report

RANKS = "1,2,4,8"
"""Where none are asked for; methods without a rank pass them over."""


@click.command("sweep")
@click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="A Hugging Face folder, or a GGUF file of Llama's or GPT-2's type; for classification an encoder of BERT's kind.",
)
@click.option("--data", required=True, metavar="FILE", help="A .txt file, or a .jsonl file of objects with a text.")
@classes.task
@classes.labelling
@click.option("--out", required=True, metavar="DIR", help="The sweep's folder; the same command does what is missing.")
@click.option("--method", "methods", default="lora", show_default=True, metavar="NAMES", help="As lora,dora,ia3.")
@click.option("--rank", "ranks", show_default=RANKS, metavar="NUMBERS")
@click.option("--seeds", type=int, help="So many, from 0 on; 3 where no --seed is given.")
@click.option("--seed", "listed", metavar="NUMBERS", help="These, as 0,1,2.")
@training
@click.option(
    "--held-out", "share", type=float, default=0.1, show_default=True, help="The share that is not trained on."
)
@click.option("--jobs", type=int, help="Processes at a time; 1 where it is not given.")
@click.option(
    "--dask", "address", metavar="ADDRESS", help="A Dask scheduler, whose workers do it in place of processes."
)
@as_json
def command(
    model,
    data,
    task,
    labels,
    head,
    hidden_dropout,
    out,
    methods,
    ranks,
    seeds,
    listed,
    share,
    jobs,
    address,
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
    """Train every method at every rank with every seed, and show held-out loss and trained parameters against rank.

    Held out are whole documents where a .jsonl file has several, else the end of the text. Intervals are Student's, of 95 %, over
    seeds. A method without a rank runs once for each seed. DIR/sweep.json has a row for each run, DIR/sweep.png is the picture.

    With --task classification MODEL is an encoder of BERT's kind, each line of FILE a text, cut to --sequence tokens, with its
    label; lines are held out, and accuracy is shown, too.
    """
    from pathlib import Path

    from refpeft import drawing
    from refpeft.files import atomic_write
    from refpeft.models.tokens import tokenizer
    from refpeft.training import executors, loop, picture, text
    from refpeft.training.sweep import Plan, sweep

    if seeds is not None and listed is not None:
        raise click.UsageError("--seeds and --seed say the same: give one of them.")
    if jobs is not None and address is not None:
        raise click.UsageError("--jobs is of processes, but with --dask there are none: give one of them.")
    for name, number in (("--jobs", jobs), ("--seeds", seeds)):
        if number is not None and number < 1:
            raise click.UsageError(f"{name} must be at least 1, but {number} came.")
    chosen = names("--method", methods)
    require_taken(*chosen)
    classes.require_task(task, labels=labels, head=head, hidden_dropout=hidden_dropout)
    plan = Plan(
        model=str(Path(model).absolute()),
        data=str(Path(data).absolute()),
        task=classes.asked(task, model, data, labels, head, hidden_dropout),
        methods=chosen,
        ranks=integers("--rank", ranks or RANKS),
        seeds=tuple(range(seeds or 3)) if listed is None else integers("--seed", listed),
        numbers={"alpha": alpha, "tokens": tokens, "reduction": reduction},
        targets=targets,
        sequence=sequence,
        share=share,
        backend=backend,
        quantise=quantise,
        settings=loop.Settings(**settings, start_text=text.token_ids(start_text, tokenizer(model))),
    )
    drawing.figure(1, 1)
    hands = executors.processes(jobs or 1) if address is None else executors.dask(address)
    with bar("sweeping", len(plan.runs()) + 1) as advance, hands as executor:
        found = sweep(plan, Path(out), executor, advance)
    title = f"{Path(model).name} after {plan.settings.steps} steps"
    atomic_write(Path(out) / "sweep.png", picture.draw(found["points"], found["base"], title))
    rows = [found["base"], *found["points"]]
    report(rows if as_json else [_spelt(row) for row in rows], tuple(found["base"]), as_json)


def _spelt(row):
    """Losses to four digits, where a table has three significant ones; one seed has no interval."""
    from refpeft.files import plain

    return {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in plain(row).items()}
