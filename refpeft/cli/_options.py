"""How options are read that come as ``NAME=VALUE`` or as a size."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


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


def as_bytes(option: str, text: str) -> int:
    """Bytes from 48GB (10**9 bytes each), 47.5GiB (2**30) or a number alone."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    bytes = int(float(found[1]) * _UNITS[found[2]]) if found is not None and found[2] in _UNITS else 0
    if not bytes:
        raise click.UsageError(f"{option} needs a size as 48GB or 47.5GiB, but {text!r} came.")
    return bytes
