"""How options that come as ``NAME=VALUE`` are read."""

from __future__ import annotations

import click


def pairs(option: str, texts) -> dict[str, str]:
    """Values by name, each given once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} needs NAME=VALUE, but {text!r} came.")
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice.")
        found[name] = value
    return found
