"""``refpeft oracle``: golden values and error budgets as a file, for tests in any language."""

from __future__ import annotations

import json
import os

import click

from refpeft.cli._options import pairs
from refpeft.cli._output import as_json, report


@click.command("oracle")
@click.argument("operation")
@click.option("--inputs", required=True, metavar="FILE", help="Safetensors: inputs and cotangents by name (x, dy).")
@click.option("--out", required=True, metavar="FILE", help="Where y.value, y.budget, dx.value, ... go, in float64.")
@click.option("--attribute", "-a", "attributes", multiple=True, metavar="NAME=VALUE", help="scaling=2; repeatable.")
@click.option("--dtype", metavar="DTYPE", help="fp64, fp32, bf16 or fp16, where no input has the problem's dtype.")
@click.option(
    "--precision",
    "promises",
    multiple=True,
    metavar="NAME=VALUE",
    help="What the implementation promises, where not the standard: accumulation=bf16, operands=tf32, splits=8, "
    "flush_to_zero=true, elementary_ulps=4; repeatable.",
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@as_json
def command(operation, inputs, out, attributes, dtype, promises, force, as_json):
    """Write golden values and error budgets of OPERATION: its outputs, and gradients if there are cotangents."""
    from refpeft import __version__
    from refpeft.errors import FormatError
    from refpeft.formats import safetensors
    from refpeft.golden import answer
    from refpeft.operation import find

    found = find(operation)
    if os.path.lexists(out) and not force:
        raise FormatError(f"{out} exists already: --force replaces it.")
    problem = read_problem(found, inputs, attributes, dtype)
    golden = answer(problem, read_precision(problem.dtype, promises))
    tensors = {f"{name}.value": g.value for name, g in golden.items()}
    tensors |= {f"{name}.budget": g.budget for name, g in golden.items()}
    tensors |= {f"{name}.rest": g.rest for name, g in golden.items() if g.rest.any()}
    metadata = problem.pack()[1] | {
        "kinds": json.dumps({name: g.kind for name, g in golden.items()}, sort_keys=True),
        "refpeft": __version__,
    }
    safetensors.save(out, tensors, metadata)
    report(
        [summary(name, g) for name, g in golden.items()],
        ("name", "kind", "dtype", "shape", "largest", "budget", "ulps", "vacuous"),
        as_json,
    )


def read_problem(operation, path: str, attributes, dtype: str | None):
    """The problem that a file and the command line give together; the command line goes first.

    A file that `refpeft.Problem.pack` wrote has ``input.x``, ``cotangent.dy`` and the attributes; one written by hand
    may have ``x`` and ``dy``.
    """
    from refpeft.errors import FormatError
    from refpeft.formats import safetensors
    from refpeft.problem import Problem

    archive = safetensors.load(path)
    written_for = archive.metadata.get("operation", operation.name)
    if written_for != operation.name:
        raise FormatError(f"{path} holds a problem of {written_for}, but {operation.name} was asked for.")
    inputs: dict = {}
    cotangents: dict = {}
    for full, tensor in archive.tensors.items():
        name = full.removeprefix("input.").removeprefix("cotangent.")
        group = cotangents if name in operation.cotangents else inputs
        if name in group:
            raise FormatError(f"{path} holds {name} twice, once as {full}.")
        group[name] = tensor
    given = _stored_attributes(path, archive.metadata)
    for name, text in pairs("--attribute", attributes).items():
        known = operation.attributes.get(name)
        given[name] = known.from_text(operation.name, text) if known else text
    return Problem.of(operation, inputs, given, cotangents, dtype or archive.metadata.get("dtype"))


def _stored_attributes(path: str, metadata) -> dict:
    from refpeft.errors import FormatError

    try:
        attributes = json.loads(metadata.get("attributes", "{}"))
    except (ValueError, RecursionError):
        attributes = None
    if not isinstance(attributes, dict):
        raise FormatError(f"{path}: the attributes in its metadata must be a JSON object.")
    return attributes


def read_precision(dtype: str, promises):
    """The standard precision of ``dtype``, changed as ``NAME=VALUE`` texts say."""
    from refpeft.numerics.formats import TF32, as_format
    from refpeft.numerics.precision import standard_precision

    def format(text):
        return TF32 if text == "tf32" else as_format(text)

    readers = {
        "accumulation": format,
        "operands": format,
        "splits": _positive(int),
        "flush_to_zero": lambda text: {"true": True, "false": False}[text.lower()],
        "elementary_ulps": _positive(float),
    }
    changes = {}
    for name, text in pairs("--precision", promises).items():
        if name not in readers:
            raise click.UsageError(f"--precision {name}: unknown, expected one of {', '.join(readers)}.")
        try:
            changes[name] = readers[name](text)
        except (ValueError, KeyError):
            raise click.UsageError(f"--precision {name}: {text!r} is not a value it can have.") from None
    return standard_precision(dtype, **changes)


def _positive(kind):
    def read(text):
        number = kind(text)
        if not 0 < number < float("inf"):
            raise ValueError(text)
        return number

    return read


def summary(name: str, golden) -> dict:
    """One output's golden value as plain data: the largest magnitude, the largest budget, and that in ulps."""
    import numpy as np

    floating = golden.kind in ("proven", "perturbed")
    ulps = golden.ulps(golden.value + golden.budget) if floating else golden.budget
    return {
        "name": name,
        "kind": golden.kind,
        "dtype": golden.dtype,
        "shape": list(golden.value.shape),
        "largest": float(np.max(np.abs(golden.value), initial=0.0)),
        "budget": float(np.max(golden.budget, initial=0.0)),
        "ulps": float(np.max(ulps, initial=0.0)),
        "vacuous": int(np.sum(golden.vacuous)),
    }
