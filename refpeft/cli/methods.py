"""``refpeft methods``: what can be configured, and what each method trains."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, report

DIMS = {"o": 4096, "i": 4096, "width": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "vocabulary": 32000}
"""Those of a decoder with seven thousand million parameters, and of one square matrix in it."""
LARGEST = 10**9
"""Some counts look for a size's divisors."""


@click.command("methods")
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=SIZE",
    help=f"A size; one of {', '.join(DIMS)}. 4096 x 4096 by default.",
)
@as_json
def command(dims, as_json):
    """List the methods: paper, trainable parameters at its defaults for a given shape, mergeable or why not, page.

    A method for matrices counts one matrix (o, i); a prompt counts a whole model of that width and number of layers. One that
    at its defaults cannot stand there says why.
    """
    from refpeft.methods import methods

    sizes = DIMS | dict(_size(text) for text in dims)
    rows = [describe(name, cls, sizes) for name, cls in methods().items()]
    said = rows if as_json else [row | {"parameters": row["unfit"] or row["parameters"]} for row in rows]
    report(said, ("name", "paper", "trainable", "parameters", "mergeable", "page", "peft", "adapters"), as_json)


def describe(name: str, cls, sizes) -> dict:
    """A method as plain data, with its default configuration; without parameters where that does not fit the sizes."""
    from dataclasses import asdict

    from refpeft.errors import CapabilityError, RefpeftError
    from refpeft.methods import dims_of
    from refpeft_spec import page_of

    default = cls()
    try:
        page = page_of(cls.operation).stem
    except CapabilityError:
        page = None
    try:
        parameters, unfit = default.count(**{n: sizes[n] for n in dims_of(cls)}), None
    except RefpeftError as error:
        parameters, unfit = None, str(error)
    return {
        "name": name,
        "class": cls.__name__,
        "paper": cls.paper,
        "operation": cls.operation,
        "trainable": list(cls.trainable),
        "parameters": parameters,
        "unfit": unfit,
        "mergeable": f"no: {cls.not_mergeable}" if cls.not_mergeable else "yes",
        "page": page,
        "defaults": asdict(default),
        "peft": list(cls.peft),
        "adapters": list(cls.adapters),
    }


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if name not in DIMS or not size.isascii() or not size.isdigit() or len(size) > 10 or not 1 <= int(size) <= LARGEST:
        raise click.BadParameter(
            f"--dim takes NAME=SIZE with a name out of {', '.join(DIMS)} and a size from 1 to {LARGEST:,}, but {text!r} came."
        )
    return name, int(size)
