"""Laws of quantisers that take a flat weight in blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.operation import find
from refpeft.ops._blocks import DTYPES
from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


def decoded(subject, problem, stored):
    """What the subject makes of its own codes, with the quantiser's attributes as far as both have them."""
    operation = find(problem.operation.name.partition(".")[0] + ".dequantize")
    inputs = {
        a.name: stored[a.name] if a.name in stored else problem.inputs[a.name] for a in operation.signature.inputs
    }
    known = problem.attributes | {"n": problem.dims["n"], "dtype": problem.dtype}
    attributes = {name: known[name] for name in operation.attributes if name in known}
    return subject.run(Problem.of(operation, inputs, attributes, {}, problem.dtype))["y"]


def positive(problem):
    """The problem with |weight|, so that a codebook's 1 is attained in every block."""
    return problem.replace(inputs=problem.inputs | {"weight": np.abs(problem.inputs["weight"])})


def block_laws(
    family: str,
    *,
    codes: str = "packed",
    scales: str = "absmax",
    twice: Callable[[np.ndarray], np.ndarray] = lambda absmax: 2 * absmax,
    blocksize: int | None = None,
    exactly: tuple[str, ...] = DTYPES,
) -> None:
    """The laws of ``family.quantize`` and ``family.dequantize``, with codes and a scale for each block.

    Parameters
    ----------
    family : str
    codes : str
        The output that holds them: ``packed`` two a byte, or ``codes``.
    scales : str
        The output that holds those.
    twice : callable
        What becomes of them when all weights are doubled.
    blocksize : int, optional
        Where it is not an attribute.
    exactly : tuple of str
        Dtypes whose rounding leaves a decoded block's scale as it is.
    """
    quantize, needs, share = f"{family}.quantize", (f"{family}.dequantize",), 2 if codes == "packed" else 1

    def size_of(problem):
        return blocksize or problem.attributes["blocksize"]

    @law(quantize, "what was decoded decodes to the same again", needs=needs, dtypes=exactly)
    def _(subject, problem, observed):
        """Where the nearest codeword is taken, and the block's maximum is attained."""
        if problem.attributes.get("variant") == "bitsandbytes-cpu" and codes == "codes":
            return
        problem = positive(problem)
        first = decoded(subject, problem, subject.run(problem))
        again = problem.replace(inputs=problem.inputs | {"weight": first})
        equal("decoded twice", decoded(subject, again, subject.run(again)), first, observed)

    @law(quantize, "blocks are independent")
    def _(subject, problem, observed):
        size = size_of(problem)
        if problem.dims["n"] <= size:
            return
        first = problem.replace(inputs=problem.inputs | {"weight": problem.inputs["weight"][:size]})
        whole, alone = subject.run(problem), subject.run(first)
        equal("codes of the first block alone", alone[codes], whole[codes][: size // share], observed)
        equal(f"{scales} of the first block alone", alone[scales], whole[scales][:1], observed)

    @law(quantize, "twice the weights have the same codes")
    def _(subject, problem, observed):
        weight = problem.inputs["weight"]
        doubled = problem.replace(inputs=problem.inputs | {"weight": weight * weight.dtype.type(2)})
        once, again = subject.run(problem), subject.run(doubled)
        equal("codes of twice the weights", again[codes], once[codes], observed)
        equal(f"{scales} of twice the weights", again[scales], twice(once[scales]), observed)

    @law(quantize, "a larger weight has no smaller value", needs=needs)
    def _(subject, problem, observed):
        """Among the elements of the first block."""
        size, weight = size_of(problem), problem.inputs["weight"]
        y = decoded(subject, problem, subject.run(problem)).astype(float)[:size]
        ascending = y[np.argsort(weight[:size].astype(float), kind="stable")]
        equal("values in the order of their weights", ascending, np.sort(y), observed)

    @law(f"{family}.dequantize", f"{scales} for twice the weights give twice the weights")
    def _(subject, problem, observed):
        """Where the weight is above its dtype's smallest normal number: below, rounding is absolute and doubling shows it."""
        doubled = problem.replace(inputs=problem.inputs | {scales: twice(problem.inputs[scales])})
        once, again = (subject.run(p)["y"].astype(float) for p in (problem, doubled))
        normal = (np.abs(once) > as_format(problem.dtype).tiny) & np.isfinite(again)
        equal("twice the weights", again[normal], 2.0 * once[normal], observed)
