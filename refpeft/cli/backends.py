"""``refpeft backends``: what is installed that implements the catalogue, and which plugins are broken."""

from __future__ import annotations

import click

from refpeft.cli._output import as_json, report

_LOADED = ("devices", "operations", "frozen")
"""What only a loaded backend can say."""


@click.command("backends")
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Load each backend: its devices, how many operations it has, and which of their inputs get no gradient.",
)
@as_json
def command(verbose, as_json):
    """List the backends, and plugins that are broken."""
    from refpeft import plugins
    from refpeft.cli import plugin_commands

    rows = [_describe(b, plugins.distribution(name), verbose) for name, b in plugins.backends().items()]
    plugin_commands(), plugins.load_operations()
    rows += [_row(b.name, "broken", b.error, f"{b.distribution} {b.version}") for b in plugins.broken()]
    columns = ("name", "status", "reason", "summary", "versions", "distribution")
    report(rows, (*columns[:3], *_LOADED, *columns[3:]) if verbose else columns, as_json)


def _row(name, status, reason, distribution, **facts) -> dict:
    empty: dict = {"summary": None, "versions": {}, **dict.fromkeys(_LOADED)}
    return {"name": name, "status": status, "reason": reason, **empty, **facts, "distribution": distribution}


def _describe(backend, distribution: str | None, verbose: bool) -> dict:
    """A backend as plain data; one that raises while it is asked is shown as broken."""
    facts = {"summary": backend.summary}
    try:
        reason = backend.unavailable()
        if reason is None:
            facts["versions"] = backend.versions()
            if verbose:
                found = {name: backend.implementation(name).frozen for name in backend.operations()}
                frozen = {name: list(inputs) for name, inputs in found.items() if inputs}
                facts |= {"devices": list(backend.devices()), "operations": len(found), "frozen": frozen}
    except Exception as error:
        return _row(backend.name, "broken", f"{type(error).__name__}: {error}", distribution, summary=backend.summary)
    return _row(backend.name, "unavailable" if reason else "available", reason, distribution, **facts)
