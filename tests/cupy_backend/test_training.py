"""Training through CuPy's arrays, as far as it can be seen without a GPU."""

import pytest

from refpeft.numerics.precision import standard_precision
from refpeft.operation import catalogue
from refpeft_conformance.plan import checks_on
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import PASS
from refpeft_spec.trajectory import DTYPE


@pytest.mark.parametrize("name", ["train.lora", "train.adapter", "train.prefix"])
def test_twenty_steps_lie_within_the_spec(backend, name):
    """Loss of every step, and what was trained.

    By the sources alone, since kernels on the host take a minute for it; and within the stored budgets, which are of a precision
    that flushes nothing: those of CuPy's own take half a minute to find. All seven pass with both.
    """
    from refpeft_cupy import primitives
    from refpeft_cupy.shared import implementation

    primitives.register()
    sources = type(backend)()
    sources._implementations = {name: implementation(operation) for name, operation in catalogue().items()}
    sources.precision = standard_precision
    *_, whole = checks_on(name, DTYPE)
    verdict = run(whole, Subject(sources, "cuda:0"), profile="quick", shrinking=False)
    assert verdict.verdict == PASS, verdict.message
