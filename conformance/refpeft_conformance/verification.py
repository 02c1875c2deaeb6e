"""Whether a certificate is consistent with itself and, on a sample, with what the backend does here: not who wrote it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.weights import file_of
from refpeft_conformance.certificate import seal, sha_of_file, spec_hashes
from refpeft_conformance.certify import Plan, execute, planned
from refpeft_conformance.summary import summary
from refpeft_conformance.verdict import VERDICTS


def verify(
    content: dict, folder: Path | None = None, *, share: float = 0.02, rerun: bool = True, command: str = ""
) -> list[str]:
    """What is wrong with a certificate: empty if it is consistent.

    Parameters
    ----------
    content : dict
    folder : Path, optional
        Where its counterexamples lie; their hashes are compared.
    share : float
        Share of the checks to run again, chosen by the seal; at least one.
    rerun : bool
        Whether to run any at all.
    command : str
        The program to run again, where the certificate is a program's. What a certificate names is never started.

    Returns
    -------
    list of str
        One sentence for each inconsistency.
    """
    try:
        wrong = _inconsistencies(content) + (_changed_files(content, folder) if folder else [])
        return wrong + (_differences(content, share, command) if rerun and not wrong else [])
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the certificate lacks a field or has it in another form: {error!r}.") from error


def _inconsistencies(content: dict) -> list[str]:
    wrong = []
    if content["seal"] != seal(content):
        wrong.append("the seal does not match the content: something was changed after certification.")
    for name, value in summary(content).items():
        if content[name] != value:
            wrong.append(f"{name} does not follow from the checks: it says {content[name]!r}, they give {value!r}.")
    for record in content["checks"]:
        if record["verdict"] not in VERDICTS:
            wrong.append(f"{record['id']}: verdict {record['verdict']!r} is none of {', '.join(VERDICTS)}.")
    if content["spec"] != spec_hashes():
        wrong.append("the spec of this installation is not the one it was certified against.")
    return wrong


def _changed_files(content: dict, folder: Path) -> list[str]:
    wrong = []
    for example in content["counterexamples"]:
        path = folder / "counterexamples" / Path(example["file"]).name
        if not path.is_file():
            wrong.append(f"the counterexample {path} is missing.")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != example["sha256"]:
            wrong.append(f"the counterexample {path} is not the one that was certified.")
    return wrong


def _present(path: str) -> str:
    """The path.

    Raises
    ------
    CapabilityError
        If no file is there.
    """
    if not Path(path).is_file():
        raise CapabilityError(
            f"the certificate was made with the weights file {path!r}, which is not here: put it there, or give --no-rerun."
        )
    return path


def _differences(content: dict, share: float, command: str) -> list[str]:
    said, subject = content["plan"], content["subject"]
    if subject["command"] and not command:
        raise CapabilityError(
            "the certificate is a program's: give --command PROGRAM to run its sample again, or --no-rerun."
        )
    plan = Plan(
        subject["backend"],
        command,
        subject["device"],
        subject["fault"],
        said["operations"],
        said["only"],
        said["profile"],
        said["seed"],
        said["weights"],
        said["timeout"],
    )
    if plan.weights and sha_of_file(_present(file_of(plan.weights))) != said["weights_sha256"]:
        return [f"the weights file {file_of(plan.weights)} is not the one that was certified with."]
    checks = {c.id: c for c in planned(plan)}
    records = {r["id"]: r for r in content["checks"]}
    if checks.keys() != records.keys():
        missing = sorted(checks.keys() ^ records.keys())
        return [f"the checks are not those of this installation: {len(missing)} differ, {missing[0]} among them."]
    chosen = random.Random(content["seal"]).sample(sorted(records), max(1, round(share * len(records))))
    wrong = []
    for name in chosen:
        check = checks[name]
        verdict = execute(plan, check.operation.name, check.dtype, name)
        if verdict.verdict != records[name]["verdict"]:
            wrong.append(
                f"{name}: the certificate says {records[name]['verdict']}, running it again gives {verdict.verdict}."
            )
    return wrong
