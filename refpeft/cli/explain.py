"""``refpeft explain``: an operation's page of the spec in the terminal."""

from __future__ import annotations

import inspect
import sys

import click

from refpeft.cli.operations import describe


@click.command("explain")
@click.argument("operation")
def command(operation):
    """Show what OPERATION is: signature, attributes, budget kinds, and its page of the spec."""
    from refpeft.errors import CapabilityError
    from refpeft.operation import find
    from refpeft_spec import body, page_of

    found = find(operation)
    try:
        page = body(page_of(found.name))
    except CapabilityError:
        page = inspect.cleandoc(found.__doc__ or "It has neither a page nor a docstring.")
    text = f"{_summary(describe(found))}\n{page}"
    if not sys.stdout.isatty():
        click.echo(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, hyperlinks=False))


def _summary(operation: dict) -> str:
    """The catalogue's facts about one operation, as Markdown."""
    facts = [
        ("signature", f"`{operation['signature']}`"),
        *((f"attribute `{a['name']}`", _domain(a)) for a in operation["attributes"]),
        ("dtypes", ", ".join(operation["dtypes"])),
        ("gradients", ", ".join(operation["gradients"]) or "none"),
        ("budgets", ", ".join(f"{name} {kind}" for name, kind in operation["budgets"].items())),
        ("must pass", ", ".join(operation["must_pass"]) or "nothing: no page of the spec declares it"),
    ]
    return "\n".join([f"# {operation['name']}", "", *(f"- {name}: {fact}" for name, fact in facts), ""])


def _domain(attribute: dict) -> str:
    kind = f"one of {', '.join(map(str, attribute['choices']))}" if attribute["choices"] else attribute["type"]
    return f"{kind}, {attribute['default']!r} where not given" if "default" in attribute else kind
