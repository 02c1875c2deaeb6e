"""The standard: one page per family, what an operation must pass, and golden files.

A page starts with a header, lines of ``key: value`` between two ``---``:

    ---
    operations: lora.linear, lora.merge
    must-pass: exact, rounded, laws, conduct, provenance, golden
    sources: arXiv:2106.09685
    ---

``must-pass NAME: ...`` in it replaces the list for one operation. A page without a header declares no operation.
"""

from __future__ import annotations

import functools
from pathlib import Path

from refpeft.errors import CapabilityError, FormatError

CHECKS = ("exact", "rounded", "laws", "conduct", "provenance", "discontinuities", "golden")
"""The kinds of checks: what a must-pass list may hold."""

PAGES = Path(__file__).with_name("pages")


def pages() -> dict[str, Path]:
    """Every page by name, sorted."""
    return {path.stem: path for path in sorted(PAGES.glob("*.md"))}


@functools.cache
def declared() -> dict[str, Path]:
    """Every operation that a page declares, with that page.

    Raises
    ------
    FormatError
        If two pages declare the same operation, or a header is malformed.
    """
    found: dict[str, Path] = {}
    for path in pages().values():
        for operation in _names(header(path).get("operations", "")):
            if operation in found:
                raise FormatError(f"The pages {found[operation].name} and {path.name} both declare {operation}.")
            found[operation] = path
    return found


def page_of(operation: str) -> Path:
    """The page whose header declares ``operation``.

    Raises
    ------
    CapabilityError
        If there is none.
    """
    if operation not in declared():
        raise CapabilityError(f"No page of the spec declares the operation {operation!r}.")
    return declared()[operation]


def must_pass(operation: str) -> tuple[str, ...]:
    """The kinds of checks (see `CHECKS`) that ``operation`` must pass, in the order of its page.

    Raises
    ------
    CapabilityError
        If no page declares the operation.
    FormatError
        If its page names no check, or one that does not exist.
    """
    path = page_of(operation)
    lines = header(path)
    kinds = _names(lines.get(f"must-pass {operation}", lines.get("must-pass", "")))
    unknown = [kind for kind in kinds if kind not in CHECKS]
    if unknown or not kinds:
        raise FormatError(
            f"{path.name}: must-pass of {operation} must list some of {', '.join(CHECKS)}, "
            f"but is {', '.join(unknown) or 'empty'}."
        )
    return kinds


def header(path: Path) -> dict[str, str]:
    """The ``key: value`` lines at the top of a page.

    Raises
    ------
    FormatError
        If the header is not closed, or a line of it has no colon.
    """
    return _split(path)[0]


def body(path: Path) -> str:
    """A page without its header."""
    return _split(path)[1]


def _split(path: Path) -> tuple[dict[str, str], str]:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        return {}, text
    block, closed, rest = text[4:].partition("\n---\n")
    pairs = [line.partition(":") for line in block.splitlines()]
    if not closed or not all(colon for _, colon, _ in pairs):
        raise FormatError(f"{path.name}: the header must be lines of 'key: value' between two lines of '---'.")
    return {key.strip(): value.strip() for key, _, value in pairs}, rest.lstrip("\n")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
