"""Laws of DoRA on a convolution."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws._convolution import base_of, merged_alone
from refpeft_conformance.laws.dora import at_start, directed
from refpeft_conformance.strategies import is_exact

merged_alone("dora.conv2d", "dora.merge", ("weight", "a", "b"))


@law("dora.conv2d", "training begins at the base layer exactly", regime="exact", needs=("lora.conv2d",))
def _(subject, problem, observed):
    """Where the filters' norms are powers of two: V of the drawn problem in the place of W, beside a LoRA that adds nothing."""
    adapted = at_start(problem, directed(problem).reshape(problem.inputs["weight"].shape))
    equal("start", subject.run(adapted)["y"], subject.run(base_of(adapted))["y"], observed)


@law("dora.conv2d", "a filter's direction has no length", regime="exact")
def _(subject, problem, observed):
    """W and B doubled leave y as it was, bit for bit, where nothing is dropped."""
    plain = problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "mask"}, cotangents={})
    doubled = {n: store(2.0 * plain.inputs[n].astype(np.float64), as_format(problem.dtype)) for n in ("weight", "b")}
    other = plain.replace(inputs=plain.inputs | doubled)
    if all(is_exact(p, subject.precision(problem.dtype)) for p in (plain, other)):
        equal("W and B doubled", subject.run(other)["y"], subject.run(plain)["y"], observed)
