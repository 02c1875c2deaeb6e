"""The suite as a pytest plugin: ``pytest --pyargs refpeft_conformance --refpeft-backend torch -k "lora and bf16"``.

Loaded by pytest through an entry point in every run, so it imports the kit only once a backend is named.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    """The options, all with the prefix ``--refpeft``."""
    group = parser.getgroup("refpeft", "conformance of a backend")
    group.addoption("--refpeft-backend", default="", metavar="NAME", help="certify this backend")
    group.addoption(
        "--refpeft-command", default="", metavar="PROGRAM", help="certify a program that speaks the process protocol"
    )
    group.addoption("--refpeft-device", default="", help="device of the backend")
    group.addoption(
        "--refpeft-profile", default="quick", choices=["quick", "standard", "thorough"], help="how many examples"
    )
    group.addoption("--refpeft-seed", default=0, type=int, help="equal seeds draw equal problems")


def pytest_generate_tests(metafunc):
    """One test for each check of each operation that the backend declares."""
    if "refpeft_check" not in metafunc.fixturenames:
        return
    from refpeft.errors import RefpeftError

    try:
        plan = _plan(metafunc.config)
        checks = _planned(plan)
    except RefpeftError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("refpeft_check", checks, ids=[c.id for c in checks])


def _plan(config):
    from refpeft_conformance.certify import Plan

    option = config.getoption
    if bool(option("--refpeft-backend")) == bool(option("--refpeft-command")):
        raise pytest.UsageError("name one backend: --refpeft-backend NAME, or --refpeft-command PROGRAM")
    return Plan(
        option("--refpeft-backend") or "process",
        option("--refpeft-command"),
        option("--refpeft-device"),
        profile=option("--refpeft-profile"),
        seed=option("--refpeft-seed"),
    )


def _planned(plan):
    from refpeft_conformance.certify import planned

    reason = plan.honest().unavailable()
    if reason:
        raise pytest.UsageError(f"UNSUPPORTED: backend {plan.backend!r} cannot run here: {reason}")
    return planned(plan)


@pytest.fixture
def refpeft_verdict(refpeft_check, request):
    """The verdict of one check on the backend that the options name."""
    from refpeft_conformance.certify import execute

    plan = _plan(request.config)
    return execute(plan, refpeft_check.operation.name, refpeft_check.dtype, refpeft_check.id)
