"""The suite: each check of `refpeft_conformance.checks` is one test, its id the check's."""

import pytest


def test_conforms(refpeft_check, refpeft_verdict):
    """The backend keeps the claim on every example drawn."""
    if refpeft_verdict.verdict == "UNSUPPORTED":
        pytest.skip(refpeft_verdict.message)
    message = refpeft_verdict.message
    if len(refpeft_verdict.explanation) == 1:
        message += f"\nthe output lies within the budget of fault {refpeft_verdict.explanation[0]!r}, and of no other"
    if refpeft_verdict.problem is not None:
        message += f"\non {refpeft_verdict.problem}"
    assert refpeft_verdict.verdict == "PASS", message
