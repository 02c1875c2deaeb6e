"""``refpeft operations``: the catalogue."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, report


@click.command("operations")
@as_json
def command(as_json):
    """List the operations: signature, dtypes, gradients, budget kinds, page."""
    from refpeft.operation import catalogue

    rows = [describe(operation) for operation in catalogue().values()]
    report(rows, ("name", "signature", "dtypes", "gradients", "budgets", "page"), as_json)


def describe(operation) -> dict:
    """An operation as plain data."""
    from refpeft.errors import CapabilityError
    from refpeft_spec import must_pass, page_of

    try:
        page, checks = page_of(operation.name).stem, list(must_pass(operation.name))
    except CapabilityError:
        page, checks = None, []
    return {
        "name": operation.name,
        "signature": str(operation.signature),
        "attributes": [attribute(a) for a in operation.attributes.values()],
        "dtypes": list(operation.dtypes),
        "gradients": list(operation.gradients),
        "budgets": {name: operation.kinds.get(name, "proven") for name in (*operation.kinds, *operation.gradients)},
        "page": page,
        "must_pass": checks,
    }


def attribute(attribute) -> dict:
    """An attribute as plain data; ``default`` is there only if it need not be given."""
    described = {"name": attribute.name, "type": attribute.type.__name__, "choices": attribute.choices}
    return described if attribute.required else described | {"default": attribute.default}
