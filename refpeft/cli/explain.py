"""``refpeft explain``: the page of the spec of an operation, or of a method's, and what merging costs where it can be merged."""

from __future__ import annotations

import difflib
import inspect
import sys

import click

from refpeft.cli.operations import describe


@click.command("explain")
@click.argument("name", metavar="OPERATION|METHOD")
def command(name):
    """Show what an operation is, or that of a method: signature, attributes, budget kinds, and its page of the spec."""
    from refpeft.errors import CapabilityError
    from refpeft.methods import methods
    from refpeft.operation import find
    from refpeft_spec import body, page_of

    _require_known(name)
    found = find(methods()[name].operation if name in methods() else name)
    try:
        page = body(page_of(found.name))
    except CapabilityError:
        page = inspect.cleandoc(found.__doc__ or "It has neither a page nor a docstring.")
    text = f"{_summary(describe(found))}\n{page}{_merging(found.name)}"
    if not sys.stdout.isatty():
        click.echo(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, hyperlinks=False))


def _require_known(name: str) -> None:
    """Refuse what is neither an operation nor a method, by the nearest of both."""
    from refpeft.errors import CapabilityError
    from refpeft.methods import methods
    from refpeft.operation import catalogue

    known = {*catalogue(), *methods()}
    if name in known:
        return
    members = sorted(n for n in known if n.startswith(f"{name}."))[:3]
    near = members or difflib.get_close_matches(name, sorted(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "'refpeft operations' and 'refpeft methods' list them."
    raise CapabilityError(f"there is neither an operation nor a method {name!r}: {hint}")


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


def _merging(operation: str) -> str:
    """What merging costs, as Markdown, for the methods whose layer or merge the operation is; empty for any other."""
    from refpeft.merging import DTYPES, ROWS, SIDE, STEP, merging_cost, merging_methods
    from refpeft.numerics.formats import as_format

    family = operation.partition(".")[0]
    mergeable = merging_methods(family)
    if operation not in {f"{family}.merge", f"{family}.unmerge", *(m.operation for m in mergeable.values())}:
        return ""

    lines = [
        "",
        "",
        "## What merging costs",
        "",
        f"Measured now, with the reference's correctly rounded merge: a weight {SIDE} x {SIDE} of N(0, 1/{SIDE}), trained",
        f"parameters {STEP} N(0, 1) away from their start, {ROWS} random inputs. All are norms: the update against the weight,",
        "what the merged layer is off by against its output and against what the method adds to it, and what unmerging is",
        "off by against the weight, beside the share of weights that it gives back bit for bit.",
        "",
        "| method | dtype | update | off by | of the update | unmerged off by | restored |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, method in mergeable.items():
        for dtype in DTYPES:
            cost = merging_cost(method, dtype)
            back = ("-", "-") if cost.residue is None else (f"{cost.residue:.1e}", f"{cost.restored:.1%}")
            numbers = (f"{cost.update:.2f}", f"{cost.apart:.1e}", f"{cost.lost:.1e}", *back)
            lines.append(f"| {name} | {as_format(dtype).short} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _domain(attribute: dict) -> str:
    kind = f"one of {', '.join(map(str, attribute['choices']))}" if attribute["choices"] else attribute["type"]
    return f"{kind}, {attribute['default']!r} where not given" if "default" in attribute else kind
