"""The report: the certificate as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from refpeft.files import atomic_write
from refpeft.numerics.formats import as_format


def render(certificate: dict) -> str:
    """The page. It refers to nothing outside itself."""
    environment = Environment(
        loader=PackageLoader("refpeft_conformance"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda dtype: as_format(dtype).short
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["share"] = lambda number: f"{number:.3f}"
    return environment.get_template("report.html").render(c=certificate, rows=_rows(certificate))


def write(certificate: dict, path: Path) -> None:
    """Write the page atomically."""
    atomic_write(path, render(certificate).encode())


def _rows(certificate: dict) -> list[dict]:
    """One row for each operation and dtype, with its worst share in each kind of check."""
    rows = []
    for operation, dtypes in certificate["operations"].items():
        for dtype, row in dtypes.items():
            kinds: dict[str, dict] = {}
            for record in certificate["checks"]:
                if record["operation"] == operation and record["dtype"] == dtype:
                    kind = kinds.setdefault(record["kind"], {"passed": 0, "run": 0, "worst_share": 0.0})
                    kind["passed"] += record["verdict"] == "PASS"
                    kind["run"] += record["verdict"] != "UNSUPPORTED"
                    kind["worst_share"] = max(kind["worst_share"], record["worst_share"])
            rows.append({"operation": operation, "dtype": dtype, "kinds": kinds, **row})
    return rows
