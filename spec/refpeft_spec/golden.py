"""Golden files: problems with their golden values and budgets, for implementations in any language.

``golden/<operation>/case-NN.safetensors`` holds ``input.NAME`` and ``cotangent.NAME`` in storage dtypes, and for each
output and gradient ``golden.NAME`` in float64: along its first axis the value, the budget and, where it is not zero, the
rest that the value lacks of a double-double one. Budgets are those of the dtype's standard precision. ``manifest.json``
beside them tells the budget kind of each output, and each file's hash, dtype, attributes and number (see
`refpeft_spec.draw.case`).

Golden values are float64 sums, whose order a BLAS may choose, so verification is not of bits. To first order a budget
is linear in the subject's unit roundoff: 2**-24 or more over float64 values, 2**-53 over double-double ones. The golden
arithmetic's own error obeys the same bound with its own unit, 2**-53 or 2**-100, so it is at most 2**-29 of the budget,
and two golden values differ by at most twice that. `SLACK` leaves as much again for terms of second order and for the
budget's own arithmetic; no change of a rule is as small. Exact and discrete outputs have budget zero, and no slack.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refpeft import __version__
from refpeft.errors import CapabilityError, FormatError, RefpeftError
from refpeft.files import atomic_write
from refpeft.formats import safetensors
from refpeft.golden import Golden, answer
from refpeft.operation import Operation, catalogue, find, matches
from refpeft.problem import Problem
from refpeft_spec.draw import case

FOLDER = Path(__file__).with_name("golden")
SEED = 0
SLACK = 2.0**-27
CASES = {"float32": 3, "float64": 1, "bfloat16": 1, "float16": 1}
"""How many cases an operation has in each dtype that it is defined for."""

_CASE = re.compile(r"case-\d\d\.safetensors")
Answer = tuple[np.ndarray, np.ndarray, np.ndarray, str]


def specified(pattern: str = "*") -> dict[str, Operation]:
    """The operations of refpeft itself whose name matches ``pattern``; what plugins bring has no place in the spec.

    Raises
    ------
    CapabilityError
        If none matches.
    """
    own = {name: o for name, o in catalogue().items() if o.__module__.startswith("refpeft.")}
    chosen = {name: o for name, o in own.items() if matches(name, pattern)}
    if not chosen:
        raise CapabilityError(f"No operation matches {pattern!r}, expected at least one of {', '.join(own)}.")
    return chosen


def strays(folder: str | Path = FOLDER, pattern: str = "*") -> list[str]:
    """Names of folders with golden files of operations that do not exist; that of trajectories is none of them."""
    found = [path.name for path in Path(folder).glob("*") if path.is_dir() and matches(path.name, pattern)]
    return sorted(set(found) - catalogue().keys() - {"train"})


def make(operation: str | Operation, folder: str | Path = FOLDER) -> dict[str, int]:
    """Write the golden files of one operation; the same bytes each time, on one machine.

    Files appear whole, the manifest last. Those with the right bytes are left alone, cases beyond the last are removed.

    Returns
    -------
    dict of file name to size in bytes
    """
    operation = find(operation)
    place = Path(folder) / operation.name
    place.mkdir(parents=True, exist_ok=True)
    numbered = [(dtype, index) for dtype in operation.dtypes for index in range(CASES[dtype])]
    entries: list[dict] = []
    kinds: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for number, (dtype, index) in enumerate(numbered):
        problem, golden = case(operation, dtype, SEED, index)
        name, data = f"case-{number:02d}.safetensors", _pack(problem, golden)
        _write(place / name, data)
        sizes[name] = len(data)
        entries.append(
            {
                "file": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "dtype": problem.dtype,
                "index": index,
                "attributes": problem.attributes,
            }
        )
        kinds |= {output: g.kind for output, g in golden.items()}
    manifest = {
        "operation": operation.name,
        "signature": str(operation.signature),
        "refpeft": __version__,
        "seed": SEED,
        "kinds": kinds,
        "cases": entries,
    }
    _write(place / "manifest.json", _lines(manifest).encode())
    for path in place.iterdir():
        if _CASE.fullmatch(path.name) and path.name not in sizes:
            path.unlink()
    return sizes


def load_cases(
    operation: str | Operation, folder: str | Path = FOLDER, dtype: str | None = None
) -> Iterator[tuple[Problem, dict[str, Answer]]]:
    """The golden files of one operation, those of one dtype where it is given.

    Yields
    ------
    (Problem, dict of name to (value, rest, budget, kind))

    Raises
    ------
    FormatError
        If there are none, or one is not what the manifest says.
    """
    operation = find(operation)
    place = Path(folder) / operation.name
    entries, kinds = _manifest(place, operation)
    for entry in entries:
        if dtype in (None, entry["dtype"]):
            yield _load(place, operation, entry, kinds)


def verify(operation: str, folder: str | Path = FOLDER) -> list[str]:
    """What is wrong with the golden files of one operation, a sentence each; nothing if they hold."""
    place = Path(folder) / operation
    try:
        operation = find(operation)
        entries, kinds = _manifest(place, operation)
    except RefpeftError as error:
        return [str(error)]
    listed = {entry["file"] for entry in entries}
    unlisted = sorted(p.name for p in place.iterdir() if p.name not in listed | {"manifest.json"})
    complaints = [f"{name} is not in the manifest." for name in unlisted]
    missing = sorted(set(operation.dtypes) - {entry["dtype"] for entry in entries})
    complaints += [f"there is no case in {dtype}." for dtype in missing]
    for entry in entries:
        try:
            problem, stored = _load(place, operation, entry, kinds)
            complaints += [f"{entry['file']}: {said}" for said in differences(stored, answer(problem))]
        except RefpeftError as error:
            complaints.append(str(error))
    return complaints


def differences(stored: dict[str, Answer], golden: dict[str, Golden]) -> Iterator[str]:
    for name, (value, rest, budget, kind) in stored.items():
        fresh = golden[name]
        if kind != fresh.kind:
            yield f"{name} is {kind} but now {fresh.kind}."
        slack = SLACK * np.minimum(budget, fresh.budget)
        moved = _apart(value, fresh.value, rest - fresh.rest)
        for what, apart, old, new in (
            (name, moved, value, fresh.value),
            (f"the budget of {name}", _apart(budget, fresh.budget, 0.0), budget, fresh.budget),
        ):
            outside = np.argwhere(apart > slack)
            if outside.size:
                at = tuple(int(i) for i in outside[0])
                yield f"{what} at {list(at)} is {old[at]:.17g} but recomputes to {new[at]:.17g}."


def _apart(old, new, rest) -> np.ndarray:
    """|old - new + rest|; zero where both are the same infinity or NaN, infinite where only one is."""
    with np.errstate(invalid="ignore"):
        apart = np.abs((old - new) + rest)
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    return np.where(np.isnan(apart), np.where(same, 0.0, np.inf), apart)


def _pack(problem: Problem, golden: dict[str, Golden]) -> bytes:
    tensors, metadata = problem.pack()
    for name, g in golden.items():
        tensors[f"golden.{name}"] = np.stack([g.value, g.budget, g.rest][: 3 if g.rest.any() else 2])
    return safetensors.dumps(tensors, metadata)


def _lines(manifest: dict) -> str:
    """JSON with a line for each key, and for each case."""
    fields = {key: json.dumps(value) for key, value in manifest.items()}
    fields["cases"] = "[\n  " + ",\n  ".join(map(json.dumps, manifest["cases"])) + "\n ]"
    return "{\n" + ",\n".join(f' "{key}": {text}' for key, text in fields.items()) + "\n}\n"


def _write(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        atomic_write(path, data)


def _manifest(place: Path, operation: Operation) -> tuple[list[dict], dict[str, str]]:
    """The cases that a folder's manifest lists, checked in form, and the budget kinds by output."""
    path = place / "manifest.json"
    if not path.is_file():
        raise FormatError(f"{operation.name} has no golden files: {path} does not exist.")
    try:
        manifest = json.loads(path.read_bytes())
        entries, kinds = manifest["cases"], dict(manifest["kinds"])
        stated = (manifest["operation"], manifest["signature"])
        sound = entries and all(
            _CASE.fullmatch(e["file"]) and {"sha256", "dtype", "attributes"} <= e.keys() for e in entries
        )
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise FormatError(f"{path} is malformed: 'refpeft golden make' writes it anew.") from None
    if not sound or len({e["file"] for e in entries}) < len(entries):
        raise FormatError(f"{path} must list cases by file, each with its hash, dtype and attributes.")
    if stated != (operation.name, str(operation.signature)):
        raise FormatError(f"{path} is of {stated[0]}: {stated[1]}, but the operation is {operation}.")
    return entries, kinds


def _load(place: Path, operation: Operation, entry: dict, kinds: dict[str, str]) -> tuple[Problem, dict[str, Answer]]:
    path = place / entry["file"]
    if not path.is_file():
        raise FormatError(f"{path.name} is missing.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise FormatError(f"{path.name} is not the file whose hash the manifest holds.")
    archive = safetensors.loads(data)
    problem = Problem.unpack(archive.tensors, archive.metadata)
    stated = (entry["dtype"], json.loads(json.dumps(problem.attributes)))
    if problem.operation is not operation or (problem.dtype, entry["attributes"]) != stated:
        raise FormatError(f"{path.name} is another problem than its manifest says.")
    tensors = {name: tensor for name, tensor in archive.tensors.items() if name not in problem.pack()[0]}
    answers = {}
    for name, (shape, _) in problem.result_specs.items():
        golden = tensors.pop(f"golden.{name}", None)
        forms = [((rows, *shape), np.float64) for rows in (2, 3)]
        if name not in kinds or golden is None or (golden.shape, golden.dtype) not in forms:
            raise FormatError(f"{path.name} needs value and budget of {name} as float64{[2, *shape]}, and its kind.")
        value, budget, *rest = golden
        answers[name] = (value, rest[0] if rest else np.zeros(shape), budget, kinds[name])
    if tensors:
        raise FormatError(f"{path.name} holds {min(tensors)}, which is no part of its problem.")
    return problem, answers
